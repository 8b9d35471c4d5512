"""Losses that read the annotation, in the form `loss(student, teacher)` of loss_checks.py."""

import torch
from loss_checks import by_finite_differences, finite_at_1e4, half_inputs_in_float32, zero_at_equality
from torch import Tensor, nn

# those of loss_checks.CHECKS that hold for every such loss; it reads a target, and classes weigh samples unequally
CHECKS_WITH_TARGET = [by_finite_differences, half_inputs_in_float32, finite_at_1e4, zero_at_equality]


def labels(grid, classes: int, batch: int = 2) -> Tensor:
    """Every class in every sample, two pixels of each not annotated; `(batch, *grid)`."""
    count = torch.Size(grid).numel()
    i = torch.arange(count)
    flat = torch.stack([(2 * i + i // 3 + b) % classes for b in range(batch)])
    flat[:, [1, count // 2]] = -1
    return flat.reshape(batch, *grid)


class Annotated(nn.Module):
    """``loss`` with its target given."""

    def __init__(self, loss: nn.Module, target: Tensor) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("target", target)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher, self.target)
