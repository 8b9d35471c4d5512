"""Model-Specific Alignment Networks (MSAN): a stage's feature as a semantic vector, and back.

An MSAN turns a stage's feature into a semantic vector (``encode``) and back (``reconstruct``, the header). Teacher and
student each have their own; both share the vector's length, so that headers can be exchanged between them. ``length`` is d;
``grid`` the shape of the nodes the vector is spread over, () if it has none; ``summary`` the vector without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_kd.losses.precision import full_precision
from nnunet_kd.networks.layers import CONV, initialise, pool_to, resize, shrink


class VectorMSAN(nn.Module):
    """The published form: one number per channel, by an MLP over the channel's pixels.

    EVIDENCE: ``(B, C, N) -> Linear N->hidden -> GELU -> Linear hidden->1`` and, for the header,
    ``Linear 1->hidden -> GELU -> Linear hidden->N``, one MLP for all channels (published code, 2-D, C = 512, N = 256).
    RECONSTRUCTION: the 1x1 projections between C and ``dim``, without which teacher and student could not share a
    ``dim``; pooling of features with too many pixels; 3-D.

    Args:
        channels: C of the stage.
        spatial: the stage's spatial shape S at the training patch size.
        dim: length d of the vector.
        hidden: width of the MLPs.
        max_nodes: pixels the MLP may see. Features with more are average-pooled, largest axis first.
    """

    def __init__(self, channels: int, spatial: Sequence[int], dim: int, hidden: int = 64, max_nodes: int = 4096) -> None:
        super().__init__()
        self.spatial = tuple(int(n) for n in spatial)
        self.pooled, self.grid = shrink(self.spatial, max_nodes), ()
        self.dim = self.length = dim
        nodes, conv = math.prod(self.pooled), CONV[len(self.spatial)]
        self.project = conv(channels, dim, 1)
        self.squeeze = nn.Sequential(nn.Linear(nodes, hidden), nn.GELU(), nn.Linear(hidden, 1))
        header = nn.Linear(1, hidden)
        self.expand = nn.Sequential(header, nn.GELU(), nn.Linear(hidden, nodes))
        self.restore = conv(dim, channels, 1)
        initialise(self)
        # spread the kinks of the header's hidden units over the range of z: all at 0 would leave two distinct functions
        nn.init.uniform_(header.bias, -1, 1)

    @full_precision
    def encode(self, feature: Tensor) -> Tensor:
        """Feature `(B, C, *S)` of any spatial shape -> semantic vector `(B, d)`."""
        nodes = self.project(pool_to(feature, self.pooled)).flatten(2)
        return self.squeeze(nodes).squeeze(-1)

    @full_precision
    def reconstruct(self, vector: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Vector `(B, d)` -> feature `(B, C, *size)`; ``size`` is the built spatial shape unless given."""
        maps = self.expand(vector.unsqueeze(-1)).unflatten(-1, self.pooled)
        return resize(self.restore(maps), size or self.spatial)

    def summary(self, vector: Tensor) -> Tensor:
        """Vector `(B, d)` as it is."""
        return vector


