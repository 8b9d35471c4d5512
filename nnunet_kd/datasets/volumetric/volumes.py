"""3-D sets as nnU-Net datasets: reading volumes to their end, labels on their image's grid, writing and checking."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_kd.datasets.nnunet_format import ConversionReport, check_choice, write_dataset_json
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import check_gzip, write_json
from nnunet_kd.utils.progress import progress

GEOMETRY_TOLERANCE = 1e-3  # mm, and of the direction cosines: NIfTI keeps them in single precision
CHANNELS = {"modality": None, "zscore": "intensity"}  # nnU-Net knows "CT"; any other name means z-scores


@dataclass(frozen=True)
class VolumeCase:
    """Source of one case: files (`image`, `label`), or folders of slices. `tag` is "Tr" or "Ts"."""

    name: str
    image: Path
    label: Path
    tag: str = "Tr"


def convert_volumes(
    folder: Path,
    cases: Sequence[VolumeCase],
    report: ConversionReport,
    read: Callable[[VolumeCase], tuple[SimpleITK.Image, SimpleITK.Image]],
    *,
    root: Path,
    channel: str,
    labels: Sequence[str],
    settings: Mapping[str, object],
    published_cases: int,
    licence: str,
    reference: str,
    description: str,
) -> None:
    """Write all cases, dataset.json and conversion.json into `folder` and fill in `report`.

    read: image and label (uint8, final values, on the image's grid) of a case; raises KDError for what is wrong with it.
    An image that is a .nii.gz file is copied as it is. labels: foreground names, values 1, 2, ... published_cases:
    another number is a warning. root: the source folder, for the log.
    """
    log, sizes, values, marked, voxels = {}, Counter(), set(), 0, 0
    for case in progress(cases, report.dataset, leave=True):
        image, label = read(case)
        counts = label_counts(SimpleITK.GetArrayViewFromImage(label))
        sizes[image.GetSize()] += 1
        values |= set(counts)
        marked, voxels = marked + sum(n for v, n in counts.items() if v), voxels + sum(counts.values())
        write_volume_case(folder, case, image, label)
        log[case.name] = {
            "part": f"images{case.tag}",
            "source": {k: os.path.relpath(p, root) for k, p in (("image", case.image), ("label", case.label))},
            "size": image.GetSize(),
            "spacing": image.GetSpacing(),
        }
    report.train_cases = [c.name for c in cases if c.tag == "Tr"]
    report.test_cases = [c.name for c in cases if c.tag == "Ts"]
    report.native_sizes = report.canvas_sizes = dict(sizes)
    report.label_values, report.label_fraction, report.label_ground = sorted(values), marked / voxels, "volume"
    if len(cases) + len(report.missing_cases or ()) != published_cases:
        report.warnings.append(f"{published_cases} labelled volumes are published, found {len(cases)}")
    write_dataset_json(
        folder,
        [channel],
        labels,
        len(report.train_cases),
        name=report.dataset,
        licence=licence,
        reference=reference,
        description=description,
        file_ending=".nii.gz",
        missing_cases=report.missing_cases,
    )
    content = {"dataset": report.dataset, "settings": dict(settings), "published": {"cases": published_cases}, "cases": log}
    write_json(folder / "conversion.json", content)


def channel_name(modality: str, normalisation: str) -> str:
    """nnU-Net's channel name for "modality" ("CT" is clipped and scaled by the set's statistics) or "zscore".

    Raises KDError for another word.
    """
    check_choice("normalisation", normalisation, CHANNELS)
    return CHANNELS[normalisation] or modality


def read_volume(path: Path, fix: str) -> SimpleITK.Image:
    """A NIfTI file. Raises KDError, ending with `fix`, if it cannot be read to its end: SimpleITK fills up a truncated
    file with zeros and says nothing."""
    try:
        if path.name.lower().endswith(".gz"):
            check_gzip(path)
        else:
            _check_length(path)
        return SimpleITK.ReadImage(str(path))
    except (OSError, EOFError, zlib.error, RuntimeError, struct.error) as e:
        raise KDError(f"cannot read {path} ({' '.join(str(e).split())[-160:]}): {fix}") from e


def _check_length(path: Path) -> None:
    """Raises OSError if a .nii file is shorter than its header says (NIfTI-1: dim at byte 40, bitpix 72, vox_offset 108)."""
    with open(path, "rb") as file:
        header = file.read(348)
    order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
    dim, bits = struct.unpack_from(f"{order}8h", header, 40), struct.unpack_from(f"{order}h", header, 72)[0]
    start = struct.unpack_from(f"{order}f", header, 108)[0]
    needed = int(start) + int(np.prod([max(d, 1) for d in dim[1 : 1 + min(dim[0], 7)]], dtype=np.int64)) * bits // 8
    if path.stat().st_size < needed:
        raise OSError(f"file ends after {path.stat().st_size} of {needed} bytes")


def on_image_grid(label: SimpleITK.Image, image: SimpleITK.Image, values: Mapping[int, int]) -> SimpleITK.Image:
    """The label as uint8 with its values mapped and the image's geometry, whatever its own header says.

    values: published value -> value to write. Raises ValueError if a value is not in `values`.
    """
    array = SimpleITK.GetArrayViewFromImage(label)
    counts = label_counts(array)
    unknown = sorted(set(counts) - set(values))
    if unknown:
        raise ValueError(f"holds the values {unknown[:6]}, expected {sorted(values)}")
    mapped = np.zeros(array.shape, np.uint8)
    for old, new in values.items():
        if new:
            mapped[array == old] = new
    done = SimpleITK.GetImageFromArray(mapped)
    done.CopyInformation(image)
    return done


def label_counts(array: np.ndarray) -> dict[int | float, int]:
    """How often every value occurs, slice by slice: np.unique would sort half a gigabyte."""
    counts: Counter = Counter()
    for part in array:
        if part.dtype == np.uint8:
            histogram = np.bincount(part.ravel(), minlength=256)
            counts.update({v: int(histogram[v]) for v in np.flatnonzero(histogram).tolist()})
        else:
            values, numbers = np.unique(part, return_counts=True)
            counts.update({int(v) if float(v).is_integer() else float(v): int(n) for v, n in zip(values, numbers, strict=True)})
    return dict(counts)


def elsewhere(a: SimpleITK.Image, b: SimpleITK.Image) -> str | None:
    """How the place of two images of one size differs, in words; None if it does not."""
    for what in ("Spacing", "Origin", "Direction"):
        ours, theirs = getattr(a, f"Get{what}")(), getattr(b, f"Get{what}")()
        if not np.allclose(ours, theirs, rtol=0, atol=GEOMETRY_TOLERANCE):
            return f"{what.lower()} {ours} against {theirs}"
    return None


def size_text(image: SimpleITK.Image) -> str:
    """The size (x, y, z), as SimpleITK counts: "512x512x74"."""
    return "x".join(map(str, image.GetSize()))


def write_volume_case(folder: Path, case: VolumeCase, image: SimpleITK.Image, label: SimpleITK.Image) -> None:
    """Write a case and read it back: a full disk shows here."""
    image_file = folder / f"images{case.tag}" / f"{case.name}_0000.nii.gz"
    label_file = folder / f"labels{case.tag}" / f"{case.name}.nii.gz"
    for file in (image_file, label_file):
        file.parent.mkdir(exist_ok=True)
    damaged = KDError(f"{case.name} in {folder} was not written as it should be: is the disk full? Convert again")
    try:
        if case.image.name.lower().endswith(".nii.gz"):
            shutil.copyfile(case.image, image_file)
        else:
            SimpleITK.WriteImage(image, str(image_file), useCompression=True)
            read_volume(image_file, "")
        SimpleITK.WriteImage(label, str(label_file), useCompression=True)
        written = read_volume(label_file, "")
    except RuntimeError as e:
        raise damaged from e
    if not np.array_equal(SimpleITK.GetArrayViewFromImage(written), SimpleITK.GetArrayViewFromImage(label)):
        raise damaged
