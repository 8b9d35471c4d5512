"""Annotations on a feature's grid, and the classes' means by one matrix product instead of a loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# a shorter vector has no direction; 1/length, and with it the gradient, would be noise
_SHORTEST = 1e-6


def resize_labels(target: Tensor, size: Sequence[int]) -> Tensor:
    """Labels `(B, *S)` at another resolution `size`, by nearest neighbours: output i takes input floor(i * S / size).

    The same pixels as ``F.interpolate(mode="nearest")``, which the published implementations use, but without floats.

    Raises:
        ValueError: another number of axes.
    """
    if target.ndim != len(size) + 1:
        raise ValueError(f"labels {tuple(target.shape)} must be (B, *S) for features of size {tuple(size)}")
    for axis, (old, new) in enumerate(zip(target.shape[1:], size, strict=True), start=1):
        if old != new:
            target = target.index_select(axis, torch.arange(new, device=target.device) * old // new)
    return target


def class_masks(target: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """One-hot labels `(B, classes, P)` on the grid and in the dtype of a feature ``like`` `(B, K, *S)`.

    A negative label (not annotated) and one beyond the classes belong to no class.

    Args:
        target: integer labels `(B, *any size)`.

    Raises:
        ValueError: labels of another batch or number of axes, or none at all.
    """
    if target is None:
        raise ValueError("this loss needs the annotation: pass target, integer labels (B, *S)")
    if len(target) != len(like):
        raise ValueError(f"labels {tuple(target.shape)} and features {tuple(like.shape)} differ in the batch")
    labels = resize_labels(target, like.shape[2:]).flatten(1)
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device).unsqueeze(1)).to(like.dtype)


def inverse_length(vectors: Tensor, dim: int) -> Tensor:
    """1 / length of the vectors along ``dim``, which is kept; 0 with a gradient of 0 for one shorter than 1e-6."""
    # vector_norm takes five times as long across a tensor's rows
    square = vectors.square().sum(dim, keepdim=True)
    return torch.where(square > _SHORTEST**2, square.clamp_min(_SHORTEST**2).rsqrt(), 0)


def class_directions(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature of every class and sample, at length 1 (0 for an absent class).

    Args:
        features: `(B, K, P)`.
        masks: `(B, classes, P)`, from :func:`class_masks`.

    Returns:
        `(B, classes, K)`.
    """
    sums = masks @ features.transpose(1, 2)  # the counts cancel
    return sums * inverse_length(sums, 2)
