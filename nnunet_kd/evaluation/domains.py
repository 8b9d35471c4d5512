"""Evaluation domains: folders of images and labels in nnU-Net's raw layout, and predictions measured against them."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from nnunet_kd.evaluation.images import PICTURES, VOLUMES, read_map, read_picture
from nnunet_kd.evaluation.metrics.cases import CaseFiles, Measured, measure
from nnunet_kd.evaluation.metrics.overlap import Region
from nnunet_kd.nnunet_io.readers import reader_of
from nnunet_kd.utils.errors import KDError

__all__ = ["Domain", "evaluate_predictions", "measure_predictions", "parse_domain", "read_image", "read_label", "read_map"]

DATASET_SPEC = re.compile(r"(\d{1,3})(?::(Tr|Ts)(?::(.+))?)?")


@dataclass(frozen=True)
class Domain:
    """Images ``CASE_0000.png`` (one file per channel), labels ``CASE.png`` and, if there are any, fields of view."""

    name: str
    images: Path
    labels: Path
    fov: Path | None
    cases: list[str]
    file_ending: str

    @cached_property
    def reader(self) -> str:
        """Name of the reader that nnU-Net takes for these files, "" if it has none. The first case decides."""
        file = self.images.parent / "dataset.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            content = {}
        example = self.images / f"{self.cases[0]}_0000{self.file_ending}"
        try:
            return reader_of(content | {"file_ending": self.file_ending}, example).__name__
        except KDError:
            return ""


def parse_domain(spec: str, raw: Path, labelled: bool = True) -> Domain:
    """A domain from its text on the command line.

    Args:
        spec: ``NAME=ID``, ``NAME=ID:Tr``, ``NAME=ID:Ts``, ``NAME=ID:Tr:GLOB`` (case names such as ``DRIVE_test_*``) or
            ``NAME=IMAGES_DIR,LABELS_DIR[,FOV_DIR]``. Without Tr or Ts: the test set if it has labels, else the training
            set.
        raw: nnUNet_raw.
        labelled: False takes images without labels too (enough for FSD, not for metrics).

    Raises:
        KDError: unreadable text, a folder that is not there, no cases, an image without label or a label without image.
    """
    name, _, place = spec.partition("=")
    if not name or not place:
        raise KDError(f'domain "{spec}" must read NAME=ID[:Tr|:Ts[:GLOB]] or NAME=IMAGES_DIR,LABELS_DIR[,FOV_DIR]')
    parts = DATASET_SPEC.fullmatch(place)
    if parts:
        return _from_dataset(name, int(parts[1]), parts[2], parts[3], Path(raw), labelled)
    folders = [Path(p) for p in place.split(",")]
    if len(folders) not in (2, 3):
        raise KDError(f'domain "{spec}" must read NAME=ID[:Tr|:Ts[:GLOB]] or NAME=IMAGES_DIR,LABELS_DIR[,FOV_DIR]')
    return _make(name, folders[0], folders[1], folders[2] if len(folders) == 3 else None, None, None, labelled)


def evaluate_predictions(
    domain: Domain,
    predictions: Path,
    labels: Sequence[Region],
    workers: int = 1,
    ignore_label: int | None = None,
) -> dict[str, dict]:
    """``{case: metrics}`` (see ``metrics.case_metrics``) of a folder of predicted label maps.

    Args:
        labels: foreground labels, or regions.
        workers: processes; every process holds one case at a time.

    Raises:
        KDError: a prediction is missing, unreadable or of another size than its label.
    """
    return measure_predictions(domain, predictions, labels, workers, ignore_label).cases


def measure_predictions(
    domain: Domain,
    predictions: Path,
    labels: Sequence[Region],
    workers: int = 1,
    ignore_label: int | None = None,
    tolerance: float = 1.0,
    label: str | None = None,
) -> Measured:
    """The cases' metrics, their mean and the pooled ones. With nnU-Net's CASE.npz beside every label map also the AUC.

    Args:
        labels, workers, ignore_label: as in `evaluate_predictions`.
        tolerance: of the surface Dice, in mm, or pixels for images without spacing.
        label: text of the progress bar.
    """
    predictions, ending = Path(predictions), domain.file_ending
    for case in domain.cases:
        file = predictions / f"{case}{ending}"
        if not file.is_file():
            raise KDError(f"prediction {file} is missing: predict domain {domain.name} again")
    saved = all((predictions / f"{case}.npz").is_file() for case in domain.cases)
    files = [
        CaseFiles(
            case,
            predictions / f"{case}{ending}",
            domain.labels / f"{case}{ending}",
            None if domain.fov is None else domain.fov / f"{case}{ending}",
            predictions / f"{case}.npz" if saved else None,
        )
        for case in domain.cases
    ]
    return measure(files, labels, ignore_label, tolerance, workers=workers, label=label or f"metrics {domain.name}")


def read_image(domain: Domain, case: str, channel: int = 0) -> np.ndarray:
    """One image file of a case: ``(H, W)``, ``(D, H, W)``, ``(H, W, 3)`` for a colour picture, or ``(C, D, H, W)``.

    Raises KDError if it is missing or unreadable.
    """
    file = domain.images / f"{case}_{channel:04d}{domain.file_ending}"
    return read_picture(file) if domain.reader == "NaturalImage2DIO" else read_map(file)[0]


def read_label(domain: Domain, case: str) -> np.ndarray:
    """A case's annotation: ``(H, W)`` or ``(D, H, W)``."""
    return read_map(domain.labels / f"{case}{domain.file_ending}")[0]


