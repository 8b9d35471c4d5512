"""What one batch carries through a distilling step."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Step:
    """What one batch carries from ``prepare`` to ``align``."""

    data: torch.Tensor
    views: int
    phase: str
    progress: float
    order: torch.Tensor
    onehot: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    iteration: int = 0
    teacher_features: list[torch.Tensor] | None = None
    teacher_logits: torch.Tensor | None = None
    mirrored_logits: torch.Tensor | None = None  # the teacher's, averaged over mirrored copies: for KD, where it asks for them
    frequencies: torch.Tensor | None = None
    student_features: list[torch.Tensor] | None = None
    student_logits: torch.Tensor | None = None

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