class SpatialMSAN(nn.Module):
    """Keeps a coarse grid: the vector is q numbers at each of its nodes. RECONSTRUCTION (ours, not the paper's).

    One number per channel cannot say where a structure lies, so headers fed by it give a decoder little to work on.

    Args:
        channels: C of the stage.
        spatial: the stage's spatial shape S at the training patch size.
        dim: length d of the vector, a multiple of the number of grid nodes.
        grid: nodes per axis; an axis shorter than that keeps its size.
        hidden: width of the node MLP and of the header.

    Raises:
        ValueError: ``dim`` is not a multiple of the number of nodes.
    """

    def __init__(self, channels: int, spatial: Sequence[int], dim: int, grid: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.spatial = tuple(int(n) for n in spatial)
        self.grid = tuple(min(grid, n) for n in self.spatial)
        self.dim = self.length = dim
        nodes, conv = math.prod(self.grid), CONV[len(self.spatial)]
        if dim % nodes:
            shape = "x".join(map(str, self.grid))
            raise ValueError(
                f"msan dim {dim} cannot be spread over the {shape} = {nodes} nodes of the spatial grid: "
                f"use a multiple of {nodes}, e.g. {math.ceil(dim / nodes) * nodes}"
            )
        per_node = dim // nodes
        self.project = conv(channels, per_node, 1)
        self.mix = nn.Sequential(conv(per_node, hidden, 1), nn.GELU(), conv(hidden, per_node, 1))
        self.restore = nn.Sequential(conv(per_node, hidden, 3, padding=1), nn.GELU(), conv(hidden, channels, 1))
        initialise(self)

    @full_precision
    def encode(self, feature: Tensor) -> Tensor:
        """Feature `(B, C, *S)` of any spatial shape -> semantic vector `(B, d)`."""
        # pooling and the 1x1 projection commute; pooling first is cheaper
        return self.mix(self.project(pool_to(feature, self.grid))).flatten(1)

    @full_precision
    def reconstruct(self, vector: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Vector `(B, d)` -> feature `(B, C, *size)`; ``size`` is the built spatial shape unless given."""
        maps = vector.reshape(vector.shape[0], -1, *self.grid)
        return self.restore(resize(maps, size or self.spatial))

    def summary(self, vector: Tensor) -> Tensor:
        """Vector `(B, d)` as it is: its few nodes are part of what it says."""
        return vector


class MapMSAN(nn.Module):
    """Keeps every pixel of the stage: ``dim`` numbers each. RECONSTRUCTION (ours, not the paper's).

    Thin structures live in the skip connections at full resolution; a vector or a coarse grid cannot carry them.

    Args:
        channels: C of the stage.
        spatial: the stage's spatial shape S at the training patch size.
        dim: numbers per pixel; the vector's length is ``d = dim * prod(S)``.
        hidden: width of the header (1x1 convolutions: anything larger would cost as much as the network's own stage).
    """

    def __init__(self, channels: int, spatial: Sequence[int], dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.spatial = self.grid = tuple(int(n) for n in spatial)
        self.dim, self.length = dim, dim * math.prod(self.grid)
        conv = CONV[len(self.spatial)]
        self.project = conv(channels, dim, 1)
        self.restore = nn.Sequential(conv(dim, hidden, 1), nn.GELU(), conv(hidden, channels, 1))
        initialise(self)

    @full_precision
    def encode(self, feature: Tensor) -> Tensor:
        """Feature `(B, C, *S)` of the built spatial shape -> semantic vector `(B, d)`."""
        return self.project(pool_to(feature, self.grid)).flatten(1)

    @full_precision
    def reconstruct(self, vector: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Vector `(B, d)` -> feature `(B, C, *size)`; ``size`` is the built spatial shape unless given."""
        return resize(self.restore(vector.reshape(len(vector), -1, *self.grid)), size or self.spatial)

    def summary(self, vector: Tensor) -> Tensor:
        """Vector `(B, d)` -> mean over the pixels `(B, dim)`."""
        return vector.reshape(len(vector), self.dim, -1).mean(-1)


KINDS: dict[str, type[nn.Module]] = {"vector": VectorMSAN, "spatial": SpatialMSAN, "map": MapMSAN}


def build_msan(kind: str, channels: int, spatial: Sequence[int], dim: int, hidden: int = 64, **options: Any) -> nn.Module:
    """The MSAN called ``kind`` for a stage of ``channels`` channels and spatial shape ``spatial``.

    Args:
        kind: a name in :data:`KINDS`; anything with ``encode`` and ``reconstruct`` can be added there.
        channels, spatial, dim, hidden, options: passed on.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f'unknown msan kind "{kind}", use one of {", ".join(KINDS)}')
    return KINDS[kind](channels, spatial, dim, hidden=hidden, **options)
