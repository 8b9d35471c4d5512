"""FitNets."""

import pytest
import torch
from loss_checks import CHECKS, golden_features, name, tensors, wave
from torch import nn

from nnunet_kd.losses.literature.fitnets import FitNets


# computed once with the published implementation (CIRKD) on these inputs, W fixed
def test_golden_fitnets():
    student, teacher = golden_features()
    loss = FitNets(student_channels=4, teacher_channels=4, dims=2).double()
    with torch.no_grad():
        loss.regressor.weight.copy_(wave((4, 4, 1, 1), 0.5, 0.2, 0.3))
    assert loss(student, teacher).item() == pytest.approx(0.7354302590053294, abs=1e-9)


@pytest.mark.parametrize("channels", [(3, 5), (4, 4)])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("check", CHECKS, ids=name)
def test_contract(check, grid, channels):
    torch.manual_seed(0)
    check(FitNets(student_channels=channels[0], teacher_channels=channels[1], dims=len(grid)), *tensors(grid, *channels))


def test_declares_what_it_reads():
    assert (FitNets.reads, FitNets.weight, FitNets.needs_target) == ("features", 10.0, False)


def test_reads_linearly_without_a_bias_whatever_the_channels():
    for channels in ((4, 4), (3, 5)):
        for dims, kind in ((2, nn.Conv2d), (3, nn.Conv3d)):
            loss = FitNets(student_channels=channels[0], teacher_channels=channels[1], dims=dims)
            assert isinstance(loss.regressor, kind)
            assert [tuple(p.shape) for p in loss.parameters()] == [(channels[1], channels[0], *[1] * dims)]


def test_zero_where_the_reading_gives_the_teacher():
    student, _ = tensors((3, 4), 3, 5)
    loss = FitNets(student_channels=3, teacher_channels=5, dims=2).double()
    teacher = torch.einsum("oi,bihw->bohw", loss.regressor.weight[:, :, 0, 0], student)
    assert loss(student, teacher) < 1e-12
    assert loss(student, teacher + 0.1).item() == pytest.approx(0.01, rel=1e-6)


def test_reading_is_in_the_state_dict():
    loss, other = (FitNets(student_channels=3, teacher_channels=5, dims=3) for _ in range(2))
    other.load_state_dict(loss.state_dict())
    student, teacher = (f.float() for f in tensors((2, 3, 2), 3, 5))
    assert other(student, teacher).item() == loss(student, teacher).item()


def test_mistakes_are_refused():
    student, teacher = (f.float() for f in tensors((3, 4), 3, 5))
    loss = FitNets(student_channels=3, teacher_channels=5, dims=2)
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 5, 3, 3\)"):
        loss(student, teacher[..., :3])
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 4, 3, 4\)"):
        loss(student, teacher[:, :4])
    with pytest.raises(ValueError, match=r"\(2, 2, 3, 4\).*\(2, 5, 3, 4\)"):
        loss(student[:, :2], teacher)
