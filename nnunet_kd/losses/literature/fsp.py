"""FSP: how the channels of one stage go together with those of a later one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features, match_channels
from nnunet_kd.losses.precision import full_precision

Pair = Sequence[Tensor]


class FSP(Loss):
    r"""Squared difference of the flow matrices between two stages, mean over samples and entries.

    .. math:: L = \mathrm{mean} (G^s - G^t)^2, \quad G = \frac{1}{P} \sum_i f^1_i (f^2_i)^T

    Two stages of unequal size are pooled to the smaller grid by adaptive max pooling. Where the student's channels
    differ from the teacher's, its pooled f1 and f2 go through learned 1x1 convolutions without bias first (ours: the
    publication needs equal channels).

    Source: Yim et al., "A gift from knowledge distillation", CVPR 2017. Weight 50 is RepDistiller's (Tian et al., ICLR
    2020, for classification), with the same mean.

    Args:
        student_channels, teacher_channels: the channels of f1 and of f2.

    Raises:
        ValueError: not two numbers each, or a number below 1.
    """

    name = "fsp"
    reads = "pairs"
    weight = 50.0

    def __init__(self, *, student_channels: tuple[int, int], teacher_channels: tuple[int, int]) -> None:
        super().__init__()
        for channels in (student_channels, teacher_channels):
            if not isinstance(channels, Sequence) or len(channels) != 2:
                raise ValueError(f"FSP needs the channels of two stages, as (64, 128), not {channels}")
        self.channels = list(zip(student_channels, teacher_channels, strict=True))
        # they act on the rows and the columns of G, which is one more "image" per sample: hence 2 axes
        self.adapters = nn.ModuleList(match_channels(*pair, dims=2) for pair in self.channels)

    @full_precision
    def forward(self, student: Pair, teacher: Pair, target: Tensor | None = None) -> Tensor:
        """Pairs of features `(B, K1, *S1)`, `(B, K2, *S2)` of both networks -> scalar; ``target`` is not used."""
        for pair in (student, teacher):
            if isinstance(pair, Tensor) or len(pair) != 2:
                raise ValueError("FSP compares pairs of stages: student and teacher have to be (f1, f2)")
        for s, t, channels in zip(student, teacher, self.channels, strict=True):
            check_features(s, t, *channels)
        return F.mse_loss(self._adapt(_flow(*student)), _flow(*(f.detach() for f in teacher)))

    def _adapt(self, flow: Tensor) -> Tensor:
        # W1 G W2^T is the flow of W1 f1 and W2 f2, without a convolution over the pixels
        flow = flow.unsqueeze(-1)
        for adapter in self.adapters:  # rows, then columns
            flow = adapter(flow).transpose(1, 2)
        return flow.squeeze(-1)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """G `(B, K1, K2)`."""
    grid = tuple(map(min, first.shape[2:], second.shape[2:]))
    first, second = (_pool(features, grid).flatten(2) for features in (first, second))
    return torch.bmm(first, second.transpose(1, 2)) / first.shape[2]


def _pool(features: Tensor, grid: tuple[int, ...]) -> Tensor:
    if features.shape[2:] == grid:
        return features
    return (F.adaptive_max_pool2d if len(grid) == 2 else F.adaptive_max_pool3d)(features, grid)
