"""Folders of label maps measured into nnU-Net's summary.json: its schema, its values, and further keys beside them.

nnU-Net's own readers (``load_summary_json``, ``nnUNetv2_find_best_configuration``, its postprocessing) take such a file: what
they read is there under the same keys, and means follow nnU-Net's rules (NaN left out over cases, not over labels).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.evaluation.metrics.cases import CaseFiles, Measured, measure
from nnunet_kd.evaluation.metrics.overlap import Region, name_of
from nnunet_kd.evaluation.metrics.surfaces import ASSD_DEFINITION, HD95_DEFINITION, NSD_DEFINITION
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_text

# nnU-Net's names, then ours in its style
KEYS = {
    "Dice": "dice",
    "IoU": "iou",
    "TP": "tp",
    "FP": "fp",
    "FN": "fn",
    "TN": "tn",
    "Sensitivity": "sensitivity",
    "Specificity": "specificity",
    "Accuracy": "accuracy",
    "AUC": "auc",
    "HD95": "hd95",
    "ASSD": "assd",
    "NSD": "nsd",
    "clDice": "cldice",
}
EMPTY_MASKS = (
    "both empty: NaN, left out of means; one empty: Dice, IoU, NSD and clDice 0, HD95 and ASSD the image's diagonal, counted "
    "as a failure"
)


def read_labels(dataset_json: Path) -> tuple[list[Region], int | None, str]:
    """What nnU-Net evaluates for a dataset.json: foreground labels or regions, the ignore label, the file ending.

    Raises:
        KDError: missing, no JSON, or labels that nnU-Net does not accept.
    """
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    try:
        content = json.loads(Path(dataset_json).read_text(encoding="utf-8"))
        manager = LabelManager(content["labels"], content.get("regions_class_order"))
        labels = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        regions: list[Region] = [tuple(i) if isinstance(i, Sequence) and not isinstance(i, str) else int(i) for i in labels]
        return regions, manager.ignore_label, content["file_ending"]
    except FileNotFoundError:
        raise KDError(f"{dataset_json} does not exist: name the data set's dataset.json") from None
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        message = " ".join(str(error).split())[:120]
        raise KDError(
            f"{dataset_json} is no dataset.json of nnU-Net's ({type(error).__name__}: {message}): restore it"
        ) from None


def pair_files(
    predictions: Path, references: Path, ending: str, fov: Path | None = None, chill: bool = False
) -> list[CaseFiles]:
    """The files of every case of two folders. nnU-Net's CASE.npz beside every prediction become its probabilities.

    Args:
        chill: leave out references without a prediction, as nnU-Net's ``--chill`` does.

    Raises:
        KDError: a folder or file is missing.
    """
    folders = [Path(f) for f in (predictions, references, *([fov] if fov else []))]
    for folder in folders:
        if not folder.is_dir():
            raise KDError(f"folder {folder} does not exist: name the folder of label maps CASE{ending}")
    predicted, annotated = (_cases(folder, ending) for folder in folders[:2])
    if not predicted:
        raise KDError(f"{predictions} holds no CASE{ending}: name the folder that the predictions are in")
    missing = sorted(set(annotated) - set(predicted))
    if missing and not chill:
        raise KDError(
            f"{len(missing)} of {len(annotated)} cases have no prediction in {predictions} (first: {missing[0]}{ending}): "
            "predict them, or leave them out with --chill"
        )
    for case in predicted:
        for folder, what in zip(folders[1:], ("reference", "field of view"), strict=False):
            if not (folder / f"{case}{ending}").is_file():
                raise KDError(f"prediction {case}{ending} has no {what} in {folder}: add it, or remove the prediction")
    saved = all((Path(predictions) / f"{case}.npz").is_file() for case in predicted)
    return [
        CaseFiles(
            case,
            folders[0] / f"{case}{ending}",
            folders[1] / f"{case}{ending}",
            folders[2] / f"{case}{ending}" if fov else None,
            folders[0] / f"{case}.npz" if saved else None,
        )
        for case in predicted
    ]


def measure_folders(
    predictions: Path,
    references: Path,
    dataset_json: Path,
    fov: Path | None = None,
    tolerance: float = 1.0,
    cldice_3d: bool = False,
    chill: bool = False,
    workers: int = 1,
) -> tuple[Measured, dict]:
    """Measure a folder of predictions; returns the metrics and the content of a summary.json.

    Raises:
        KDError: missing or unfitting files.
    """
    labels, ignore, ending = read_labels(dataset_json)
    files = pair_files(predictions, references, ending, fov, chill)
    measured = measure(files, labels, ignore, tolerance, cldice_3d, workers)
    return measured, summary(measured, files, labels, tolerance)


def summary(measured: Measured, files: Sequence[CaseFiles], labels: Sequence[Region], tolerance: float) -> dict:
    """The content of a summary.json."""
    per_case: list[dict[str, Any]] = [
        {
            "reference_file": str(f.reference),
            "prediction_file": str(f.prediction),
            "metrics": {str(label): _renamed(_of_label(measured.cases[f.case], label)) for label in labels},
        }
        for f in files
    ]
    mean: dict[str, dict[str, float]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric that no case has stays NaN
        for label in map(str, labels):
            per_label = [c["metrics"][label] for c in per_case]
            mean[label] = {k: float(np.nanmean([f[k] for f in per_label])) for k in per_label[0]}
    first = next(iter(mean.values()))
    whole = measured.summary
    counts = ("n", "failures", "undefined", "auc_undefined", "missed", "false_alarms")
    of_label = {str(label): whole.get("labels", {}).get(name_of(label), whole) for label in labels}
    return {
        "foreground_mean": {k: float(np.mean([m[k] for m in mean.values()])) for k in first},
        "mean": mean,
        "metric_per_case": per_case,
        "nnunet_kd": {
            "definitions": {"HD95": HD95_DEFINITION, "ASSD": ASSD_DEFINITION, "NSD": f"{NSD_DEFINITION}; within {tolerance:g}"},
            "distance_unit": whole["hd95_unit"],
            "nsd_tolerance": tolerance,
            "empty_masks": EMPTY_MASKS,
            "field_of_view": files[0].fov is not None,
            "pooled": measured.pooled,
            "counts": {label: {k: s[k] for k in counts if k in s} for label, s in of_label.items()},
            "failures": whole["failures"],
        },
    }


def write_summary(content: dict, file: Path) -> None:
    """Write it as nnU-Net does: NaN stays the bare word that its reader expects. Atomically."""
    write_text(file, json.dumps(content, indent=4) + "\n")


def _cases(folder: Path, ending: str) -> list[str]:
    return sorted(p.name[: -len(ending)] for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith("."))


def _of_label(case: dict, label: Region) -> dict:
    return case["labels"][name_of(label)] if "labels" in case else case


def _renamed(values: dict) -> dict:
    renamed = {key: values[ours] for key, ours in KEYS.items() if ours in values}
    return renamed | {"n_pred": values["tp"] + values["fp"], "n_ref": values["tp"] + values["fn"]}
