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
    teacher_features: list[torch.Tensor] | None = None
    teacher_logits: torch.Tensor | None = None
    frequencies: torch.Tensor | None = None
    student_features: list[torch.Tensor] | None = None
    student_logits: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        return self.data.shape[0] // (self.views + 1)

    def share(self, share: float) -> torch.Tensor:
        """Row numbers of a share of the anchors, at least one."""
        return self.order[: max(1, round(share * self.batch))]
