"""Segmentation metrics of one case, their mean over cases, and the pooled form of the GKD paper. Arrays only, no files.

Definitions (the numbers of one pair of masks differ by up to 40% between libraries, so they are named here):

* dice, iou, sensitivity, specificity, accuracy: from the pixel counts tp, fp, fn, tn inside the field of view.
* auc: area under the ROC curve of the pixels inside the field of view, where probabilities are given (roc.py).
* hd95, assd, nsd: distances between surfaces (surfaces.py), in the unit of ``spacing``; in pixels without it.
* cldice: harmonic mean of the share of the predicted centreline inside the truth and of the true centreline inside the
  prediction (Shit et al., CVPR 2021), by scikit-image's ``skeletonize``. Of pictures; of volumes only if asked for.

Empty masks: both empty = NaN, which means leave out (nnU-Net's rule). One empty = Dice, IoU, clDice and NSD 0, hd95 and assd =
the diagonal of the image, and the case counts as a failure: dropping it would hide the worst cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from skimage.morphology import skeletonize

from nnunet_kd.evaluation.metrics.roc import Roc
from nnunet_kd.evaluation.metrics.surfaces import HD95_DEFINITION, hausdorff95, surface_metrics

__all__ = [
    "COUNTS",
    "HD95_DEFINITION",
    "METRICS",
    "Region",
    "case_metrics",
    "centreline_dice",
    "hausdorff95",
    "name_of",
    "pooled",
    "summarise",
]

METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy", "auc", "hd95", "assd", "nsd", "cldice")
COUNTS = ("tp", "fp", "fn", "tn")

Region = int | Sequence[int]
_REGION = (Sequence, np.ndarray)


def case_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[Region] = (1,),
    fov: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    ignore_label: int | None = None,
    probabilities: Sequence[np.ndarray] | None = None,
    tolerance: float = 1.0,
    cldice_3d: bool = False,
    rocs: dict[str, Roc] | None = None,
) -> dict:
    """Metrics of one case.

    Args:
        prediction, truth: label maps ``(*S)``, two or three axes.
        labels: what is evaluated: label values, or regions as groups of label values such as ``(1, 2)``.
        fov: boolean ``(*S)``; pixels outside do not count at all.
        spacing: size of a pixel along each axis, for the distances between surfaces.
        ignore_label: value in the truth whose pixels do not count, as those outside ``fov``.
        probabilities: one map ``(*S)`` for each of ``labels``, for the AUC; without them there is none.
        tolerance: of nsd, in mm or, without spacing, pixels.
        cldice_3d: clDice of volumes as well (slow for large organs).
        rocs: if given, takes in the pixel counts behind the AUC, by label name, for a pooled AUC.

    Returns:
        ``{metric: float, "tp"...: int, "failed": bool, "hd95_unit": "px" or "mm"}``. With several labels the metrics
        are the mean of those that are defined, the counts are sums, and ``"labels"`` holds the same per label, by name
        ("1", or "1+2" for a region). The unit is that of all distances.

    Raises:
        ValueError: shapes differ, or there is no label.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
    if truth.ndim not in (2, 3):
        raise ValueError(f"label maps have two or three axes, got {truth.shape}")
    if fov is not None and np.shape(fov) != truth.shape:
        raise ValueError(f"field of view is {np.shape(fov)}, truth is {truth.shape}")
    if spacing is not None and len(spacing) != truth.ndim:
        raise ValueError(f"spacing has {len(spacing)} values, the label map {truth.ndim} axes")
    if not len(labels):
        raise ValueError("no label to evaluate")
    if probabilities is not None and [np.shape(p) for p in probabilities] != [truth.shape] * len(labels):
        raise ValueError(f"{len(labels)} labels of {truth.shape} need as many maps of probabilities of that size")
    counted = None if fov is None else np.asarray(fov, dtype=bool)
    if ignore_label is not None:
        counted = (truth != ignore_label) if counted is None else counted & (truth != ignore_label)
    by_label = {}
    for i, label in enumerate(labels):
        p, t = (np.isin(a, label) if isinstance(label, _REGION) else a == label for a in (prediction, truth))
        values = _binary_metrics(p, t, counted, spacing, tolerance, cldice_3d)
        if probabilities is not None:
            score = probabilities[i]
            roc = Roc.count(score, t) if counted is None else Roc.count(score[counted], t[counted])
            values["auc"] = roc.area()
            if rocs is not None:
                rocs[name_of(label)] = roc
        by_label[name_of(label)] = values
    unit = "px" if spacing is None else "mm"
    if len(by_label) == 1:
        return {**next(iter(by_label.values())), "hd95_unit": unit}
    result: dict = {m: _mean([f[m] for f in by_label.values()]) for m in METRICS if m in next(iter(by_label.values()))}
    result.update({c: sum(f[c] for f in by_label.values()) for c in COUNTS})
    result["failed"] = any(f["failed"] for f in by_label.values())
    return {**result, "hd95_unit": unit, "labels": by_label}


