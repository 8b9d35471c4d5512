"""What the MSANs and the semantic autoencoder are built of, in two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_POOL: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


def shrink(spatial: tuple[int, ...], max_nodes: int) -> tuple[int, ...]:
    """The shape S halved, largest axis first, until at most ``max_nodes`` pixels are left."""
    grid = list(spatial)
    while math.prod(grid) > max_nodes:
        largest = grid.index(max(grid))
        grid[largest] = math.ceil(grid[largest] / 2)
    return tuple(grid)


def pool_to(feature: Tensor, size: Sequence[int]) -> Tensor:
    """A feature `(B, C, *S)` averaged to `(B, C, *size)`."""
    if tuple(feature.shape[2:]) == tuple(size):
        return feature
    return _ADAPTIVE_POOL[feature.ndim - 2](feature, tuple(size))


def resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    """A feature `(B, C, *S)` interpolated linearly to `(B, C, *size)`."""
    if tuple(feature.shape[2:]) == tuple(size):
        return feature
    return F.interpolate(feature, tuple(size), mode=_LINEAR[feature.ndim - 2], align_corners=False)


def initialise(module: nn.Module, gain: float = 1.0) -> None:
    """Gaussian weights that keep the variance from layer to layer; torch's default shrinks it about threefold each time."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=gain * fan_in**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
