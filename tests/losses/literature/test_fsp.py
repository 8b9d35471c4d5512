"""FSP: flow matrices between two stages."""

import pytest
import torch
import torch.nn.functional as F
from loss_checks import CHECKS, golden_features, gradient, name, tensors, wave, zero_at_equality
from torch import nn

from nnunet_kd.losses.literature.fsp import FSP


class OnOneTensor(nn.Module):
    """FSP of the first channels and the rest of a tensor, so that the checks of the other losses serve."""

    needs_target = False

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.fsp = FSP(student_channels=student_channels, teacher_channels=teacher_channels)
        self.channels = student_channels, teacher_channels

    def forward(self, student, teacher, target=None):
        return self.fsp(student.split(self.channels[0], 1), teacher.split(self.channels[1], 1), target)


# computed once with the published implementation on these inputs
def test_golden_fsp():
    student, teacher = golden_features()
    loss = FSP(student_channels=(4, 4), teacher_channels=(4, 4))
    value = loss((student, student * student), (teacher, teacher * teacher))
    assert value.item() == pytest.approx(0.008580037798506529, abs=1e-9)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("channels", [((3, 2), (3, 2)), ((3, 2), (4, 5))])
@pytest.mark.parametrize("check", CHECKS, ids=name)
def test_contract(check, channels, grid):
    torch.manual_seed(0)
    check(OnOneTensor(*channels), *tensors(grid, sum(channels[0]), sum(channels[1])))


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_zero_at_equality(grid):
    zero_at_equality(OnOneTensor((3, 2), (3, 2)), *tensors(grid, 5, 5))


def test_declares_what_it_reads():
    assert (FSP.reads, FSP.weight, FSP.needs_target) == ("pairs", 50.0, False)
    assert not list(FSP(student_channels=(3, 2), teacher_channels=(3, 2)).parameters())


def test_stages_of_unequal_size_meet_on_the_smaller_grid():
    pairs = [(wave((2, 3, 4, 6), a, 0.3, 1.0), wave((2, 2, 2, 3), a, 0.7, 1.0)) for a in (0.9, 1.7)]
    loss = FSP(student_channels=(3, 2), teacher_channels=(3, 2))
    got = loss(*pairs)
    flows = []
    for first, second in pairs:
        halved = F.max_pool2d(first, 2)
        flows.append(torch.einsum("bihw,bjhw->bij", halved, second) / 6)
    assert got.item() == pytest.approx((flows[0] - flows[1]).square().mean().item(), rel=1e-9) and got > 1e-3
    turned = FSP(student_channels=(2, 3), teacher_channels=(2, 3))(*(pair[::-1] for pair in pairs))
    assert turned.item() == pytest.approx(got.item(), rel=1e-9)


def test_stages_of_unequal_size_in_3d():
    pairs = [(wave((1, 3, 2, 4, 6), a, 0.3, 1.0), wave((1, 2, 2, 2, 3), a, 0.7, 1.0)) for a in (0.9, 1.7)]
    flows = [torch.einsum("bidhw,bjdhw->bij", F.max_pool3d(first, (1, 2, 2)), second) / 12 for first, second in pairs]
    got = FSP(student_channels=(3, 2), teacher_channels=(3, 2))(*pairs)
    assert got.item() == pytest.approx((flows[0] - flows[1]).square().mean().item(), rel=1e-9) and got > 1e-3


@pytest.mark.parametrize("teacher_channels", [(4, 5), (3, 5), (4, 2)])
def test_adapters_act_as_1x1_convolutions_on_the_pooled_features(teacher_channels):
    torch.manual_seed(0)
    student = wave((2, 3, 4, 6), 0.9, 0.3, 1.0), wave((2, 2, 2, 3), 1.1, 0.7, 1.0)
    teacher = [wave((2, k, *grid), 1.7, 0.2, 1.0) for k, grid in zip(teacher_channels, ((4, 6), (2, 3)), strict=True)]
    loss = FSP(student_channels=(3, 2), teacher_channels=teacher_channels).double()
    pooled = F.max_pool2d(student[0], 2), student[1]
    adapted = [adapter(features) for adapter, features in zip(loss.adapters, pooled, strict=True)]
    flow_s = torch.einsum("bihw,bjhw->bij", *adapted) / 6
    flow_t = torch.einsum("bihw,bjhw->bij", F.max_pool2d(teacher[0], 2), teacher[1]) / 6
    got = loss(student, teacher)
    assert got.item() == pytest.approx((flow_s - flow_t).square().mean().item(), rel=1e-9)
    got.backward()
    assert len(list(loss.parameters())) == sum(s != t for s, t in zip((3, 2), teacher_channels, strict=True))
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


def test_pooled_stage_gets_its_gradient_at_the_maxima():
    student, teacher = wave((1, 1, 4, 4), 0.9, 0.3, 1.0), wave((1, 1, 4, 4), 1.7, 0.3, 1.0)
    second = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    loss = FSP(student_channels=(1, 1), teacher_channels=(1, 1))
    slope = gradient(lambda s, t: loss((s, second), (t, second)), student, teacher)
    assert (slope != 0).sum() == 4
    assert torch.equal(F.max_pool2d((slope != 0).double(), 2), second)


def test_mistakes_are_refused():
    f1, f2 = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 2, 2)
    loss = FSP(student_channels=(3, 2), teacher_channels=(3, 2))
    with pytest.raises(ValueError, match="pairs"):
        loss(f1, f1)
    with pytest.raises(ValueError, match="pairs"):
        loss((f1, f2, f2), (f1, f2))
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 2\).*\(2, 2, 2, 1\)"):
        loss((f1, f2), (f1, f2[..., :1]))
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 3, 4, 4\)"):
        loss((f1[:, :1], f2), (f1, f2))
    with pytest.raises(ValueError, match="two stages"):
        FSP(student_channels=3, teacher_channels=(3, 2))
    with pytest.raises(ValueError, match="two stages"):
        FSP(student_channels=(3, 2), teacher_channels=(3, 2, 1))
