"""What travels through a distilling step: the task, what one batch carries, and the value of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nnunet_kd.distillation.forward_plan import ForwardPlan


@dataclass(frozen=True)
class SegmentationTask:
    """What the networks segment, and on what.

    Attributes:
        patch_size: spatial size of the training patches.
        outputs: segmentation heads (classes, or regions).
        classes: annotated classes, background included (with regions: combinations of regions).
        regions: sigmoid heads.
        keep_zero: per image channel, whether pixels that are exactly 0 lie outside the field of view. A cascade's data
            hold further channels, the previous stage's segmentation as one-hot map.
    """

    patch_size: Sequence[int]
    outputs: int
    classes: int
    regions: bool
    keep_zero: Sequence[bool]


class TermValue(NamedTuple):
    """A distillation loss of a step: its weight now, and its value, a scalar."""

    weight: float
    value: torch.Tensor


@dataclass
class DistillationStep:
    """What one batch carries from ``prepare`` to ``align``.

    Attributes:
        data: anchors, then their views, ``((K + 1) * B, C, *S)``.
        plan: which forwards the step takes.
        progress: fraction of the training that is over.
        order: a random order of the anchors, for parts that read a share of them.
        onehot, mask, labels: annotation of the anchors, ``(B, L, *S)``, ``(B, 1, *S)`` and ``(B, *S)``.
        iteration: number of the step since the training began.
        teacher_features, teacher_logits: of the anchors and, where the plan says so, of the views.
        mirrored_logits: the teacher's, averaged over mirrored copies: for KD, where it asks for them.
        frequencies: how often the teacher predicts each class, ``(L,)``.
        student_features, student_logits: of all rows that the student read.
    """

    data: torch.Tensor
    plan: ForwardPlan
    progress: float
    order: torch.Tensor
    onehot: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    iteration: int = 0
    teacher_features: list[torch.Tensor] | None = None
    teacher_logits: torch.Tensor | None = None
    mirrored_logits: torch.Tensor | None = None
    frequencies: torch.Tensor | None = None
    student_features: list[torch.Tensor] | None = None
    student_logits: torch.Tensor | None = None

    @property
    def views(self) -> int:
        return self.plan.views

    @property
    def batch(self) -> int:
        return self.data.shape[0] // (self.views + 1)

    def share(self, share: float) -> torch.Tensor:
        """Row numbers of a share of the anchors, at least one."""
        return self.order[: max(1, round(share * self.batch))]


def repeat_rows(x: torch.Tensor, times: int) -> torch.Tensor:
    """Repeat along the batch axis in the order of the views: all samples, then all samples again."""
    return x if times == 1 else x.repeat(times, *[1] * (x.ndim - 1))


def rows_of(teacher: torch.Tensor, batch: int, times: int, target: str) -> torch.Tensor:
    """The teacher's rows beside the student's ``times * batch``: of the same views, or of the anchor again and again.

    Args:
        teacher: rows of the anchors and, where it has read them, of the views.
        target: "view" or "anchor".
    """
    if target == "anchor" or teacher.shape[0] == batch:
        return repeat_rows(teacher[:batch], times)
    return teacher[: times * batch]
