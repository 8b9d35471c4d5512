"""DML: the Dice loss between two predictions, both of them soft."""

from __future__ import annotations

from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_logits
from nnunet_kd.losses.labels import resize_labels
from nnunet_kd.losses.precision import full_precision

_SMOOTH = 1.0  # pixels in the denominator: a class of which neither network sees as much as a pixel hardly counts


class DML(Loss):
    r"""Dice semimetric loss: one minus a soft Dice that is 1 where student and teacher agree, and only there.

    .. math:: L = \mathrm{mean}_{nc} \frac{\sum_i |p^s_{nci} - p^t_{nci}|}{\sum_i (p^s_{nci} + p^t_{nci})}, \quad
        p = \mathrm{softmax}(z)

    With a teacher that is sure everywhere it is nnU-Net's soft Dice loss with the teacher's labels. The usual product
    :math:`p^s p^t` would not do for soft ones: it is largest where the student is sure, whatever the teacher says.

    Like a Dice loss, and unlike KD, it moves the student's working point with what can be seen: where an image is unclear the
    best Dice is had by calling more pixels foreground. Hence one Dice per sample, the views too, and not one per batch:
    each sample is as clear as it is.

    Source: Wang et al., "Dice semimetric losses: optimizing the Dice score with soft labels", MICCAI 2023 (their first form),
    there for distillation too. The background is left out, as nnU-Net leaves it out of its Dice.

    Args:
        regions: the channels are overlapping regions with a sigmoid each; all of them count.
    """

    name = "dml"
    reads = "logits"
    weight = 1.0

    def __init__(self, *, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits `(B, C, *S)` of student and teacher (detached) -> scalar in [0, 1].

        Args:
            target: integer labels `(B, *S)`, of which only the negative ones are read: pixels that are not annotated are left
                out, as in nnU-Net's Dice. None: all pixels count.

        Raises:
            ValueError: shapes that differ.
        """
        check_logits(student, teacher)
        s, t = self._predict(student), self._predict(teacher.detach())
        if target is not None:
            annotated = (resize_labels(target, student.shape[2:]).flatten(1) >= 0).unsqueeze(1).to(s.dtype)
            s, t = s * annotated, t * annotated
        return ((s - t).abs().sum(2) / ((s + t).sum(2) + _SMOOTH)).mean()

    def _predict(self, logits: Tensor) -> Tensor:
        logits = logits.flatten(2)
        return logits.sigmoid() if self.regions else logits.softmax(1)[:, 1:]
