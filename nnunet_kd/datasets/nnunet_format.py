"""nnU-Net's raw dataset folder: names, PNG cases, dataset.json, splits_final.json. Knows no particular data set.

Layout written here (`tag` is "Tr" or "Ts"):

    DatasetXXX_Name/
        dataset.json
        images{tag}/CASE_0000.png     uint8, (H, W) or (H, W, 3)
        labels{tag}/CASE.png          uint8, (H, W), values 0 and 1
        fov{tag}/CASE.png             uint8, (H, W), 0 outside and 255 inside the field of view (for the evaluation;
                                      nnU-Net ignores it)
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json

SPLIT_TAGS = ("Tr", "Ts")


@dataclass
class ConversionReport:
    """What a conversion has written, for the terminal. Sizes are (width, height) in pixels, or (x, y, z) in voxels;
    `label_fraction` is the labelled share of `label_ground`."""

    dataset: str
    folder: Path
    train_cases: list[str] = field(default_factory=list)
    test_cases: list[str] = field(default_factory=list)
    native_sizes: dict[tuple[int, ...], int] = field(default_factory=dict)
    canvas_sizes: dict[tuple[int, ...], int] = field(default_factory=dict)
    label_values: list[int] = field(default_factory=list)
    label_fraction: float = 0.0
    label_ground: str = "field of view"
    folds: int = 0
    rows: list[tuple[str, str]] = field(default_factory=list)  # further lines: name and value
    missing_cases: list[str] | None = None  # published names, left out; None where all have to be there
    warnings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report as a few lines of plain text."""

        def sizes(counts: Mapping[tuple[int, ...], int]) -> str:
            if len(counts) > 4:
                ranges = " x ".join(f"{min(axis)}..{max(axis)}" for axis in zip(*counts, strict=True))
                return f"{ranges} ({sum(counts.values())} cases)"
            return ", ".join(f"{'x'.join(map(str, size))} ({n} cases)" for size, n in sorted(counts.items()))

        lines = [
            f"{self.dataset}: {len(self.train_cases)} cases in imagesTr, {len(self.test_cases)} in imagesTs",
            f"  folder        {self.folder}",
            f"  native size   {sizes(self.native_sizes)}",
            f"  written size  {sizes(self.canvas_sizes)}",
            f"  labels        values {self.label_values}, {100 * self.label_fraction:.1f}% of the {self.label_ground}",
        ]
        if self.folds:
            lines.append(f"  splits        {self.folds} folds in splits_final.json")
        lines += [f"  {name:13} {value}" for name, value in self.rows]
        if self.missing_cases:
            lines.append(f"  warning: {missing_text(self.missing_cases)}")
        return "\n".join(lines + [f"  warning: {w}" for w in self.warnings])


def missing_text(names: Sequence[str]) -> str:
    """What --allow-missing left out, in words."""
    return f"{len(names)} missing in the source and left out: " + shortened(names)


def shortened(names: Sequence[str], shown: int = 6) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def check_choice(option: str, value: str, choices: Collection[str], of: str = "") -> None:
    """Raise KDError if the value of a converter's option is not one of `choices`. of: the set whose option it is."""
    if value not in choices:
        known = ", ".join(choices)
        raise KDError(f"unknown {option} {value!r}{f' of {of}' if of else ''}: use one of {known} with --{option}")


def dataset_name(dataset_id: int, name: str) -> str:
    """nnU-Net's name of a dataset, `DatasetXXX_Name`. Raises KDError for an id or a name that nnU-Net cannot use."""
    if not 1 <= int(dataset_id) <= 999:
        raise KDError(f"dataset id {dataset_id} is not between 1 and 999: choose another --dataset-id")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise KDError(f"dataset name {name!r} may hold letters, digits, '_' and '-' only: choose another name")
    return f"Dataset{int(dataset_id):03d}_{name}"


