"""What every loss between a student's and a teacher's tensors has to keep, as checks `check(loss, student, teacher)`."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn


def wave(shape, a: float, b: float, scale: float, offset: float = 0.0) -> Tensor:
    """The deterministic tensors the golden values were computed on."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * (torch.sin(a * i + offset) + 0.5 * torch.cos(b * i))).reshape(shape)


def golden_logits() -> tuple[Tensor, Tensor]:
    return wave((2, 3, 8, 8), 0.7, 0.13, 2.0), wave((2, 3, 8, 8), 0.9, 0.31, 3.0, 0.4)


def golden_features() -> tuple[Tensor, Tensor]:
    return wave((2, 4, 8, 8), 1.3, 0.11, 1.0, 0.2), wave((2, 4, 8, 8), 0.77, 0.05, 1.0, 0.9)


def tensors(grid, student_channels: int, teacher_channels: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's tensor that differ, float64."""
    return (
        wave((batch, student_channels, *grid), 1.3, 0.11, 1.0, 0.2),
        wave((batch, teacher_channels, *grid), 0.77, 0.05, 1.5, 0.9),
    )


def gradient(loss: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


def by_finite_differences(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    loss = copy.deepcopy(loss).double()
    inputs = [student.clone().requires_grad_(), *loss.parameters()]
    assert torch.autograd.gradcheck(lambda s, *_: loss(s, teacher), inputs)
    assert gradient(loss, student, teacher).abs().max() > 1e-6


def mean_over_samples(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    loss = copy.deepcopy(loss).double()
    together = loss(student, teacher)
    single = [loss(s.unsqueeze(0), t.unsqueeze(0)).item() for s, t in zip(student, teacher, strict=True)]
    assert len(single) == 2 and single[0] != pytest.approx(single[1], rel=1e-3)
    assert together.shape == ()
    assert together.item() == pytest.approx(sum(single) / 2, rel=1e-9)
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert twice.item() == pytest.approx(together.item(), rel=1e-9)


def half_inputs_in_float32(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    for half in (torch.float16, torch.bfloat16):
        s, t = student.to(half), teacher.to(half)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(s, t)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(copy.deepcopy(loss).double()(s.double(), t.double()).item(), rel=2e-5)


def finite_at_1e4(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    for s, t in ((1e4 * student, 1e4 * teacher), (1e4 * student, 0 * teacher), (0 * student, 1e4 * teacher)):
        s = s.float().requires_grad_()
        value = loss(s, t.float())
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()


def teacher_and_target_stay_out(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    loss = copy.deepcopy(loss).double()
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    target = torch.full((student.shape[0], *student.shape[2:]), -1)
    assert loss.needs_target is False
    value = loss(student, teacher, target)
    assert value.item() == loss(student, teacher).item()
    value.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def zero_at_equality(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    """For losses without adapters; ``student`` is compared with itself."""
    loss = copy.deepcopy(loss).double()
    assert loss(student, student).abs() < 1e-12
    assert loss(student, teacher) > 1e-5


CHECKS = [
    by_finite_differences,
    mean_over_samples,
    half_inputs_in_float32,
    finite_at_1e4,
    teacher_and_target_stay_out,
]


def name(check) -> str:
    return getattr(check, "__name__", str(check))
