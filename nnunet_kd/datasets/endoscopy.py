"""Polyps in endoscopy: Kvasir-SEG (Jha et al., MMM 2020), CVC-ClinicDB (Bernal et al., CMIG 2015) and ETIS-Larib (Silva et
al., IJCARS 2014). Colour images become RGB PNG files of their own size; masks are thresholded at 128 of 255.

Published layouts: Kvasir-SEG `images/NAME.jpg`, `masks/NAME.jpg`; CVC-ClinicDB `Original/1.tif`, `Ground Truth/1.tif`, or
PNG copies of both, with a metadata.csv; ETIS-Larib not seen by us: two folders of numbered images and masks, masks named
1 or p1, any picture format. Cameras differ in size and frame; unlike eye photographs they have no common scale to restore.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

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
from nnunet_kd.datasets.sources import SourceFiles, check_pairs, opened
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.progress import progress

PICTURE = r"(?:png|jpe?g|tiff?|bmp)"
IMAGES = r"(?:images?|original|etis-laribpolypdb)"
MASKS = r"(?:masks?|ground[ _]?truth|gt)"
KEEP = rf"metadata\.csv|(?:{IMAGES}|{MASKS})/[^/]+\.{PICTURE}"
PARTS = ("images", "masks", "original", "ground truth", "groundtruth", "gt", "etis-laribpolypdb")
N_FOLDS = 5
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


def find_pairs(source: str | Path, set_name: str, name: str = r"([^/]+)") -> list[tuple[str, Path, Path]]:
    """Images with their masks, as (published name, image, mask) in natural order.

    name: regular expression of an image's name without its ending, with one group. Raises KDError if there are none, or
    one lacks its partner.
    """
    files = SourceFiles(Path(source))
    images, masks = files.find(rf"{IMAGES}/{name}\.{PICTURE}"), files.find(rf"{MASKS}/p?{name}\.{PICTURE}")
    expected = f"a folder of images and a folder of masks with the same names ({set_name}: see docs/datasets.md)"
    check_pairs(source, images, masks, f"images of {set_name}", "mask", expected)
    return [(key[0], images[key], masks[key]) for key in images]


def convert_kvasir_seg(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    split: str = "all",
    overwrite: bool = False,
    name: str = "KvasirSEG",
) -> ConversionReport:
    """Write Kvasir-SEG as an nnU-Net dataset. split: "all" (all in imagesTr) or "last200" (the last 200 names, sorted, in
    imagesTs). Raises KDError for what is wrong with the source or the target."""
    check_choice("split", split, KVASIR_SPLITS, of="Kvasir-SEG")

    def cases(root: Path) -> list[FundusCase]:
        found = find_pairs(root, "Kvasir-SEG")
        first_test = len(found) - KVASIR_SPLITS[split]
        if first_test < 1:
            raise KDError(f"{source} holds {len(found)} images, of which the last 200 are for testing: use --split all")
        return [FundusCase(f"Kvasir_{n}", i, m, tag="Tr" if k < first_test else "Ts") for k, (n, i, m) in enumerate(found)]

    return _convert(
        cases,
        {"set": "kvasir_seg", "split": split},
        (source, raw, preprocessed, dataset_id, overwrite, name),
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
    overwrite: bool = False,
    name: str = "CVCClinicDB",
) -> ConversionReport:
    """Write CVC-ClinicDB as an nnU-Net dataset; frames of one video sequence are alike and never parted.

    split: "all" (all in imagesTr) or "last6sequences" (sequences 24 to 29, a fifth of the frames, in imagesTs).
    `splits_final.json` has five folds by sequence. Cases are named ClinicDB_s01_001 by sequence and frame. Raises KDError
    for what is wrong with the source or the target.
    """
    check_choice("split", split, CLINICDB_SPLITS, of="CVC-ClinicDB")

    def cases(root: Path) -> list[FundusCase]:
        found = find_pairs(root, "CVC-ClinicDB", r"(\d+)")
        sequence = sequences(root)
        missing = [n for n, *_ in found if int(n) not in sequence]
        if missing:
            raise KDError(f"frame {missing[0]} of CVC-ClinicDB in {source} belongs to no known sequence: frames are 1 to 612")
        last = sorted(set(sequence.values()))
        test = set(last[len(last) - CLINICDB_SPLITS[split] :])
        return [
            FundusCase(f"ClinicDB_s{sequence[int(n)]:02d}_{int(n):03d}", i, m, tag="Ts" if sequence[int(n)] in test else "Tr")
            for n, i, m in found
        ]

    return _convert(
        cases,
        {"set": "cvc_clinicdb", "split": split},
        (source, raw, preprocessed, dataset_id, overwrite, name),
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
    overwrite: bool = False,
    name: str = "ETIS",
) -> ConversionReport:
    """Write ETIS-Larib as an nnU-Net dataset, all in imagesTr. Raises KDError for what is wrong with the source or the
    target."""
    return _convert(
        lambda root: [FundusCase(f"ETIS_{int(n):03d}", i, m) for n, i, m in find_pairs(root, "ETIS-Larib", r"(\d+)")],
        {"set": "etis"},
        (source, raw, preprocessed, dataset_id, overwrite, name),
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


def _convert(
    find: Callable[[Path], Sequence[FundusCase]],
    settings: dict,
    arguments: tuple,
    published: tuple[int, tuple[int, int] | None],
    licence: str,
    reference: str,
    group: Callable[[str], str] | None = None,
) -> ConversionReport:
    """published: number of cases, and (height, width) where all have one. group: what folds must not part, by case name."""
    source, raw, preprocessed, dataset_id, overwrite, name = arguments
    with opened(source, raw, KEEP, PARTS) as root:
        cases = find(root)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, label_ground="image")
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            log, marked, pixels = {}, 0, 0
            for case in progress(cases, report.dataset, leave=True):
                image, label = read_rgb(case.image), read_binary(case.label)
                if label.shape != image.shape[:2]:
                    raise KDError(
                        f"{case.label} is {label.shape[1]}x{label.shape[0]} pixels, its image {case.image.name} "
                        f"{image.shape[1]}x{image.shape[0]}: a resized copy, download the published set"
                    )
                if not label.any():
                    raise KDError(f"{case.label} is empty (no pixel >= 128): the file is damaged, download it again")
                write_case(folder, case.name, image, label, tag=case.tag)
                size = label.shape[::-1]
                report.native_sizes[size] = report.native_sizes.get(size, 0) + 1
                marked, pixels = marked + int(label.sum()), pixels + label.size
                log[case.name] = {
                    "part": f"images{case.tag}",
                    "source": {"image": os.path.relpath(case.image, root), "label": os.path.relpath(case.label, root)},
                    "native_size": label.shape,
                }
            report.train_cases = [c.name for c in cases if c.tag == "Tr"]
            report.test_cases = [c.name for c in cases if c.tag == "Ts"]
            report.canvas_sizes, report.label_values, report.label_fraction = report.native_sizes, [0, 1], marked / pixels
            _warn(report, len(cases), *published)
            write_dataset_json(
                folder,
                ["red", "green", "blue"],
                ["polyp"],
                len(report.train_cases),
                name=report.dataset,
                licence=licence,
                reference=reference,
                description="Endoscopy, polyps",
            )
            known = {"cases": published[0], **({"native_size": published[1]} if published[1] else {})}
            content = {
                "dataset": report.dataset,
                "settings": {**settings, "source": str(source)},
                "published": known,
                "cases": log,
            }
            write_json(folder / "conversion.json", content)
            folds = folds_of_cases(report.train_cases, group, N_FOLDS) if group else []
            if len(folds) == N_FOLDS:
                write_splits(preprocessed, report.dataset, folds, overwrite)
                report.folds = N_FOLDS
    return report


def _warn(report: ConversionReport, found: int, n: int, size: tuple[int, int] | None) -> None:
    if found != n:
        report.warnings.append(f"{n} images are published, found {found}")
    if size and set(report.native_sizes) != {size[::-1]}:
        others = ", ".join(f"{w}x{h}" for w, h in sorted(set(report.native_sizes) - {size[::-1]})[:3])
        report.warnings.append(
            f"images are published with {size[1]}x{size[0]} pixels, found {others}: a resized copy; download the published set"
        )
