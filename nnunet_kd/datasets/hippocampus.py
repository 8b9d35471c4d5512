"""Hippocampus of the Medical Segmentation Decathlon (Task04; Antonelli et al., Nature Communications 2022): 260 small
MR volumes with the anterior and the posterior part marked.

Published layout: `Task04_Hippocampus/{dataset.json,imagesTr/hippocampus_001.nii.gz,labelsTr/hippocampus_001.nii.gz}`, ids
with gaps; `imagesTs` has no labels and is not used. `._*` files beside them are left over from the archive's making on
macOS. Licence CC BY-SA 4.0.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_kd.datasets.nnunet_format import (
    ConversionReport,
    dataset_folder,
    free_dataset_folder,
    new_dataset_folder,
    write_dataset_json,
)
from nnunet_kd.errors import KDError
from nnunet_kd.files import write_json

LABELS = ("Anterior", "Posterior")  # values 1 and 2
N_TEST = 60  # the last ids, by number
N_PUBLISHED = 260
GEOMETRY_TOLERANCE = 1e-3  # mm, and of the direction cosines: NIfTI keeps them in single precision
FIX = "unpack Task04_Hippocampus.tar of the Medical Segmentation Decathlon again and give the folder Task04_Hippocampus"


@dataclass(frozen=True)
class VolumeCase:
    """Source files of one case. `tag` is "Tr" or "Ts"."""

    name: str
    image: Path
    label: Path
    tag: str


def find_cases(source: str | Path) -> list[VolumeCase]:
    """The labelled cases, named as published and sorted by number; the last 60 have tag "Ts".

    The published dataset.json says which there are. Raises KDError if it is missing or of another task, if a listed
    volume or label is missing or another one is there, and if not more than 60 are labelled.
    """
    source = Path(source).expanduser()
    listed = _listed(source)
    for part in ("imagesTr", "labelsTr"):
        # not ._hippocampus_001.nii.gz, which the archive brings along
        files = {p.name for p in source.glob(f"{part}/*.nii.gz") if not p.name.startswith(".")}
        wrong = sorted(files ^ {f"{name}.nii.gz" for name in listed}, key=_number)
        if wrong:
            state = "has" if wrong[0] in files else "lacks"
            raise KDError(
                f"{source / part} {state} {wrong[0]}, against dataset.json's list ({len(files)} of {len(listed)} files): {FIX}"
            )
    if len(listed) <= N_TEST:
        raise KDError(f"{source} holds {len(listed)} labelled volumes, of which the last {N_TEST} are for testing: {FIX}")
    return [
        VolumeCase(
            name,
            source / "imagesTr" / f"{name}.nii.gz",
            source / "labelsTr" / f"{name}.nii.gz",
            tag="Tr" if i < len(listed) - N_TEST else "Ts",
        )
        for i, name in enumerate(listed)
    ]


def convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    overwrite: bool = False,
    name: str = "Hippocampus",
) -> ConversionReport:
    """Write the Hippocampus set as an nnU-Net dataset: the last 60 ids in imagesTs and labelsTs, the others in imagesTr
    and labelsTr. Cross-validation folds are left to nnU-Net.

    Images are copied as they are. Labels are written as uint8 with their image's geometry. Raises KDError for what is
    wrong with the source (see `find_cases` and `_read_case`) or the target folders.
    """
    cases = find_cases(source)
    target = free_dataset_folder(raw, dataset_id, name, overwrite)
    planned = dataset_folder(preprocessed, dataset_id, name)
    report = ConversionReport(target.name, target, label_ground="volume")
    if len(cases) != N_PUBLISHED:
        report.warnings.append(f"{N_PUBLISHED} labelled volumes are published, dataset.json lists {len(cases)}")
    if (planned / "dataset_fingerprint.json").exists():
        report.warnings.append(f"{planned} was planned before: run nnUNetv2_plan_and_preprocess with --clean")
    with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
        log, sizes, values, marked, voxels = {}, Counter(), set(), 0, 0
        for case in cases:
            image, label = _read_case(case)
            array = SimpleITK.GetArrayViewFromImage(label)
            sizes[image.GetSize()] += 1
            values |= set(np.unique(array).tolist())
            marked, voxels = marked + int((array > 0).sum()), voxels + array.size
            _write_case(folder, case, label)
            log[case.name] = {
                "part": f"images{case.tag}",
                "source": {"image": str(case.image), "label": str(case.label)},
                "size": image.GetSize(),
                "spacing": image.GetSpacing(),
            }
        report.train_cases = [c.name for c in cases if c.tag == "Tr"]
        report.test_cases = [c.name for c in cases if c.tag == "Ts"]
        report.native_sizes = report.canvas_sizes = dict(sizes)
        report.label_values, report.label_fraction = sorted(values), marked / voxels
        write_dataset_json(
            folder,
            ["MRI"],
            LABELS,
            len(report.train_cases),
            name=report.dataset,
            licence="CC BY-SA 4.0",
            reference="Medical Segmentation Decathlon, Task04 (Vanderbilt University Medical Center); Antonelli et al., The "
            "Medical Segmentation Decathlon, Nature Communications 2022",
            description="Hippocampus in MR, anterior and posterior part",
            file_ending=".nii.gz",
        )
        settings = {"set": "hippocampus", "test": f"the last {N_TEST} ids"}
        write_json(folder / "conversion.json", {"dataset": report.dataset, "settings": settings, "cases": log})
    return report


def _listed(source: Path) -> list[str]:
    """Case names in the published dataset.json, sorted by number."""
    file = source / "dataset.json"
    if not file.is_file():
        raise KDError(f"{file} is missing: {FIX}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = [Path(pair["image"]).name.removesuffix(".nii.gz") for pair in content["training"]]
        labels = {int(value): label.lower() for value, label in content["labels"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise KDError(f"{file} is not the Decathlon's dataset.json ({type(e).__name__}: {e}): {FIX}") from e
    if labels != {0: "background", 1: "anterior", 2: "posterior"} or not all(_number(n) for n in names):
        raise KDError(f"{file} describes another task (labels {', '.join(map(str, labels.values()))}): {FIX}")
    return sorted(set(names), key=_number)


def _number(name: str) -> tuple[int, str]:
    """Sorting key: hippocampus_9 before hippocampus_10. Falsy for what is no case."""
    found = re.fullmatch(r"hippocampus_(\d+)(?:\.nii\.gz)?", name)
    return (int(found[1]), name) if found else ()


def _read_case(case: VolumeCase) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """Image, and label as uint8 with the image's geometry.

    Raises KDError if a file cannot be read to its end, if image and label are not 3-D volumes of one size and place, and
    if the label holds no foreground or values other than 0, 1 and 2.
    """
    image, label = _read(case.image), _read(case.label)
    if image.GetDimension() != 3 or image.GetSize() != label.GetSize():
        raise KDError(f"{case.label} is {_size(label)} voxels, its image {_size(image)}: {FIX}")
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        ours, theirs = getattr(label, what)(), getattr(image, what)()
        if not np.allclose(ours, theirs, rtol=0, atol=GEOMETRY_TOLERANCE):
            raise KDError(f"{case.label} lies elsewhere than its image ({what[3:].lower()} {ours} against {theirs}): {FIX}")
    values = np.unique(SimpleITK.GetArrayViewFromImage(label)).tolist()
    if not set(values) <= {0, 1, 2} or values == [0]:
        raise KDError(f"{case.label} holds the values {values[:6]}, expected 0, 1 and 2: {FIX}")
    label = SimpleITK.Cast(label, SimpleITK.sitkUInt8)
    label.CopyInformation(image)
    return image, label


def _read(path: Path) -> SimpleITK.Image:
    try:
        # SimpleITK fills up a truncated file with zeros and says nothing; gzip checks length and checksum
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
        return SimpleITK.ReadImage(str(path))
    except (OSError, EOFError, zlib.error, RuntimeError) as e:
        raise KDError(f"cannot read {path} ({' '.join(str(e).split())[-160:]}): {FIX}") from e


def _size(image: SimpleITK.Image) -> str:
    return "x".join(map(str, image.GetSize()))


def _write_case(folder: Path, case: VolumeCase, label: SimpleITK.Image) -> None:
    """Write a case and read it back: a full disk shows here."""
    image_file = folder / f"images{case.tag}" / f"{case.name}_0000.nii.gz"
    label_file = folder / f"labels{case.tag}" / f"{case.name}.nii.gz"
    for file in (image_file, label_file):
        file.parent.mkdir(exist_ok=True)
    shutil.copyfile(case.image, image_file)
    SimpleITK.WriteImage(label, str(label_file), useCompression=True)
    written = _read(label_file)
    same = np.array_equal(SimpleITK.GetArrayViewFromImage(written), SimpleITK.GetArrayViewFromImage(label))
    if not same or image_file.stat().st_size != case.image.stat().st_size:
        raise KDError(f"{case.name} in {folder} was not written as it should be: is the disk full? Convert again")
