"""DIST: correlations of the predictions, within every pixel and within every class."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_logits
from nnunet_kd.losses.precision import full_precision

_EPS = 1e-8  # the published one, in the correlation's denominator
# a row of a smaller sum of squares around its mean says nothing, and _EPS would dominate its correlation
_FLAT = 1e-6


class DIST(Loss):
    r"""Distillation from a stronger teacher: the order of the predictions instead of their values.

    .. math:: L = T^2 \left[ \beta (1 - \mathrm{mean}_i\, r(p^s_{i\cdot}, p^t_{i\cdot}))
        + \gamma (1 - \mathrm{mean}_c\, r(p^s_{\cdot c}, p^t_{\cdot c})) \right], \quad p = \mathrm{softmax}(z / T)

    with Pearson's correlation r: over the classes within each of the N*P pixels, and over all N*P pixels within each class.
    Pixels and classes in which the teacher is constant have no correlation and are left out of the means (the original
    counts them as 0). Where the student is constant the value counts, but passes no gradient (ours): its slope grows as 1
    over the spread, and in bfloat16 many pixels of a young student prefer no class at all.

    With two classes the correlation within a pixel can only be 1 or -1: whether both networks prefer the same class. It has
    no gradient, and only the second term teaches. The same holds for a single region.

    Source: Huang et al., "Knowledge distillation from a stronger teacher", NeurIPS 2022; beta = gamma = 1 and T = 1 there
    for segmentation, at the same reduction.

    Args:
        beta: weight of the correlation within the pixels.
        gamma: weight of the correlation within the classes.
        temperature: T > 0.
        regions: the channels are overlapping regions with a sigmoid each. A pixel's row then holds (q, 1 - q) of every
            region, which makes its correlation the cosine of the regions' q - 1/2.
    """

    name = "dist"
    reads = "logits"
    weight = 1.0

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, regions: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"the temperature of DIST must be positive, got {temperature}")
        if beta < 0 or gamma < 0 or beta + gamma == 0:
            raise ValueError(f"beta and gamma of DIST must not be negative, nor both 0, got {beta} and {gamma}")
        self.beta, self.gamma, self.temperature, self.regions = beta, gamma, temperature, regions

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits `(B, C, *S)` of student and teacher (detached) -> scalar; ``target`` is not read.

        Raises:
            ValueError: shapes that differ.
        """
        check_logits(student, teacher)
        s, t = self._predict(student), self._predict(teacher.detach())
        # a softmax's row has the mean 1/C, and (q, 1 - q) has the mean 1/2
        middle = 0.5 if self.regions else 1 / s.shape[1]
        within_pixels = _decorrelation(s - middle, t - middle, [1])
        within_classes = _decorrelation(s - s.mean([0, 2], keepdim=True), t - t.mean([0, 2], keepdim=True), [0, 2])
        return self.temperature**2 * (self.beta * within_pixels + self.gamma * within_classes)

    def _predict(self, logits: Tensor) -> Tensor:
        logits = logits.flatten(2) / self.temperature
        return logits.sigmoid() if self.regions else logits.softmax(1)


def _decorrelation(student: Tensor, teacher: Tensor, axes: list[int]) -> Tensor:
    # 1 - correlation of centred values along the axes, mean over the rest
    square_s, square_t = student.square().sum(axes), teacher.square().sum(axes)
    counts = square_t > _FLAT
    # a floor under the root, whose slope at 0 is infinite
    lengths = (square_s * square_t).clamp_min(1e-24).sqrt()
    correlation = (student * teacher).sum(axes) / (lengths + _EPS)
    correlation = torch.where(square_s > _FLAT, correlation, correlation.detach())
    return ((1 - correlation) * counts).sum() / counts.sum().clamp_min(1)
