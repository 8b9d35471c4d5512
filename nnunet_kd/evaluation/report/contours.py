"""Cases as pictures: the outlines of annotation and predictions on the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import ndimage

from nnunet_kd.evaluation.report.figures import new_figure, save_figure
from nnunet_kd.utils.errors import KDError

TRUTH, PREDICTION = "#56B4E9", "#E69F00"


@dataclass(frozen=True)
class CasePicture:
    """One row of `contour_figure`: an image ``(H, W)``, ``(H, W, 3)`` or ``(D, H, W)`` and label maps ``(H, W)`` or
    ``(D, H, W)``."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    dice: Mapping[str, float]


def best_median_worst(dice: Mapping[str, float]) -> list[tuple[str, str]]:
    """``[("best", case), ("median", case), ("worst", case)]``; fewer where there are fewer cases with a Dice."""
    order = sorted((c for c in dice if not math.isnan(dice[c])), key=lambda c: -dice[c])
    if len(order) < 3:
        return list(zip(("best", "worst") if len(order) == 2 else ("only case",), order, strict=False))
    return [("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])]


def contour_figure(rows: Sequence[CasePicture], file: Path) -> Path:
    """Whole image with the truth, then one enlarged panel per model with the outlines of truth and prediction.

    Large organs are enlarged to their bounding box; thin structures to a part on which the models err, because their
    outlines are not to be seen at full view. Volumes: the slice with most of the truth.

    Raises:
        KDError: an image is less than two pixels wide.
    """
    models = list(rows[0].predictions)
    figure = new_figure(2.35 * (len(models) + 1), 2.55 * len(rows) + 0.4)
    axes = figure.subplots(len(rows), len(models) + 1, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        image, truth, predictions = _plane(row)
        top, left, side = _window(truth, list(predictions.values()))
        enlarged = image[top : top + side, left : left + side]
        for axis, shown in zip(line, [image, *[enlarged] * len(models)], strict=True):
            low, high = np.percentile(shown, (0.5, 99.5))
            axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
            axis.set_axis_off()
        _outline(line[0], truth, TRUTH, 0.5)
        line[0].add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, color="white", linewidth=1.2))
        line[0].set_title(row.title, fontsize=9)
        for axis, name in zip(line[1:], models, strict=True):
            # the thin one on top: where both agree, both are seen
            _outline(axis, predictions[name], PREDICTION, 1.9)
            _outline(axis, truth, TRUTH, 0.8)
            axis.set_xlim(left - 0.5, left + side - 0.5)
            axis.set_ylim(top + side - 0.5, top - 0.5)
            value = row.dice[name]
            axis.set_title(f"{name}   {'no Dice' if math.isnan(value) else f'Dice {value:.3f}'}", fontsize=9)
    handles = [
        Line2D([], [], color=TRUTH, linewidth=1.2, label="annotation"),
        Line2D([], [], color=PREDICTION, linewidth=3, label="prediction"),
    ]
    figure.legend(handles=handles, loc="upper left", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, file, top=1 - 0.4 / figure.get_figheight())


def _outline(axis: Axes, labels: np.ndarray, colour: str, width: float) -> None:
    for value in np.unique(labels[labels > 0]):
        axis.contour(labels == value, levels=[0.5], colors=[colour], linewidths=width)


def _plane(row: CasePicture) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    image, truth, predictions = row.image, row.truth, dict(row.predictions)
    if truth.ndim == 3:
        image = image[0] if image.ndim == 4 else image  # the first of several channels
        across = 0 if min(truth.shape[1:]) > 1 else 1 + int(np.argmin(truth.shape[1:]))  # a single slice is shown whole
        image, truth = np.moveaxis(image, across, 0), np.moveaxis(truth, across, 0)
        predictions = {n: np.moveaxis(p, across, 0) for n, p in predictions.items()}
        foreground = (truth > 0).sum((1, 2))
        if not foreground.any():
            foreground = sum((p > 0).sum((1, 2)) for p in predictions.values())
        z = int(foreground.argmax())
        image, truth, predictions = image[z], truth[z], {n: p[z] for n, p in predictions.items()}
    if min(truth.shape) < 2:
        raise KDError(f"{row.title} is a line of {'x'.join(map(str, row.truth.shape))}, which has no outlines to draw")
    return image, truth, predictions


def _window(truth: np.ndarray, predictions: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Top, left and side of the square to enlarge."""
    height, width = truth.shape
    seen = np.any([truth > 0, *(p > 0 for p in predictions)], axis=0)
    if not seen.any():
        return 0, 0, max(height, width)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    extent = int(max(np.ptp(rows), np.ptp(columns))) + 1
    thickness = 2 * ndimage.distance_transform_edt(np.pad(seen, 1)).max()
    if thickness > 0.15 * extent:  # an organ, not a net of vessels
        side = min(max(height, width), round(1.2 * extent) + 4)
        centre = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    else:
        side = max(32, round(0.25 * extent))
        wrong = np.sum([(p > 0) != (truth > 0) for p in predictions], axis=0).astype(float)
        # much error and much annotation, or the window would show specks in an empty corner; zeros beyond the rim keep it
        # inside the image
        error, annotated = (ndimage.uniform_filter(x, side, mode="constant") for x in (wrong, (truth > 0).astype(float)))
        score = np.sqrt(error.clip(0) * annotated.clip(0))
        centre = np.unravel_index((score if score.any() else annotated).argmax(), wrong.shape)
    top, left = (int(np.clip(c - side // 2, 0, max(0, n - side))) for c, n in zip(centre, (height, width), strict=True))
    return top, left, side
