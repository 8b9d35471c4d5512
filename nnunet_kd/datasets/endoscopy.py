"""Polyps in endoscopy: Kvasir-SEG (Jha et al., MMM 2020), CVC-ClinicDB (Bernal et al., CMIG 2015) and ETIS-Larib (Silva et
al., IJCARS 2014). Colour images become RGB PNG files of their own size, or of one given size; masks are thresholded at 128
of 255.

Published layouts: Kvasir-SEG `images/NAME.jpg`, `masks/NAME.jpg`; CVC-ClinicDB `Original/1.tif`, `Ground Truth/1.tif`, or
PNG copies of both, with a metadata.csv; ETIS-Larib not seen by us: two folders of numbered images and masks, masks named
1 or p1, any picture format. Cameras differ in size and frame; unlike eye photographs they have no common scale to restore.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_kd.datasets.fundus.photographs import FundusCase, read_binary, read_rgb
from nnunet_kd.datasets.nnunet_format import (
    ConversionReport,
    check_choice,
    folds_of_cases,
    new_dataset_folder,
    new_report,
    write_case,
    write_dataset_json,
    write_splits,
)
from nnunet_kd.datasets.sources import SourceFiles, check_pairs, natural_key, opened
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.progress import progress

PICTURE = r"(?:png|jpe?g|tiff?|bmp)"
IMAGES = r"(?:images?|original|etis-laribpolypdb)"
MASKS = r"(?:masks?|ground[ _]?truth|gt)"
KEEP = rf"metadata\.csv|(?:{IMAGES}|{MASKS})/[^/]+\.{PICTURE}"
PARTS = ("images", "masks", "original", "ground truth", "groundtruth", "gt", "etis-laribpolypdb")
N_FOLDS = 5
SIZES = (32, 4096)  # smallest and largest --size: below, nnU-Net has little to pool; above, no endoscope films
KVASIR_SPLITS = {"all": 0, "last200": 200}
CLINICDB_SPLITS = {"all": 0, "last6sequences": 6}
# First frame of each of ClinicDB's 29 sequences. From a public converter of the set (dataset-ninja/cvc-612), not verified
# against the original; a metadata.csv beside the images is read instead.
SEQUENCE_STARTS = (
    1,
    26,
    51,
    68,
    79,
    104,
    127,
    152,
    178,
    200,
    206,
    228,
    253,
    278,
    298,
    318,
    343,
    364,
    384,
    409,
    429,
    448,
    467,
    479,
    504,
    529,
    547,
    572,
    592,
)


def find_pairs(
    source: str | Path, set_name: str, name: str = r"([^/]+)", missing: list[str] | None = None
) -> list[tuple[str, Path, Path]]:
    """Images with their masks, as (published name, image, mask) in natural order.

    name: regular expression of an image's name without its ending, with one group. missing: see `sources.check_pairs`.
    Raises KDError if there are none, or one lacks its partner.
    """
    files = SourceFiles(Path(source))
    images, masks = files.find(rf"{IMAGES}/{name}\.{PICTURE}"), files.find(rf"{MASKS}/p?{name}\.{PICTURE}")
    expected = f"a folder of images and a folder of masks with the same names ({set_name}: see docs/datasets.md)"
    paired = check_pairs(source, images, masks, f"images of {set_name}", "mask", expected, missing)
    return [(key[0], images[key], masks[key]) for key in paired]


def convert_kvasir_seg(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    split: str = "all",
    size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "KvasirSEG",
) -> ConversionReport:
    """Write Kvasir-SEG as an nnU-Net dataset. split: "all" (all in imagesTr) or "last200" (the last 200 names, sorted, in
    imagesTs). size: (width, height) to resize all to, in pixels. Raises KDError for what is wrong with the source or the
    target."""
    check_choice("split", split, KVASIR_SPLITS, of="Kvasir-SEG")
    missing = [] if allow_missing else None

    def cases(root: Path) -> list[FundusCase]:
        pairs = find_pairs(root, "Kvasir-SEG", missing=missing)
        # a name without its partner keeps its place, so that no other one changes its part
        names = sorted({*(n for n, *_ in pairs), *(m.lower() for m in missing or ())}, key=natural_key)
        train = set(names[: max(0, len(names) - KVASIR_SPLITS[split])])
        if not any(n in train for n, *_ in pairs):
            raise KDError(f"{source} holds {len(pairs)} images, of which the last 200 are for testing: use --split all")
        return [FundusCase(f"Kvasir_{n}", i, m, tag="Tr" if n in train else "Ts") for n, i, m in pairs]

    return write_polyps(
        cases,
        {"set": "kvasir_seg", "split": split},
        (source, raw, preprocessed, dataset_id, size, overwrite, name, missing),
        published=(1000, None),
        licence="see the site",
        reference="Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MultiMedia Modeling 2020",
    )


def convert_cvc_clinicdb(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    split: str = "all",
    size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "CVCClinicDB",
) -> ConversionReport:
    """Write CVC-ClinicDB as an nnU-Net dataset; frames of one video sequence are alike and never parted.

    split: "all" (all in imagesTr) or "last6sequences" (sequences 24 to 29, a fifth of the frames, in imagesTs).
    size: (width, height) to resize all to, in pixels. `splits_final.json` has five folds by sequence. Cases are named
    ClinicDB_s01_001 by sequence and frame. Raises KDError for what is wrong with the source or the target.
    """
    check_choice("split", split, CLINICDB_SPLITS, of="CVC-ClinicDB")
    missing = [] if allow_missing else None

    def cases(root: Path) -> list[FundusCase]:
        pairs = find_pairs(root, "CVC-ClinicDB", r"(\d+)", missing)
        sequence = sequences(root)
        unknown = [n for n, *_ in pairs if int(n) not in sequence]
        if unknown:
            raise KDError(f"frame {unknown[0]} of CVC-ClinicDB in {source} belongs to no known sequence: frames are 1 to 612")
        if missing is not None:  # frames without any file too
            missing[:] = [f"{n:03d}" for n in sequence if n not in {int(n) for n, *_ in pairs}]
        last = sorted(set(sequence.values()))
        test = set(last[len(last) - CLINICDB_SPLITS[split] :])
        return [
            FundusCase(f"ClinicDB_s{sequence[int(n)]:02d}_{int(n):03d}", i, m, tag="Ts" if sequence[int(n)] in test else "Tr")
            for n, i, m in pairs
        ]

    return write_polyps(
        cases,
        {"set": "cvc_clinicdb", "split": split},
        (source, raw, preprocessed, dataset_id, size, overwrite, name, missing),
        published=(612, (288, 384)),
        licence="see the site",
        reference="Bernal et al., WM-DOVA maps for accurate polyp highlighting in colonoscopy, Computerized Medical Imaging "
        "and Graphics 2015",
        group=lambda case: case.split("_")[1],
    )


def convert_etis(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "ETIS",
) -> ConversionReport:
    """Write ETIS-Larib as an nnU-Net dataset, all in imagesTr. size: (width, height) to resize all to, in pixels. Raises
    KDError for what is wrong with the source or the target."""
    missing = [] if allow_missing else None
    return write_polyps(
        lambda root: [FundusCase(f"ETIS_{int(n):03d}", i, m) for n, i, m in find_pairs(root, "ETIS-Larib", r"(\d+)", missing)],
        {"set": "etis"},
        (source, raw, preprocessed, dataset_id, size, overwrite, name, missing),
        published=(196, (966, 1225)),
        licence="see the site",
        reference="Silva et al., Toward embedded detection of polyps in WCE images for early diagnosis of colorectal cancer, "
        "International Journal of Computer Assisted Radiology and Surgery 2014",
    )


def sequences(root: Path) -> dict[int, int]:
    """Frame number -> sequence of CVC-ClinicDB, from metadata.csv (frame_id, sequence_id) if there is one, else as known.

    Raises KDError for a metadata.csv without these columns.
    """
    tables = list(SourceFiles(root).find(r"metadata\.csv").values())
    if not tables:
        ends = (*SEQUENCE_STARTS[1:], 613)
        return {f: k for k, (a, b) in enumerate(zip(SEQUENCE_STARTS, ends, strict=True), start=1) for f in range(a, b)}
    try:
        with open(tables[0], newline="", encoding="utf-8-sig") as file:
            return {int(row["frame_id"]): int(row["sequence_id"]) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError) as e:
        raise KDError(f"{tables[0]} lacks numbers in frame_id or sequence_id ({e}): mend it or move it away") from e


def resize(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image, uint8 (H, W, 3), and label, bool (H, W), at `size` (width, height); the aspect ratio is the given one.

    The image is antialiased. The label is 1 where it covers at least half of a new pixel's area. Measured on every third
    mask of Kvasir-SEG and CVC-ClinicDB, 256 to 128 pixels and back, against the one before: mean Dice 0.988 and 0.982 (worst
    0.935, 0.940), nearest neighbour 0.986 and 0.978 (worst 0.923, 0.914). The price: 1.5% and 2.4% more area, as a tie counts.
    """
    shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    # HAMMING is the sharpest of Pillow's filters without negative lobes, but made for shrinking only.
    smooth = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    covered = Image.fromarray(label.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(Image.fromarray(image).resize(size, smooth)), np.asarray(covered) >= 0.5


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None and not all(SIZES[0] <= side <= SIZES[1] for side in size):
        raise KDError(
            f"--size {size[0]} {size[1]} (width, height) is not between {SIZES[0]} and {SIZES[1]} pixels: 256 256 is usual, "
            "384 288 is CVC-ClinicDB's own"
        )


def write_polyps(
    find: Callable[[Path], Sequence[FundusCase]],
    settings: dict,
    arguments: tuple,
    published: tuple[int | Callable[[Sequence[FundusCase]], int], tuple[int, int] | None],
    licence: str,
    reference: str,
    group: Callable[[str], str] | None = None,
    keep: str = KEEP,
    parts: Sequence[str] = PARTS,
    negatives: bool = False,
) -> ConversionReport:
    """Write a set of endoscopic images with one mask each; `find` names its cases, given the folder with the files.

    arguments: source, raw, preprocessed, dataset_id, size, overwrite and name, as the converters take them, and a list that
    `find` fills with the names of cases left out (None: all have to be there). published: number of cases (or a function of
    those found), and (height, width) where all have one. group: what folds must not part, by case name. keep, parts: see
    `opened`. negatives: whether an empty mask is an image without a polyp; else it is a damaged file. Raises KDError for what
    is wrong with the source or the target.
    """
    source, raw, preprocessed, dataset_id, size, overwrite, name, missing = arguments
    _check_size(size)
    with opened(source, raw, keep, parts) as root:
        cases = find(root)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, label_ground="image", missing_cases=missing)
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            log, marked, pixels, empty, lost = {}, 0, 0, 0, []
            for case in progress(cases, report.dataset, leave=True):
                image, label = read_rgb(case.image), read_binary(case.label)
                if label.shape != image.shape[:2]:
                    raise KDError(
                        f"{case.label} is {label.shape[1]}x{label.shape[0]} pixels, its image {case.image.name} "
                        f"{image.shape[1]}x{image.shape[0]}: a resized copy, download the published set"
                    )
                without_polyp = not label.any()
                if without_polyp and not negatives:
                    raise KDError(f"{case.label} is empty (no pixel >= 128): the file is damaged, download it again")
                native = label.shape
                report.native_sizes[native[::-1]] = report.native_sizes.get(native[::-1], 0) + 1
                if size:
                    image, label = resize(image, label, size)
                    lost += [] if without_polyp or label.any() else [case.name]
                empty += without_polyp
                write_case(folder, case.name, image, label, tag=case.tag)
                report.canvas_sizes[label.shape[::-1]] = report.canvas_sizes.get(label.shape[::-1], 0) + 1
                marked, pixels = marked + int(label.sum()), pixels + label.size
                log[case.name] = {
                    "part": f"images{case.tag}",
                    "source": {"image": os.path.relpath(case.image, root), "label": os.path.relpath(case.label, root)},
                    "native_size": native,
                    **({"written_size": label.shape} if size else {}),
                }
            if not marked:
                raise KDError(f"no mask in {source} marks anything (no pixel >= 128): masks must be 0 and 255, not 0 and 1")
            report.train_cases = [c.name for c in cases if c.tag == "Tr"]
            report.test_cases = [c.name for c in cases if c.tag == "Ts"]
            report.label_values, report.label_fraction = [0, 1], marked / pixels
            n_published = published[0](cases) if callable(published[0]) else published[0]
            _warn(report, len(cases), n_published, published[1])
            if empty:
                report.rows.append(("negatives", f"{empty} cases without a polyp (their mask is empty)"))
            if lost:
                report.warnings.append(f"{len(lost)} polyp(s) are too small to be seen at this --size, the first {lost[0]}")
            write_dataset_json(
                folder,
                ["red", "green", "blue"],
                ["polyp"],
                len(report.train_cases),
                name=report.dataset,
                licence=licence,
                reference=reference,
                description="Endoscopy, polyps",
                missing_cases=report.missing_cases,
            )
            known = {"cases": n_published, **({"native_size": published[1]} if published[1] else {})}
            content = {
                "dataset": report.dataset,
                "settings": {**settings, **({"size": size} if size else {}), "source": str(source)},
                "published": known,
                "cases": log,
            }
            write_json(folder / "conversion.json", content)
            folds = folds_of_cases(report.train_cases, group, N_FOLDS) if group else []
            if len(folds) == N_FOLDS:
                write_splits(preprocessed, report.dataset, folds, overwrite)
                report.folds = N_FOLDS
    return report


def _warn(report: ConversionReport, n_found: int, n_published: int, size: tuple[int, int] | None) -> None:
    if n_found + len(report.missing_cases or ()) != n_published:
        report.warnings.append(f"{n_published} images are published, found {n_found}")
    if size and set(report.native_sizes) != {size[::-1]}:
        others = ", ".join(f"{w}x{h}" for w, h in sorted(set(report.native_sizes) - {size[::-1]})[:3])
        report.warnings.append(
            f"images are published with {size[1]}x{size[0]} pixels, found {others}: a resized copy; download the published set"
        )