def dataset_folder(root: str | Path, dataset_id: int, name: str) -> Path:
    """Path of `DatasetXXX_Name` under `root` (nnUNet_raw or nnUNet_preprocessed). Creates nothing.

    Raises KDError if another dataset holds the same id under `root`: nnU-Net would refuse both.
    """
    folder = Path(root) / dataset_name(dataset_id, name)
    others = sorted(p.name for p in Path(root).glob(f"Dataset{int(dataset_id):03d}_*") if p.name != folder.name)
    if others:
        raise KDError(
            f"dataset id {dataset_id} is already taken by {others[0]} in {root}: "
            "choose another --dataset-id or remove that folder"
        )
    return folder


def free_dataset_folder(root: str | Path, dataset_id: int, name: str, overwrite: bool = False) -> Path:
    """`dataset_folder`, and KDError if the dataset exists, is not empty and `overwrite` is False."""
    folder = dataset_folder(root, dataset_id, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise KDError(f"{folder} exists: add --overwrite to replace it, or choose another --dataset-id")
    return folder


def new_report(
    raw: str | Path, preprocessed: str | Path, dataset_id: int, name: str, overwrite: bool = False, **known: Any
) -> ConversionReport:
    """An empty report on a dataset that may be written; `known` are further fields of it.

    Raises KDError if the id is taken, or the dataset exists and `overwrite` is False. What was planned before is a warning.
    """
    target = free_dataset_folder(raw, dataset_id, name, overwrite)
    report = ConversionReport(target.name, target, **known)
    planned = dataset_folder(preprocessed, dataset_id, name)
    if (planned / "dataset_fingerprint.json").exists():
        report.warnings.append(f"{planned} was planned before: run nnUNetv2_plan_and_preprocess with --clean")
    return report


@contextmanager
def new_dataset_folder(root: str | Path, dataset_id: int, name: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it takes its final name only if the block ends without an exception.

    So a conversion that fails half way leaves nothing that nnU-Net would take for a dataset, and an earlier one stays
    whole. Raises KDError as `free_dataset_folder` does.
    """
    final = free_dataset_folder(root, dataset_id, name, overwrite)
    partial, old = (final.with_name(f".{final.name}.{what}") for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as e:
        raise KDError(f"cannot write to {root} ({e.strerror}): check that the folder in nnUNet_raw is writable") from e
    try:
        yield partial
        if final.exists():
            os.replace(final, old)
        os.replace(partial, final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_png(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array (H, W) or (H, W, 3) as PNG (lossless), atomically."""
    if array.dtype != np.uint8:
        raise TypeError(f"{path.name}: PNG cases are uint8, got {array.dtype}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")
    os.replace(temporary, path)


def write_case(
    folder: Path,
    case: str,
    image: np.ndarray,
    label: np.ndarray | None = None,
    fov: np.ndarray | None = None,
    tag: str = "Tr",
) -> None:
    """Write one case into a dataset folder.

    image: uint8 (H, W) or (H, W, 3); label: (H, W), bool or 0/1; fov: (H, W), bool. `tag` is "Tr" or "Ts".
    Raises ValueError if the shapes differ or the label holds other values than 0 and 1.
    """
    if tag not in SPLIT_TAGS:
        raise ValueError(f"tag must be one of {SPLIT_TAGS}, got {tag!r}")
    for what, array in (("label", label), ("field of view", fov)):
        if array is not None and array.shape != image.shape[:2]:
            raise ValueError(f"{case}: {what} is {array.shape}, image is {image.shape[:2]}")
    if label is not None and not np.isin(label, (0, 1)).all():
        raise ValueError(f"{case}: label values must be 0 and 1, found {np.unique(label)[:5].tolist()}")
    write_png(folder / f"images{tag}" / f"{case}_0000.png", image)
    if label is not None:
        write_png(folder / f"labels{tag}" / f"{case}.png", label.astype(np.uint8))
    if fov is not None:
        write_png(folder / f"fov{tag}" / f"{case}.png", fov.astype(np.uint8) * 255)


def write_dataset_json(
    folder: Path,
    channel_names: Sequence[str],
    labels: Sequence[str],
    num_training: int,
    *,
    name: str,
    licence: str,
    reference: str,
    description: str = "",
    file_ending: str = ".png",
    missing_cases: Sequence[str] | None = None,
) -> None:
    """Write nnU-Net's dataset.json. `labels` are the foreground names, in the order of their values 1, 2, ...

    For PNG cases NaturalImage2DIO is named on purpose: nnU-Net then reads images and labels of every set alike. The
    channel names used in this package ("green", "red", "gray", "MRI", ...) are unknown to nnU-Net, which means z-score
    normalisation. missing_cases: what --allow-missing left out, for `nnunet-kd verify`; nnU-Net ignores keys it does not know.
    """
    content = {
        "name": name,
        "description": description,
        "reference": reference,
        "licence": licence,
        "converted_by": "nnunet_kd",
        "channel_names": {str(i): c for i, c in enumerate(channel_names)},
        "labels": {"background": 0, **{label: i for i, label in enumerate(labels, start=1)}},
        "numTraining": num_training,
        "file_ending": file_ending,
    }
    if missing_cases is not None:
        content["missing_cases"] = list(missing_cases)
    if file_ending == ".png":
        content["overwrite_image_reader_writer"] = "NaturalImage2DIO"
    write_json(folder / "dataset.json", content)


def folds_by_group(groups: Mapping[str, Sequence[str]], n_folds: int) -> list[dict[str, list[str]]]:
    """Cross-validation folds that never part a group: fold k validates on groups k, k + n_folds, ... (sorted by
    name)."""
    names = sorted(groups)
    folds = []
    for k in range(n_folds):
        chosen = set(names[k::n_folds])
        folds.append(
            {
                "train": sorted(case for g in names if g not in chosen for case in groups[g]),
                "val": sorted(case for g in chosen for case in groups[g]),
            }
        )
    return folds


def folds_of_cases(
    cases: Iterable[str], group: Callable[[str], str], n_folds: int, present: Collection[str] | None = None
) -> list[dict[str, list[str]]]:
    """`folds_by_group` of cases whose group is told by their name. Fewer groups than `n_folds` make as many folds.

    present: the cases that are not missing; the others are left out of the finished folds, so that no case changes its fold.
    Raises KDError if a fold then has nothing to train or to choose on.
    """
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(group(case), []).append(case)
    folds = folds_by_group(groups, min(n_folds, len(groups)))
    if present is not None:
        folds = [{part: [c for c in cases if c in present] for part, cases in fold.items()} for fold in folds]
        empty = [k for k, fold in enumerate(folds) if not fold["train"] or not fold["val"]]
        if empty:
            raise KDError(f"so much is missing that fold {empty[0]} of the split has no cases: complete the source")
    return folds


def write_splits(
    preprocessed_root: str | Path, dataset: str, folds: Sequence[Mapping[str, Sequence[str]]], overwrite: bool = False
) -> Path:
    """Write `preprocessed_root/dataset/splits_final.json`, before nnU-Net makes a split of its own at the first
    training.

    Raises KDError if another split is already there (models may have been trained with it) and `overwrite` is False.
    """
    for k, fold in enumerate(folds):
        if not fold["train"] or not fold["val"] or set(fold["train"]) & set(fold["val"]):
            raise ValueError(f"fold {k} of {dataset}: training and validation cases must be non-empty and disjoint")
    path = Path(preprocessed_root) / dataset / "splits_final.json"
    content = [{"train": list(f["train"]), "val": list(f["val"])} for f in folds]
    if path.exists() and not overwrite:
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == content
        except ValueError:
            same = False
        if not same:
            raise KDError(f"{path} holds another split: add --overwrite to replace it, or choose another --dataset-id")
        return path
    write_json(path, content)
    return path


def read_fold(preprocessed: Path, fold: int | str) -> dict[str, list[str]] | None:
    """``{"train": cases, "val": cases}`` of a fold in a data set's preprocessed folder.

    None if `splits_final.json` is not there or has no such fold ("all"). Raises KDError if it is damaged.
    """
    file = preprocessed / "splits_final.json"
    if not str(fold).isdigit() or not file.is_file():
        return None
    try:
        folds = json.loads(file.read_text(encoding="utf-8"))
        return {part: list(folds[int(fold)][part]) for part in ("train", "val")} if int(fold) < len(folds) else None
    except (ValueError, KeyError, TypeError) as error:
        raise KDError(f"{file} is no list of folds with train and val: put nnU-Net's file back, or delete it") from error