def _from_dataset(name: str, number: int, tag: str | None, glob: str | None, raw: Path, labelled: bool) -> Domain:
    folders = sorted(p for p in raw.glob(f"Dataset{number:03d}_*") if p.is_dir())
    if not folders:
        raise KDError(f"domain {name}: no Dataset{number:03d}_* in {raw.resolve()}: convert the dataset or set nnUNet_raw")
    if len(folders) > 1:
        raise KDError(
            f"domain {name}: {', '.join(p.name for p in folders)} share the id {number}: remove or rename all but one"
        )
    folder = folders[0]
    tag = tag or ("Ts" if any((folder / "labelsTs").glob("*")) else "Tr")
    fov = folder / f"fov{tag}"
    try:
        ending = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KDError(f"{folder / 'dataset.json'} is missing or has no file_ending: convert the dataset again") from error
    return _make(name, folder / f"images{tag}", folder / f"labels{tag}", fov if fov.is_dir() else None, ending, glob, labelled)


def _make(
    name: str, images: Path, labels: Path, fov: Path | None, ending: str | None, glob: str | None, labelled: bool
) -> Domain:
    for folder in (images, *([labels] if labelled else []), *([fov] if fov else [])):
        if not folder.is_dir():
            raise KDError(f"domain {name}: folder {folder} does not exist")
    if ending is None:
        ending = _ending(name, images)
    chosen = partial(fnmatch.fnmatchcase, pat=glob or "*")
    with_image = _names(images, f"_0000{ending}", chosen)
    with_label = _names(labels, ending, chosen) if labels.is_dir() else []
    cases = with_label if labelled else with_image
    if not cases:
        which = f" match {glob}" if glob else ""
        form = f"CASE{ending} files in {labels}" if labelled else f"CASE_0000{ending} files in {images}"
        raise KDError(f"domain {name}: no {form}{which}")
    if labelled:
        without_image = sorted(set(with_label) - set(with_image))
        if without_image:
            raise KDError(f"domain {name}: label {without_image[0]}{ending} has no image CASE_0000{ending} in {images}")
        without_label = sorted(set(with_image) - set(with_label))
        if without_label:
            raise KDError(
                f"domain {name}: image {without_label[0]}_0000{ending} has no label in {labels}: add it, or name the "
                "cases that have one (NAME=ID:Ts:GLOB)"
            )
    if fov is not None:
        without = [c for c in cases if not (fov / f"{c}{ending}").is_file()]
        if without:
            raise KDError(f"domain {name}: field of view {fov / (without[0] + ending)} is missing: convert the dataset again")
    return Domain(name, images, labels, fov, cases, ending)


def _names(folder: Path, ending: str, chosen: Callable[[str], bool]) -> list[str]:
    # nnU-Net's labels folder may hold dataset.json or a summary beside the cases: only the ending counts
    names = (p.name[: -len(ending)] for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith("."))
    return sorted(n for n in names if chosen(n))


def _ending(name: str, images: Path) -> str:
    endings = sorted({e for e in (*PICTURES, *VOLUMES) if any(p.name.endswith(f"_0000{e}") for p in images.iterdir())})
    if len(endings) != 1:
        what = f"files of several kinds ({', '.join(endings)})" if endings else "no images named CASE_0000.png, .nii.gz, ..."
        raise KDError(f"domain {name}: {images} holds {what}: nnU-Net's layout is CASE_0000{endings[0] if endings else '.png'}")
    return endings[0]
