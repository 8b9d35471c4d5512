"""Channel-wise distillation of logits and of features."""

import math

import pytest
import torch
from loss_checks import CHECKS, golden_features, golden_logits, gradient, name, tensors, zero_at_equality

from nnunet_kd.losses.literature.cwd import CWDFeatures, CWDLogits

GRIDS = [(3, 4), (2, 3, 2)]


# computed once with the published implementation on these inputs
@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 2.2551075944866805), (4.0, 3.7671341223444954)])
def test_golden_cwd_logits(temperature, expected):
    assert CWDLogits(temperature=temperature)(*golden_logits()).item() == pytest.approx(expected, abs=1e-9)


def test_golden_cwd_features():
    loss = CWDFeatures(student_channels=4, teacher_channels=4, dims=2)
    assert loss(*golden_features()).item() == pytest.approx(0.6188706608167929, abs=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("channels", [(3, 5), (2, 2)], ids=["adapter", "equal"])
@pytest.mark.parametrize("check", CHECKS, ids=name)
def test_contract_features(check, channels, grid):
    torch.manual_seed(0)
    loss = CWDFeatures(student_channels=channels[0], teacher_channels=channels[1], dims=len(grid))
    check(loss, *tensors(grid, *channels))


def test_equal_channels_are_compared_as_they_are():
    loss = CWDFeatures(student_channels=3, teacher_channels=3, dims=2)
    zero_at_equality(loss, *tensors((3, 4), 3, 3))
    assert not list(loss.parameters())


def test_by_hand():
    # one channel of two pixels at T = 2: (1/2, 1/2) against (1/4, 3/4)
    student = torch.tensor([0.0, 2 * math.log(3)], dtype=torch.float64).view(1, 1, 1, 2)
    expected = 4 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    got = CWDLogits(temperature=2.0)(student, torch.zeros_like(student))
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_a_channels_height_does_not_count():
    student, teacher = tensors((3, 4), 3, 3)
    shift = torch.tensor([5.0, -2.0, 9.0]).view(3, 1, 1)
    assert CWDLogits()(student + shift, teacher).item() == pytest.approx(CWDLogits()(student, teacher).item(), rel=1e-9)


def test_gradient_reaches_the_pixels_where_the_distributions_differ():
    _, teacher = tensors((3, 4), 3, 3)
    student = teacher.clone()
    student[:, 1] *= 2
    slope = gradient(CWDLogits(), student, teacher).abs().amax((0, 2, 3))
    assert slope[1] > 1e-3
    assert slope[[0, 2]].max() < 1e-12


def test_declare_what_they_read():
    assert (CWDLogits.reads, CWDLogits.weight) == ("logits", 3.0)
    assert (CWDFeatures.reads, CWDFeatures.weight) == ("features", 50.0)


def test_mistakes_are_refused():
    student, teacher = tensors((3, 4), 3, 5)
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 5, 3, 4\)"):
        CWDLogits()(student, teacher)
    loss = CWDFeatures(student_channels=3, teacher_channels=5, dims=2)
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 5, 3, 3\)"):
        loss(student, teacher[..., :3])
    with pytest.raises(ValueError, match="3 and 5 channels"):
        loss(teacher, teacher)
    with pytest.raises(ValueError, match="temperature"):
        CWDLogits(temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        CWDFeatures(student_channels=3, teacher_channels=5, dims=2, temperature=-1.0)
