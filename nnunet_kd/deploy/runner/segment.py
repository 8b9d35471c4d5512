"""From logits to the segmentation of the whole image, a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .memory import Memory
from .model import Model
from .preprocess import Prepared
from .resample import Resampler, ranges, separate_axis


def segment(
    logits: np.ndarray, prepared: Prepared, model: Model, memory: Memory, probabilities: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits (K, *S) float16 of the network's grid to labels (Z, Y, X) of the image; with `probabilities` also (K, Z, Y, X).

    The logits are resampled, then thresholded; outside the cropped region is background.
    """
    resampling = model.logits_resampling
    axis = separate_axis(prepared.network_spacing, prepared.spacing, resampling)
    resample = Resampler(logits.shape[1:], prepared.cropped_shape, axis, resampling)
    bounds = [resample.bounds(channel) for channel in logits]
    rounded = resampling.keep_type or resample.nothing_to_do
    kind = np.uint8 if model.largest_label < 255 else np.uint16
    whole = memory.zeros(prepared.shape_before_crop, kind)
    labels = whole[prepared.crop]
    maps = None
    if probabilities:
        maps = memory.zeros((model.outputs, *prepared.shape_before_crop), np.float32)
        if model.regions_class_order is None:
            maps[0] = 1
    for start, stop in ranges(resample.target):

        def channel(k: int, start: int = start, stop: int = stop) -> np.ndarray:
            values = resample.slices(logits[k], start, stop, bounds[k])
            return values.astype(np.float16).astype(np.float32) if rounded else values

        if maps is not None:
            part_maps = _nonlinearity(np.stack([channel(k) for k in range(model.outputs)]), model)
            maps[(slice(None), *prepared.crop)][:, start:stop] = part_maps
            labels[start:stop] = _labels(part_maps.__getitem__, model, 0.5, kind)
        else:
            labels[start:stop] = _labels(channel, model, 0.0, kind)
    whole = np.ascontiguousarray(whole.transpose(model.transpose_backward))
    return whole, None if maps is None else maps.transpose(0, *(a + 1 for a in model.transpose_backward))


def _labels(channel: Callable[[int], np.ndarray], model: Model, threshold: float, kind: type) -> np.ndarray:
    """The largest channel's number, the first of equals; for regions the last in their order that exceeds `threshold`."""
    best = channel(0)
    if model.regions_class_order is not None:
        labels = np.zeros(best.shape, kind)
        for k, label in enumerate(model.regions_class_order):
            labels[(best if k == 0 else channel(k)) > threshold] = label
        return labels
    labels = np.zeros(best.shape, kind)
    for k in range(1, model.outputs):
        values = channel(k)
        larger = values > best
        labels[larger] = k
        if k + 1 < model.outputs:
            best = np.where(larger, values, best)
    return labels


def _nonlinearity(logits: np.ndarray, model: Model) -> np.ndarray:
    if model.regions_class_order is not None:
        return 1 / (1 + np.exp(-logits))
    exponentials = np.exp(logits - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)
