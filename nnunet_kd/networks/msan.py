"""Model-Specific Alignment Networks (MSAN) and the semantic autoencoder (P-SAE).

An MSAN turns a stage's feature into a semantic vector (``encode``) and back (``reconstruct``, the header). Teacher and
student each have their own; both share the vector's length, so that headers can be exchanged between them. ``length`` is d;
``grid`` the shape of the nodes the vector is spread over, () if it has none; ``summary`` the vector without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.precision import full_precision

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_ADAPTIVE_POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


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

    def __init__(self, channels: int, spatial: Sequence[int], dim: int, hidden: int = 64, max_nodes: int = 4096):
        super().__init__()
        self.spatial = tuple(int(n) for n in spatial)
        self.pooled, self.grid = _shrink(self.spatial, max_nodes), ()
        self.dim = self.length = dim
        nodes, conv = math.prod(self.pooled), _CONV[len(self.spatial)]
        self.project = conv(channels, dim, 1)
        self.squeeze = nn.Sequential(nn.Linear(nodes, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.expand = nn.Sequential(nn.Linear(1, hidden), nn.GELU(), nn.Linear(hidden, nodes))
        self.restore = conv(dim, channels, 1)
        _initialise(self)
        # spread the kinks of the header's hidden units over the range of z: all at 0 would leave two distinct functions
        nn.init.uniform_(self.expand[0].bias, -1, 1)

    @full_precision
    def encode(self, feature: Tensor) -> Tensor:
        """Feature `(B, C, *S)` of any spatial shape -> semantic vector `(B, d)`."""
        nodes = self.project(_pool_to(feature, self.pooled)).flatten(2)
        return self.squeeze(nodes).squeeze(-1)

    @full_precision
    def reconstruct(self, vector: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Vector `(B, d)` -> feature `(B, C, *size)`; ``size`` is the built spatial shape unless given."""
        maps = self.expand(vector.unsqueeze(-1)).unflatten(-1, self.pooled)
        return _resize(self.restore(maps), size or self.spatial)

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

    def __init__(self, channels: int, spatial: Sequence[int], dim: int, grid: int = 4, hidden: int = 64):
        super().__init__()
        self.spatial = tuple(int(n) for n in spatial)
        self.grid = tuple(min(grid, n) for n in self.spatial)
        self.dim = self.length = dim
        nodes, conv = math.prod(self.grid), _CONV[len(self.spatial)]
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
        _initialise(self)

    @full_precision
    def encode(self, feature: Tensor) -> Tensor:
        """Feature `(B, C, *S)` of any spatial shape -> semantic vector `(B, d)`."""
        # pooling and the 1x1 projection commute; pooling first is cheaper
        return self.mix(self.project(_pool_to(feature, self.grid))).flatten(1)

    @full_precision
    def reconstruct(self, vector: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Vector `(B, d)` -> feature `(B, C, *size)`; ``size`` is the built spatial shape unless given."""
        maps = vector.reshape(vector.shape[0], -1, *self.grid)
        return self.restore(_resize(maps, size or self.spatial))

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

    def __init__(self, channels: int, spatial: Sequence[int], dim: int, hidden: int = 64):
        super().__init__()
        self.spatial = self.grid = tuple(int(n) for n in spatial)
        self.dim, self.length = dim, dim * math.prod(self.grid)
        conv = _CONV[len(self.spatial)]
        self.project = conv(channels, dim, 1)
        self.restore = nn.Sequential(conv(dim, hidden, 1), nn.GELU(), conv(hidden, channels, 1))
        _initialise(self)

    @full_precision
    def encode(self, feature: Tensor) -> Tensor:
        """Feature `(B, C, *S)` of the built spatial shape -> semantic vector `(B, d)`."""
        return self.project(_pool_to(feature, self.grid)).flatten(1)

    @full_precision
    def reconstruct(self, vector: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Vector `(B, d)` -> feature `(B, C, *size)`; ``size`` is the built spatial shape unless given."""
        return _resize(self.restore(vector.reshape(len(vector), -1, *self.grid)), size or self.spatial)

    def summary(self, vector: Tensor) -> Tensor:
        """Vector `(B, d)` -> mean over the pixels `(B, dim)`."""
        return vector.reshape(len(vector), self.dim, -1).mean(-1)


KINDS: dict[str, type[nn.Module]] = {"vector": VectorMSAN, "spatial": SpatialMSAN, "map": MapMSAN}


def build_msan(kind: str, channels: int, spatial: Sequence[int], dim: int, hidden: int = 64, **options) -> nn.Module:
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


class SemanticAutoencoder(nn.Module):
    """P-SAE: an autoencoder of the annotation, the one input that carries no domain.

    EVIDENCE: a pre-trained autoencoder with three poolings and no skip connections regularises the MSAN's vectors.
    RECONSTRUCTION: its input is the annotation's one-hot map (the paper does not say), its code is a vector as long as
    the MSANs', and that vector is standardised.

    Works for any patch of at least one pixel: an axis is pooled only while it has four pixels or more.

    Args:
        num_labels: L, channels of the one-hot map.
        spatial_dims: 2 or 3.
        dim: length d of the vector.
        width: channels of the first stage; doubled at each further one.
        pools: number of stages, each halves the resolution.
        regions: overlapping regions instead of classes: sigmoid outputs, and a pixel in no region is background.
    """

    # the code's grid: coarse, so that the linear layers stay small, but the vector still knows where things are
    _GRID = 4
    # statistics are exact over the first 1/_MOMENTUM batches, then forget at this rate
    _MOMENTUM = 0.01

    def __init__(self, num_labels: int, spatial_dims: int, dim: int, width: int = 16, pools: int = 3, regions: bool = False):
        super().__init__()
        self.regions = regions
        conv = _CONV[spatial_dims]
        widths = [width * 2**i for i in range(pools)]
        self.code_grid = (self._GRID,) * spatial_dims
        nodes = math.prod(self.code_grid)
        self.down = nn.ModuleList(
            conv(before, after, 3, padding=1) for before, after in zip([num_labels, *widths[:-1]], widths, strict=True)
        )
        self.squeeze = conv(widths[-1], width, 1)
        self.to_vector = nn.Linear(width * nodes, dim)
        self.from_vector = nn.Linear(dim, width * nodes)
        self.up = nn.ModuleList(
            conv(before, after, 3, padding=1) for before, after in zip([width, *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.head = conv(width, num_labels, 1)
        # GELU halves the variance, and here four lie in a row
        _initialise(self, gain=2**0.5)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @full_precision
    def encode(self, onehot: Tensor) -> Tensor:
        """One-hot map `(B, L, *S)`, float -> vector `(B, d)`, not standardised."""
        x = onehot
        for conv in self.down:
            factor = [2 if n >= 4 else 1 for n in x.shape[2:]]
            # ceil: an odd axis must not lose its last pixels
            x = _POOL[x.ndim - 2](x, factor, ceil_mode=True, count_include_pad=False)
            x = F.gelu(conv(x))
        return self.to_vector(_pool_to(self.squeeze(x), self.code_grid).flatten(1))

    @full_precision
    def decode(self, vector: Tensor, size: Sequence[int]) -> Tensor:
        """Vector `(B, d)`, not standardised -> logits `(B, L, *size)`."""
        x = F.gelu(self.from_vector(vector)).reshape(vector.shape[0], -1, *self.code_grid)
        for conv, target in zip(self.up, self._sizes(size)[::-1], strict=True):
            x = F.gelu(conv(_resize(x, target)))
        # the last doubling acts on the logits: a convolution at full resolution would cost more than all others
        return _resize(self.head(x), size)

    def forward(self, onehot: Tensor) -> Tensor:
        """Logits `(B, L, *S)` of the map's reconstruction."""
        return self.decode(self.encode(onehot), onehot.shape[2:])

    @full_precision
    def loss(self, onehot: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cross entropy plus soft Dice loss of the reconstruction, a scalar.

        Args:
            mask: `(B, 1, *S)`, True where the annotation is valid. Without one, classes count where there is a label (the
                ignore label has none), regions everywhere.
        """
        logits = self(onehot)
        if mask is not None:
            valid = mask.to(logits.dtype)
        elif self.regions:
            valid = torch.ones_like(logits[:, :1])
        else:
            valid = (onehot.sum(1, keepdim=True) > 0).to(logits.dtype)
        axes = [0, *range(2, logits.ndim)]
        onehot = onehot * valid
        if self.regions:
            entropies = F.binary_cross_entropy_with_logits(logits, onehot.to(logits.dtype), reduction="none")
            cross_entropy = (entropies * valid).sum() / valid.sum().clamp_min(1)
            probabilities = logits.sigmoid() * valid
        else:
            cross_entropy = -(onehot * F.log_softmax(logits, 1)).sum() / valid.sum().clamp_min(1)
            probabilities = logits.softmax(1) * valid
        overlap, total = (probabilities * onehot).sum(axes), (probabilities + onehot).sum(axes)
        # smoothing by one pixel: a label absent from the batch should cost little and never divide by 0
        dice = (2 * overlap + 1) / (total + 1)
        return cross_entropy + 1 - dice.mean()

    @torch.no_grad()
    @full_precision
    def observe(self, vector: Tensor) -> None:
        """Take vectors `(B, d)` into the running mean and standard deviation. Call it before :meth:`standardise`."""
        self.batches += 1
        rate = (1 / self.batches.to(vector.dtype)).clamp_min(self._MOMENTUM)
        shift = vector.mean(0) - self.mean
        # law of total variance; E[z^2] - mean^2 would cancel where the mean is large
        within = vector.var(0, unbiased=False)
        variance = torch.lerp(self.std.square(), within, rate) + rate * (1 - rate) * shift.square()
        self.mean += rate * shift
        self.std.copy_(variance.sqrt())

    @full_precision
    def standardise(self, vector: Tensor) -> Tensor:
        """Vector `(B, d)` with the observed mean and standard deviation taken out, each dimension on its own."""
        return (vector - self.mean) / self.std.clamp_min(1e-3)

    def _sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        sizes, current = [], tuple(size)
        for _ in self.down:
            current = tuple(math.ceil(n / 2) if n >= 4 else n for n in current)
            sizes.append(current)
        return sizes


def _shrink(spatial: tuple[int, ...], max_nodes: int) -> tuple[int, ...]:
    grid = list(spatial)
    while math.prod(grid) > max_nodes:
        largest = grid.index(max(grid))
        grid[largest] = math.ceil(grid[largest] / 2)
    return tuple(grid)


def _pool_to(feature: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(feature.shape[2:]) == tuple(size):
        return feature
    return _ADAPTIVE_POOL[feature.ndim - 2](feature, tuple(size))


def _resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(feature.shape[2:]) == tuple(size):
        return feature
    return F.interpolate(feature, tuple(size), mode=_LINEAR[feature.ndim - 2], align_corners=False)


def _initialise(module: nn.Module, gain: float = 1.0) -> None:
    # keeps the variance from layer to layer; torch's default shrinks it about threefold each time
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=gain * fan_in**-0.5)
            nn.init.zeros_(layer.bias)
