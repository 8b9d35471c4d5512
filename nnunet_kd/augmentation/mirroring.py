"""Mirrored input for the teacher: what it says of a patch and of its mirror image differs, and their mean is the better target.

nnU-Net averages them when it predicts. In training the mean costs a forward per copy (``mirrored_logits``); patches mirrored
at random have the same mean over the steps, for nothing (``mirror_rows``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

Axes = tuple[int, ...]


def mirrorings_of(spatial_axes: Sequence[int]) -> list[Axes]:
    """Every way to mirror along some of the spatial axes (0 the first of `S`), as axes of a `(B, C, *S)` tensor."""
    axes = [axis + 2 for axis in spatial_axes]
    return [chosen for n in range(1, len(axes) + 1) for chosen in combinations(axes, n)]


def draw_mirrorings(all_of_them: Sequence[Axes], count: int, generator: torch.Generator) -> list[Axes]:
    """``count`` of the mirrorings, none twice."""
    order = torch.randperm(len(all_of_them), generator=generator, device=generator.device)
    return [all_of_them[i] for i in order[:count].tolist()]


def mirrored_logits(network: Callable[[Tensor], Tensor], data: Tensor, logits: Tensor, mirrorings: Sequence[Axes]) -> Tensor:
    """The mean of ``logits`` and of the logits of mirrored copies, each mirrored back. Logits, since nnU-Net averages those.

    Args:
        data: `(B, C, *S)`; ``logits``: the network's for it, `(B, L, *S)`.

    Returns:
        `(B, L, *S)`, float32.
    """
    total = logits.float()
    for axes in mirrorings:
        total = total + network(data.flip(axes)).flip(axes)
    return total / (len(mirrorings) + 1)


def draw_rows(axes: Sequence[int], batch: int, generator: torch.Generator) -> Tensor:
    """Which rows of a batch to mirror along each of the spatial axes: `(axes, B)`, True in half of them."""
    return torch.rand(len(axes), batch, generator=generator) < 0.5


def mirror_rows(x: Tensor, axes: Sequence[int], drawn: Tensor) -> Tensor:
    """Mirror rows of ``x`` `(B, C, *S)` along spatial axes (0 the first of `S`) as drawn; once more, and all is as it was.

    ``drawn`` may know more rows than ``x`` has: the first ones are meant.
    """
    for axis, rows in zip(axes, drawn[:, : len(x)].to(x.device), strict=True):
        x = torch.where(rows.view(-1, *[1] * (x.ndim - 1)), x.flip(axis + 2), x)
    return x
