"""Logit distillation: the student's prediction against the teacher's, pixel by pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    gradient's size when T changes.

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
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} differ")
    divergence = _bernoulli_kl if regions else _softmax_kl
    per_pixel = temperature**2 * divergence(student / temperature, teacher.detach() / temperature)
    if mask is None:
        return per_pixel.mean()
    if mask.shape != (student.shape[0], 1, *student.shape[2:]):
        raise ValueError(f"mask {tuple(mask.shape)} must be (B, 1, *S) for logits {tuple(student.shape)}")
    weight = mask[:, 0].to(per_pixel.dtype)
    return (per_pixel * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).eps)


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


def _softmax_kl(student: Tensor, teacher: Tensor) -> Tensor:
    # log_softmax, never log of softmax: sharp teachers would give log(0)
    log_s, log_t = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    inside = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    outside = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (inside + outside).sum(1)
