"""Hippocampus of the Medical Segmentation Decathlon (Task04; Antonelli et al., Nature Communications 2022): 260 small
MR volumes with the anterior and the posterior part marked.

Published layout: `Task04_Hippocampus/{dataset.json,imagesTr/hippocampus_001.nii.gz,labelsTr/hippocampus_001.nii.gz}`, ids
with gaps; `imagesTs` has no labels and is not used. `._*` files beside them are left over from the archive's making on
macOS. Licence CC BY-SA 4.0.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_kd.datasets.nnunet_format import ConversionReport, new_dataset_folder, new_report
from nnunet_kd.datasets.sources import ALLOW_MISSING, SourceFiles, opened
from nnunet_kd.datasets.volumetric.volumes import VolumeCase, convert_volumes, elsewhere, on_image_grid, read_volume, size_text
from nnunet_kd.utils.errors import KDError

LABELS = ("Anterior", "Posterior")  # values 1 and 2
N_TEST = 60  # the last ids, by number
N_PUBLISHED = 260
KEEP = r"dataset\.json|(?:images|labels)tr/hippocampus_\d+\.nii\.gz"
FIX = "unpack Task04_Hippocampus.tar of the Medical Segmentation Decathlon again and give the folder Task04_Hippocampus"


def find_cases(source: str | Path, missing: list[str] | None = None) -> list[VolumeCase]:
    """The labelled cases, named as published and sorted by number; the last 60 have tag "Ts".

    The published dataset.json says which there are. missing: see `sources.check_listed`. Raises KDError if it is missing or
    of another task, if a listed volume or label is missing or another one is there, and if not more than 60 are labelled.
    """
    source = Path(source).expanduser()
    listed, absent = _listed(source), set()
    for part in ("imagesTr", "labelsTr"):
        # not ._hippocampus_001.nii.gz, which the archive brings along
        files = {p.name for p in source.glob(f"{part}/*.nii.gz") if not p.name.startswith(".")}
        wrong = sorted(files ^ {f"{name}.nii.gz" for name in listed}, key=_number)
        surplus = [name for name in wrong if name in files]
        if surplus or (wrong and missing is None):
            state = "has" if wrong[0] in files else "lacks"
            raise KDError(
                f"{source / part} {state} {wrong[0]}, against dataset.json's list ({len(files)} of {len(listed)} files): {FIX}"
                + ("" if surplus else f", {ALLOW_MISSING}")
            )
        absent |= {name.removesuffix(".nii.gz") for name in wrong}
    if len(listed) <= N_TEST:
        raise KDError(f"{source} holds {len(listed)} labelled volumes, of which the last {N_TEST} are for testing: {FIX}")
    if missing is not None:
        missing += [name for name in listed if name in absent]
    if not set(listed[:-N_TEST]) - absent:
        raise KDError(f"{source} holds no volume to train on: {FIX}")
    return [
        VolumeCase(
            name,
            source / "imagesTr" / f"{name}.nii.gz",
            source / "labelsTr" / f"{name}.nii.gz",
            tag="Tr" if i < len(listed) - N_TEST else "Ts",
        )
        for i, name in enumerate(listed)
        if name not in absent
    ]


def convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "Hippocampus",
) -> ConversionReport:
    """Write the Hippocampus set as an nnU-Net dataset: the last 60 ids in imagesTs and labelsTs, the others in imagesTr
    and labelsTr. Cross-validation folds are left to nnU-Net. allow_missing: leave out cases that lack a file; the others
    keep their part.

    Images are copied as they are. Labels are written as uint8 with their image's geometry. Raises KDError for what is
    wrong with the source (see `find_cases` and `_read_case`) or the target folders.
    """
    with opened(source, raw, KEEP, parts=("imagestr", "labelstr")) as root:
        descriptions = SourceFiles(root).find(r"dataset\.json")
        root = descriptions[()].parent if descriptions else root  # a folder further down
        missing = [] if allow_missing else None
        cases = find_cases(root, missing)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, missing_cases=missing)
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_volumes(
                folder,
                cases,
                report,
                _read_case,
                root=root,
                channel="MRI",
                labels=LABELS,
                settings={"set": "hippocampus", "test": f"the last {N_TEST} ids", "source": str(source)},
                published_cases=N_PUBLISHED,
                licence="CC BY-SA 4.0",
                reference="Medical Segmentation Decathlon, Task04 (Vanderbilt University Medical Center); Antonelli et al., "
                "The Medical Segmentation Decathlon, Nature Communications 2022",
                description="Hippocampus in MR, anterior and posterior part",
            )
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
    match = re.fullmatch(r"hippocampus_(\d+)(?:\.nii\.gz)?", name)
    return (int(match[1]), name) if match else ()


def _read_case(case: VolumeCase) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """Image, and label as uint8 with the image's geometry.

    Raises KDError if a file cannot be read to its end, if image and label are not 3-D volumes of one size and place, and
    if the label holds no foreground or values other than 0, 1 and 2.
    """
    image, label = read_volume(case.image, FIX), read_volume(case.label, FIX)
    if image.GetDimension() != 3 or image.GetSize() != label.GetSize():
        raise KDError(f"{case.label} is {size_text(label)} voxels, its image {size_text(image)}: {FIX}")
    if difference := elsewhere(label, image):
        raise KDError(f"{case.label} lies elsewhere than its image ({difference}): {FIX}")
    values = np.unique(SimpleITK.GetArrayViewFromImage(label)).tolist()
    if not set(values) <= {0, 1, 2} or values == [0]:
        raise KDError(f"{case.label} holds the values {values[:6]}, expected 0, 1 and 2: {FIX}")
    return image, on_image_grid(label, image, {0: 0, 1: 1, 2: 2})
