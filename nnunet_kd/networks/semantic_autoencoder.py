"""The semantic autoencoder (P-SAE): an annotation as a vector, which ACT holds the MSANs' vectors to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.precision import full_precision
from nnunet_kd.networks.layers import CONV, POOL, initialise, pool_to, resize


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

    mean: Tensor
    std: Tensor
    batches: Tensor

    def __init__(
        self, num_labels: int, spatial_dims: int, dim: int, width: int = 16, pools: int = 3, regions: bool = False
    ) -> None:
        super().__init__()
        self.regions = regions
        conv = CONV[spatial_dims]
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
        initialise(self, gain=2**0.5)
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
            x = POOL[x.ndim - 2](x, factor, ceil_mode=True, count_include_pad=False)
            x = F.gelu(conv(x))
        return self.to_vector(pool_to(self.squeeze(x), self.code_grid).flatten(1))

    @full_precision
    def decode(self, vector: Tensor, size: Sequence[int]) -> Tensor:
        """Vector `(B, d)`, not standardised -> logits `(B, L, *size)`."""
        x = F.gelu(self.from_vector(vector)).reshape(vector.shape[0], -1, *self.code_grid)
        for conv, target in zip(self.up, self._sizes(size)[::-1], strict=True):
            x = F.gelu(conv(resize(x, target)))
        # the last doubling acts on the logits: a convolution at full resolution would cost more than all others
        return resize(self.head(x), size)

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