def centreline_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The clDice of two boolean masks, two or three axes. NaN if both are empty, 0 if one is."""
    prediction, truth = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    if not prediction.any() or not truth.any():
        return math.nan if prediction.any() == truth.any() else 0.0
    of_prediction, of_truth = _centreline(prediction), _centreline(truth)
    precision = (of_prediction & truth).sum() / of_prediction.sum()
    sensitivity = (of_truth & prediction).sum() / of_truth.sum()
    return float(_ratio(2 * precision * sensitivity, precision + sensitivity, 0.0))


def _centreline(mask: np.ndarray) -> np.ndarray:
    line = skeletonize(mask)
    # in 3-D scikit-image's thinning can take away the whole of a tube of even width
    return line if line.any() else mask


def summarise(cases: Mapping[str, dict]) -> dict:
    """Mean of every metric over the cases in which it is defined.

    Returns:
        ``{metric: mean, "n": cases, "failures": cases with one empty mask, "undefined": cases without a Dice,
        "auc_undefined": cases without an AUC, if there are any with probabilities}``. Failures
        are "missed" (nothing predicted) or "false_alarms" (nothing there); with several labels these two are in
        ``"labels": {name: the same}``.

    Raises:
        ValueError: no case.
    """
    if not cases:
        raise ValueError("no case to summarise")
    values = list(cases.values())
    summary: dict = {m: _mean([v[m] for v in values if m in v]) for m in METRICS if any(m in v for v in values)}
    summary["n"] = len(values)
    summary["failures"] = sum(bool(v["failed"]) for v in values)
    summary["undefined"] = sum(math.isnan(v["dice"]) for v in values)
    if "auc" in summary:
        summary["auc_undefined"] = sum(math.isnan(v.get("auc", math.nan)) for v in values)
    if "hd95_unit" in values[0]:
        summary["hd95_unit"] = values[0]["hd95_unit"]
    names = values[0].get("labels", {})
    if not names:
        summary["missed"] = sum(v["tp"] + v["fp"] == 0 < v["fn"] for v in values)
        summary["false_alarms"] = sum(v["tp"] + v["fn"] == 0 < v["fp"] for v in values)
    else:
        summary["labels"] = {name: summarise({c: v["labels"][name] for c, v in cases.items()}) for name in names}
    return summary


def pooled(cases: Mapping[str, dict], rocs: Mapping[str, Roc] | None = None) -> dict:
    """Metrics of all pixels of all cases taken together, as the GKD paper's published test script reports them.

    EVIDENCE: pooling over the test set, and the names Acc, Se, Sp, mIoU, F1, AUC. RECONSTRUCTION: mIoU is the mean of the
    foreground's and the background's IoU. F1 is the Dice of the pooled pixels: large cases weigh more than in the mean
    over cases. Several labels: the mean of the labels' pooled metrics.

    Args:
        rocs: sums of the cases' counts by label name, for "auc".
    """
    if not cases:
        raise ValueError("no case to pool")
    names = next(iter(cases.values())).get("labels", {})
    if names:
        each = [
            pooled({c: v["labels"][name] for c, v in cases.items()}, {name: rocs[name]} if rocs else None) for name in names
        ]
        return {k: _mean([e[k] for e in each]) for k in each[0]}
    tp, fp, fn, tn = (sum(v[c] for v in cases.values()) for c in COUNTS)
    area = {"auc": next(iter(rocs.values())).area()} if rocs else {}
    return area | {
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "miou": _mean([_ratio(tp, tp + fp + fn), _ratio(tn, tn + fp + fn)]),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def _binary_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    counted: np.ndarray | None,
    spacing: Sequence[float] | None,
    tolerance: float,
    cldice_3d: bool,
) -> dict:
    pixels = truth.size
    if counted is not None:
        prediction, truth, pixels = prediction & counted, truth & counted, int(counted.sum())
    tp = int((prediction & truth).sum())
    fp, fn = int(prediction.sum()) - tp, int(truth.sum()) - tp
    tn = pixels - tp - fp - fn
    result = {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "accuracy": _ratio(tp + tn, pixels),
    }
    if truth.ndim == 3 and 1 in truth.shape:  # one slice is a picture: across it every pixel would be surface
        kept = [n > 1 for n in truth.shape]
        spacing = None if spacing is None else [s for s, k in zip(spacing, kept, strict=True) if k]
        prediction, truth = prediction.squeeze(), truth.squeeze()
    result |= surface_metrics(prediction, truth, spacing, tolerance)
    if truth.ndim == 2 or (truth.ndim == 3 and cldice_3d):
        result["cldice"] = centreline_dice(prediction, truth)
    return {**result, "tp": tp, "fp": fp, "fn": fn, "tn": tn, "failed": (tp + fp == 0) != (tp + fn == 0)}


def name_of(label: Region) -> str:
    """A label's or region's name in results: "1", "1+2"."""
    return "+".join(str(int(v)) for v in label) if isinstance(label, _REGION) else str(int(label))


def _ratio(a: float, b: float, otherwise: float = math.nan) -> float:
    return a / b if b else otherwise


def _mean(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan
