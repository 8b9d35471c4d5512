"""Logit distillation: the student's prediction against the teacher's, pixel by pixel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_logits
from nnunet_kd.losses.precision import full_precision

_SMALLEST_FREQUENCY = 1e-4


@full_precision
def logit_kd(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, regions: bool = False, mask: Tensor | None = None
) -> Tensor:
    r"""Kullback-Leibler divergence of the student's from the teacher's softened prediction.

    .. math:: L = T^2 \cdot \mathrm{mean}_i \sum_c p^t_{ic} (\log p^t_{ic} - \log p^s_{ic}), \quad
        p = \mathrm{softmax}(z / T)

    The mean runs over all valid pixels of all samples and nothing else: it is not divided by the number of classes
    (``reduction="mean"``) and not multiplied by the number of pixels (``reduction="batchmean"``). T^2 keeps the
    gradient's size when T changes. The gradient with respect to the student's logits is :math:`T (p^s - p^t)` per pixel; it
    is worked out together with the value, so there is no second derivative.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015. The GKD paper draws no such branch;
    this term is the baseline, and the divergence inside DICD and ACT.

    Args:
        student: logits `(B, C, *S)`; the gradient goes here.
        teacher: logits `(B, C, *S)`; detached.
        temperature: T > 0.
        regions: the channels are overlapping regions with a sigmoid each. The divergence is then that of the
            Bernoulli variables, summed over the channels.
        mask: `(B, 1, *S)`, true (or a weight) where the pixel counts. Nothing valid gives 0, with a gradient of 0.

    Returns:
        A scalar, 0 where both predictions agree.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    check_logits(student, teacher)
    if mask is not None and mask.shape != (student.shape[0], 1, *student.shape[2:]):
        raise ValueError(f"mask {tuple(mask.shape)} must be (B, 1, *S) for logits {tuple(student.shape)}")
    return _MeanDivergence.apply(student, teacher.detach(), temperature, regions, mask)


class KD(Loss):
    """:func:`logit_kd` as a module: softened logits against softened logits, pixel by pixel.

    Source: Hinton et al., 2015; at temperature 1 and weight 1 the baseline of CIRKD (Yang et al., CVPR 2022), at temperature
    4 the prediction maps of EMKD (Qin et al., IEEE TMI 2021, there with weight 0.1).

    Args:
        temperature: T > 0.
        regions: the channels are overlapping regions with a sigmoid each.

    Raises:
        ValueError: a temperature of 0 or less.
    """

    name = "kd"
    reads = "logits"
    weight = 1.0

    def __init__(self, *, temperature: float = 1.0, regions: bool = False) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature, self.regions = temperature, regions

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits `(B, C, *S)` of both networks -> scalar; ``target`` is not used."""
        return logit_kd(student, teacher, self.temperature, self.regions)


@full_precision
def class_frequencies(logits: Tensor, regions: bool = False, mask: Tensor | None = None) -> Tensor:
    """Mean prediction per class `(C,)` of logits `(B, C, *S)` over the valid pixels (mask `(B, 1, *S)`) of the batch."""
    axes = [0, *range(2, logits.ndim)]
    probabilities = logits.sigmoid() if regions else logits.softmax(1)
    if mask is None:
        return probabilities.mean(axes)
    return (probabilities * mask).sum(axes) / mask.sum().clamp_min(1)


@full_precision
def balanced_logits(logits: Tensor, frequencies: Tensor, balance: float, regions: bool = False) -> Tensor:
    """A teacher's logits with the ``balance``-th power of the classes' frequencies divided out of the probabilities.

    A rare class is what a network drops first where the image gets unclear: on another site's images a teacher misses far
    more vessel than it invents. At ``balance`` 1 every class is as likely as any other before the image is looked at.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, there on the student's own logits and with
    the frequencies of the annotations; here on the teacher's, with the frequencies of its own predictions.

    Args:
        logits: `(B, C, *S)`.
        frequencies: `(C,)`, over many batches: those of a single batch without a class would conjure the class up.
        regions: each channel against its own complement.
    """
    prior = frequencies.to(logits.dtype).clamp(_SMALLEST_FREQUENCY, 1 - _SMALLEST_FREQUENCY)
    shift = torch.logit(prior) if regions else prior.log()
    return logits - balance * shift.view(1, -1, *[1] * (logits.ndim - 2))


class _MeanDivergence(torch.autograd.Function):
    # Autograd would keep half a dozen maps of the logits' size and walk over each of them again
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, regions: bool, mask: Tensor | None) -> Tensor:
        if temperature != 1:
            student, teacher = student / temperature, teacher / temperature
        per_pixel, slope = (_bernoulli_kl if regions else _softmax_kl)(student, teacher)
        if mask is None:
            share: float | Tensor = 1 / per_pixel.numel()
            value = per_pixel.mean()
        else:
            weight = mask[:, 0].to(per_pixel.dtype)
            share = 1 / weight.sum().clamp_min(torch.finfo(weight.dtype).eps)
            value = (per_pixel * weight).sum() * share
            slope.mul_(weight.unsqueeze(1))
        ctx.save_for_backward(slope)
        ctx.factor = temperature * share
        return temperature**2 * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * (gradient * ctx.factor), None, None, None, None


def _softmax_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL per pixel `(B, *S)`, and its derivative by the student's softened logits, `(B, C, *S)`."""
    # log_softmax, never log of softmax: sharp teachers would give log(0)
    log_s, log_t = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    p_t = log_t.exp()
    per_pixel = log_t.sub_(log_s).mul_(p_t).sum(1)
    return per_pixel, log_s.exp_().sub_(p_t)


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The same, summed over regions with a sigmoid each."""
    p_t = teacher.sigmoid()
    inside = F.logsigmoid(teacher).sub_(F.logsigmoid(student)).mul_(p_t)
    # sigmoid(-z), not 1 - sigmoid(z): a sure teacher's remaining doubt would be rounded away
    outside = F.logsigmoid(-teacher).sub_(F.logsigmoid(-student)).mul_((-teacher).sigmoid())
    return inside.add_(outside).sum(1), student.sigmoid().sub_(p_t)
