"""Domain-Invariant Cross Distillation (DICD): predictions through the other model's header and decoder."""

from __future__ import annotations

from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.kd import logit_kd


def cross_prediction_loss(
    cross_logits: Tensor, teacher_logits: Tensor, regions: bool = False, mask: Tensor | None = None
) -> Tensor:
    """``KL(p_T || p_cross)``, mean over the pixels.

    EVIDENCE: teacher vector -> student header -> student decoder, and student vector -> teacher header -> teacher
    decoder, are both tied to the teacher's prediction. RECONSTRUCTION: KL as the tie, and no temperature.

    Args:
        cross_logits: p_TS or p_ST before the softmax `(B, C, *S)`; the gradient goes here.
        teacher_logits: `(B, C, *S)`; detached.
        regions, mask: as in :func:`nnunet_kd.losses.kd.logit_kd`.
    """
    return logit_kd(cross_logits, teacher_logits, temperature=1.0, regions=regions, mask=mask)


class CrossPrediction(Loss):
    """:func:`cross_prediction_loss` by its name in the plans, for one of DICD's two directions."""

    name = "cross"
    reads = "vectors"

    def __init__(self, *, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Crossed logits and the teacher's, `(B, C, *S)` -> scalar; ``mask`` `(B, 1, *S)` is True where pixels count."""
        return cross_prediction_loss(student, teacher, self.regions, mask)
