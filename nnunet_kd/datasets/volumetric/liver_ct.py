"""Liver in CT: LiTS17 (Bilic et al., Medical Image Analysis 2023) and the Decathlon's Task03, which has the same 131 scans.

LiTS17, published in two batches: `volume-0.nii`, `segmentation-0.nii`, ..., 0 to 130; values 1 liver, 2 tumour. The
headers of cases 28 to 47 have an identity affine and 1 mm spacing, which is not the scan's. Nothing better is published,
so they are taken as they are, and named.
Task03_Liver: `imagesTr/liver_0.nii.gz`, `labelsTr/liver_0.nii.gz`, dataset.json; or what nnU-Net's own converter
(nnUNetv2_convert_MSD_dataset) made of it, `imagesTr/liver_0_0000.nii.gz`. Its test images have no labels and are not used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_kd.datasets.nnunet_format import ConversionReport, check_choice, new_dataset_folder, new_report
from nnunet_kd.datasets.sources import SourceFiles, check_pairs, opened
from nnunet_kd.datasets.volumetric.volumes import (
    VolumeCase,
    channel_name,
    convert_volumes,
    elsewhere,
    on_image_grid,
    read_volume,
    size_text,
)
from nnunet_kd.utils.errors import KDError

N_PUBLISHED = 131
LABELS = {"liver": (("liver",), {0: 0, 1: 1, 2: 1}), "all": (("liver", "tumour"), {0: 0, 1: 1, 2: 2})}  # names, value map
LITS_KEEP = r"(?:volume|segmentation)-\d+\.nii(?:\.gz)?"
LITS_EXPECTED = "volume-0.nii with segmentation-0.nii and so on, from Training Batch 1 and 2"
MSD_KEEP = r"dataset\.json|(?:images|labels)tr/liver_\d+(?:_0000)?\.nii\.gz"
MSD_EXPECTED = "Task03_Liver with dataset.json, imagesTr and labelsTr, or what nnUNetv2_convert_MSD_dataset made of it"


def find_lits(source: str | Path, missing: list[str] | None = None) -> list[VolumeCase]:
    """The labelled LiTS cases, named LiTS_000 and so on. missing: see `sources.check_pairs`. Raises KDError if there are none
    or a label is missing."""
    files = SourceFiles(Path(source))
    images, labels = (files.find(rf"{part}-(\d+)\.nii(?:\.gz)?") for part in ("volume", "segmentation"))
    return _pairs(source, "LiTS", images, labels, LITS_EXPECTED, missing)


def find_msd(source: str | Path, missing: list[str] | None = None) -> list[VolumeCase]:
    """The labelled cases of Task03_Liver, named MSDLiver_000 and so on. Raises KDError as `find_lits`, or for another
    task's dataset.json."""
    files = SourceFiles(Path(source))
    descriptions = list(files.find(r"dataset\.json").values())
    if len(descriptions) != 1:
        raise KDError(f"{source} holds no dataset.json of the Decathlon's Task03: expected {MSD_EXPECTED}")
    try:
        published = json.loads(descriptions[0].read_text(encoding="utf-8"))["labels"]
        # the Decathlon writes {"1": "liver"}, nnU-Net {"liver": 1}
        named = {(v if str(k).isdigit() else k).lower(): int(k if str(k).isdigit() else v) for k, v in published.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise KDError(f"{descriptions[0]} is not a dataset.json ({type(e).__name__}: {e}): expected {MSD_EXPECTED}") from e
    if named.get("liver") != 1 or sorted(named.values()) != [0, 1, 2]:
        raise KDError(f"{descriptions[0]} describes another task (labels {', '.join(named)}): expected {MSD_EXPECTED}")
    images, labels = files.find(r"imagestr/liver_(\d+)(?:_0000)?\.nii\.gz"), files.find(r"labelstr/liver_(\d+)\.nii\.gz")
    return _pairs(source, "MSDLiver", images, labels, MSD_EXPECTED, missing)


def _pairs(
    source: str | Path, name: str, images: dict, labels: dict, expected: str, missing: list[str] | None
) -> list[VolumeCase]:
    alone = None if missing is None else []
    paired = check_pairs(source, images, labels, f"volumes of {name}", "label", expected, alone)
    if missing is not None:  # by number, those included of which there is no file at all
        numbers = {int(key[0]) for key in paired}
        missing += [f"{name}_{n:03d}" for n in range(N_PUBLISHED) if n not in numbers]
    return [VolumeCase(f"{name}_{int(key[0]):03d}", images[key], labels[key]) for key in paired]


def convert_lits17(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    labels: str = "liver",
    normalisation: str = "modality",
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "LiTS17",
) -> ConversionReport:
    """Write LiTS17 as an nnU-Net dataset, all cases in imagesTr.

    labels: "liver" (tumours count as liver: the labels CHAOS has) or "all" (liver and tumour). normalisation: "modality"
    (channel "CT") or "zscore". Geometry is the image's. allow_missing: leave out cases that lack a file. Raises KDError for
    what is wrong with the source or the target.
    """
    return _convert(
        find_lits,
        LITS_KEEP,
        "lits17",
        (source, raw, preprocessed, dataset_id, labels, normalisation, allow_missing, overwrite, name),
        licence="see the challenge's site",
        reference="Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical Image Analysis 2023",
    )


def convert_msd_liver(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    labels: str = "liver",
    normalisation: str = "modality",
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "MSDLiver",
) -> ConversionReport:
    """Write the Decathlon's Task03_Liver as an nnU-Net dataset, all labelled cases in imagesTr; options as for
    `convert_lits17`. The scans are those of LiTS17: never train on one and test on the other."""
    return _convert(
        find_msd,
        MSD_KEEP,
        "msd_liver",
        (source, raw, preprocessed, dataset_id, labels, normalisation, allow_missing, overwrite, name),
        licence="CC BY-SA 4.0",
        reference="Medical Segmentation Decathlon, Task03 (IRCAD); Antonelli et al., The Medical Segmentation Decathlon, "
        "Nature Communications 2022",
    )


def _convert(
    find: Callable[[Path, list[str] | None], list[VolumeCase]],
    keep: str,
    key: str,
    arguments: tuple,
    licence: str,
    reference: str,
) -> ConversionReport:
    source, raw, preprocessed, dataset_id, labels, normalisation, allow_missing, overwrite, name = arguments
    check_choice("labels", labels, LABELS)
    channel, (names, values) = channel_name("CT", normalisation), LABELS[labels]
    with opened(source, raw, keep, parts=("imagestr", "labelstr")) as root:
        missing = [] if allow_missing else None
        cases = find(root, missing)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, missing_cases=missing)
        moved, unscaled = [], []

        def read(case: VolumeCase) -> tuple[SimpleITK.Image, SimpleITK.Image]:
            image, label = _read_case(case, values)
            if elsewhere(label, image):
                moved.append(case.name)
            if np.allclose(image.GetSpacing(), 1) and np.allclose(np.abs(image.GetDirection()), np.eye(3).ravel()):
                unscaled.append(case.name)
            label.CopyInformation(image)
            return image, label

        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_volumes(
                folder,
                cases,
                report,
                read,
                root=root,
                channel=channel,
                labels=names,
                settings={"set": key, "labels": labels, "normalisation": normalisation, "source": str(source)},
                published_cases=N_PUBLISHED,
                licence=licence,
                reference=reference,
                description="Liver in contrast-enhanced CT" + ("; tumours are part of the liver" if labels == "liver" else ""),
            )
    if moved:
        report.warnings.append(
            f"the headers of {len(moved)} labels (first {moved[0]}) differ from their image's: the image's was taken"
        )
    if unscaled:
        report.warnings.append(
            f"{len(unscaled)} images ({unscaled[0]} to {unscaled[-1]}) have 1 mm spacing and an identity affine, hardly "
            "the scan's: distances in mm are wrong there"
        )
    return report


def _read_case(case: VolumeCase, values: dict[int, int]) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """Image and label, the label still with its own header. Raises KDError if they do not belong together or the label
    holds no liver or other values."""
    fix = "download the set again"
    image, label = read_volume(case.image, fix), read_volume(case.label, fix)
    if image.GetDimension() != 3 or image.GetSize() != label.GetSize():
        raise KDError(f"{case.label} is {size_text(label)} voxels, its image {size_text(image)}: a resized copy; {fix}")
    try:
        mapped = on_image_grid(label, label, values)
    except ValueError as e:
        raise KDError(f"{case.label} {e}: {fix}") from e
    if not SimpleITK.GetArrayViewFromImage(mapped).any():
        raise KDError(f"{case.label} holds no liver: {fix}")
    return image, mapped
