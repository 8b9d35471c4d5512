"""From an image to the network's input: transpose, crop to the non-zero region, normalise, change the spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import RunnerError
from .images import Image
from .memory import Memory
from .model import Model, Normalization
from .resample import Resampler, new_shape, separate_axis

SMALLEST = 1e-8  # divisor of constant images


@dataclass
class Prepared:
    """The network's input (C, *S) float32, and what is needed to get back to the image."""

    data: np.ndarray
    shape_before_crop: tuple[int, ...]
    crop: tuple[slice, ...]
    cropped_shape: tuple[int, ...]
    spacing: list[float]  # of the image, transposed
    network_spacing: list[float]


def prepare(image: Image, model: Model, memory: Memory) -> Prepared:
    """What nnU-Net's DefaultPreprocessor does to a case without annotation.

    Raises:
        RunnerError: the number of channels is wrong, an RGB image is not one, or no voxel is left at the model's spacing.
    """
    channels = len(model.channel_names)
    if len(image.data) != channels:
        raise RunnerError(
            f"{len(image.data)} input channel{'s' * (len(image.data) != 1)}, but the model reads {channels} "
            f"({', '.join(model.channel_names)}): give one file per channel, CASE_0000, CASE_0001, ..."
        )
    data = image.data.transpose(0, *(axis + 1 for axis in model.transpose_forward))
    spacing = [float(image.spacing[axis]) for axis in model.transpose_forward]
    target = list(model.spacing)
    if len(target) == 2:  # slices of a 2-D model keep their distance
        target = [spacing[0], *target]

    before = data.shape[1:]
    nonzero = data[0] != 0
    for channel in data[1:]:
        nonzero |= channel != 0
    crop = _box(nonzero)
    data = data[(slice(None), *crop)]
    # the holes matter to those who normalise inside the region only; they do not change the box
    masked = any(n.use_mask and n.scheme == "ZScoreNormalization" for n in model.normalization)
    mask = _without_holes(nonzero[crop]) if masked else None

    shape = data.shape[1:]
    resampling = model.data_resampling
    resampled_shape = new_shape(shape, spacing, target)
    if resampling.order is not None and 0 in resampled_shape:
        axis = resampled_shape.index(0)
        raise RunnerError(
            f"too thin along {'zyx'[model.transpose_forward[axis]]}: {shape[axis]} voxel{'s' * (shape[axis] != 1)} of "
            f"{spacing[axis]:g} mm with content, but the model reads voxels of {target[axis]:g} mm: check the image's spacing"
        )
    resample = Resampler(shape, resampled_shape, separate_axis(spacing, target, resampling), resampling)
    prepared = memory.empty((channels, *resample.target), np.float32)
    for channel, (values, scheme) in enumerate(zip(data, model.normalization, strict=True)):
        resample(normalize(values.astype(np.float32), scheme, mask), prepared[channel])
    return Prepared(prepared, before, crop, shape, spacing, target)


def normalize(values: np.ndarray, how: Normalization, mask: np.ndarray | None) -> np.ndarray:
    """One channel, float32, in place. The mask is of the non-zero region (use_mask)."""
    if how.scheme == "ZScoreNormalization":
        if how.use_mask:
            inside = values[mask]
            values[mask] = (inside - inside.mean()) / max(inside.std(), SMALLEST)
        else:
            values -= values.mean()
            # numpy's std() would hold a second array of this size
            squares = sum(float(np.vdot(part, part)) for part in values)
            values /= max(np.float32((squares / values.size) ** 0.5), SMALLEST)
    elif how.scheme == "CTNormalization":
        np.clip(values, how.intensity["percentile_00_5"], how.intensity["percentile_99_5"], out=values)
        values -= how.intensity["mean"]
        values /= max(how.intensity["std"], SMALLEST)
    elif how.scheme == "RescaleTo01Normalization":
        values -= values.min()
        values /= max(values.max(), SMALLEST)
    elif how.scheme == "RGBTo01Normalization":
        if values.min() < 0 or values.max() > 255:
            raise RunnerError(f"values from {values.min():g} to {values.max():g}, but the model reads RGB, 0 to 255")
        values /= 255.0
    elif how.scheme != "NoNormalization":
        raise RunnerError(f"unknown normalisation {how.scheme} in model.json: use the model's own runner")
    return values


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around all True; everything if there is none."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, mask.shape[axis]))
    return tuple(box)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what is False and not connected to the edge of the array over faces."""
    from scipy.ndimage import label

    labels, _ = label(~mask)
    outside = np.zeros(labels.max() + 1, bool)
    for axis in range(mask.ndim):
        for end in (0, -1):
            outside[np.take(labels, end, axis)] = True
    outside[0] = False  # the label of the mask itself
    return ~outside[labels]
