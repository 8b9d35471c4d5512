"""Dice of one case with the foreground's logits raised by an offset: a better segmentation told apart from a readier one.

A network that says "foreground" more readily than another can have the higher Dice and segment no better. At the offset that is
best for each of them this lead is gone, and what is left is segmentation. The best offset is chosen with the annotation of the
very case: nobody knows it in practice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.evaluation.metrics.overlap import Region, name_of

OFFSETS = np.arange(-40, 41) / 10  # 0 is among them


@dataclass(frozen=True)
class CaseLogits:
    """Logits ``(heads, *S)`` that nnU-Net decides on, at the image's own spacing but before its crop is undone.

    ``box``: the crop in the axes of ``transpose``, nnU-Net's order of the axes. Outside of it all is background.
    ``class_order``: label that each head of a network of regions paints, later ones over earlier ones; None for softmax.
    """

    logits: torch.Tensor
    box: tuple[slice, ...]
    transpose: tuple[int, ...]
    class_order: tuple[int, ...] | None = None

    def dice(
        self,
        truth: np.ndarray,
        labels: Sequence[Region],
        counted: np.ndarray | None = None,
        offsets: Sequence[float] = OFFSETS,
    ) -> dict[str, np.ndarray]:
        """Dice per offset for each of ``labels``, by name. NaN where truth and prediction are both empty.

        Args:
            truth: label map ``(*S)`` of the whole image, as nnU-Net's reader gives it.
            labels: foreground labels, or regions.
            counted: boolean ``(*S)``; other pixels do not count.
            offsets: ascending; added to every foreground logit, of regions to every logit.
        """
        truth = truth.transpose(self.transpose)
        inside = truth[self.box]
        inside_counted = None if counted is None else counted.transpose(self.transpose)[self.box]
        limits = -np.asarray(offsets, float)[::-1]  # marked is what lies above
        marked = list(self._layers(float(limits[0]), inside, inside_counted, limits))
        if counted is not None:
            truth = np.where(counted.transpose(self.transpose), truth, 0)  # background is in no label
        dice_by_label = {}
        for label in labels:
            members = [label] if isinstance(label, int | np.integer) else list(label)
            annotated = int(np.isin(truth, members).sum())
            predicted, right = np.zeros(len(limits)), np.zeros(len(limits))
            for value, sign, bins, true_labels in marked:
                if value in members:
                    predicted += sign * _above(bins, len(limits))
                    right += sign * _above(bins[np.isin(true_labels, members)], len(limits))
            with np.errstate(invalid="ignore"):
                dice_by_label[name_of(label)] = (2 * right / (predicted + annotated))[::-1]
        return dice_by_label

    def _layers(
        self, lowest: float, truth: np.ndarray, counted: np.ndarray | None, limits: np.ndarray
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """What is marked as ``(label, sign, bins, true labels)``: pixels with so many of the limits below their score."""

        def layer(score: torch.Tensor, near: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
            return np.searchsorted(limits, score[near].numpy(), side="left"), truth[near.numpy()]

        allowed = True if counted is None else torch.from_numpy(np.ascontiguousarray(counted))
        if self.class_order is None:
            # an offset does not change which label is the first of the foreground, only whether it beats the background
            background = self.logits[0].float()
            first, winner = self.logits[1].float(), torch.ones_like(background, dtype=torch.uint8)
            for i in range(2, len(self.logits)):
                other = self.logits[i].float()
                winner[other > first] = i
                first = torch.maximum(first, other)
            score = first - background
            for i in range(1, len(self.logits)):
                near = (score > lowest) & (winner == i) & allowed
                yield i, 1, *layer(score, near)
            return
        # a head's label stays where it is above 0 and no later head is
        covered = None
        for i in reversed(range(len(self.logits))):
            head_logits = self.logits[i].float()
            reached = head_logits if covered is None else torch.maximum(head_logits, covered)
            yield self.class_order[i], 1, *layer(reached, (reached > lowest) & allowed)
            if covered is not None:
                yield self.class_order[i], -1, *layer(covered, (covered > lowest) & allowed)
            covered = reached


def dice_curves(
    predictor: nnUNetPredictor,
    domain: Domain,
    case: str,
    logits: CaseLogits,
    labels: list[Region],
    ignore_label: int | None,
    **options: Sequence[float],
) -> dict[str, np.ndarray]:
    """Dice over offsets of one case of a domain, inside its field of view. ``options``: of `CaseLogits.dice`."""
    read = predictor.plans_manager.image_reader_writer_class().read_seg  # the axes and orientation of the logits
    file = f"{case}{domain.file_ending}"
    truth = read(str(domain.labels / file))[0][0]
    counted = None if domain.fov is None else read(str(domain.fov / file))[0][0] > 0
    if ignore_label is not None:
        counted = truth != ignore_label if counted is None else counted & (truth != ignore_label)
    return logits.dice(truth, labels, counted, **options)


def best_offset(curves: dict[str, np.ndarray], dice: float, offsets: Sequence[float] = OFFSETS) -> tuple[float, float]:
    """The highest Dice over the offsets, mean over the labels that have one, and its offset; of equals the nearest to 0.

    Args:
        dice: of nnU-Net's own prediction, which stands for offset 0.

    Returns:
        NaN, NaN where ``dice`` is NaN: there is no annotation to choose an offset with.
    """
    if math.isnan(dice):
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no label has a Dice
        mean = np.nanmean(np.stack(list(curves.values())), axis=0)
    offsets = np.asarray(offsets, float)
    best, at = dice, 0.0
    for i in np.argsort(np.abs(offsets), kind="stable"):
        if mean[i] > best + 1e-9:
            best, at = float(mean[i]), float(offsets[i])
    return best, at


def _above(bins: np.ndarray, limits: int) -> np.ndarray:
    """How many pixels lie above each of the limits."""
    counts = np.bincount(bins, minlength=limits + 1)
    return counts[::-1].cumsum()[::-1][1:]
