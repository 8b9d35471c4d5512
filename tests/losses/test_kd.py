"""Logit distillation and the cross-prediction loss built on it."""

import math

import pytest
import torch
from loss_checks import golden_logits, wave

from nnunet_kd.losses import cross_prediction_loss, full_precision, logit_kd

SHAPES = [(1, 3, 5, 4), (2, 3, 5, 4), (1, 2, 3, 4, 2), (2, 2, 3, 4, 2)]


def pair(shape):
    return wave(shape, 0.7, 0.13, 2.0).requires_grad_(), wave(shape, 0.9, 0.31, 3.0, 0.4).requires_grad_()


# golden values: computed once with the published CIRKD implementation in float64 on these very inputs
@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.0700748947886614), (4.0, 1.976190851624269)])
def test_golden_kd(temperature, expected):
    assert logit_kd(*golden_logits(), temperature).item() == pytest.approx(expected, abs=1e-9)


def test_softmax_by_hand():
    # one pixel, p_t = (1/2, 1/2), p_s = (1/4, 3/4)
    student = torch.log(torch.tensor([1.0, 3.0], dtype=torch.float64)).view(1, 2, 1, 1)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert logit_kd(student, torch.zeros_like(student)).item() == pytest.approx(expected, abs=1e-12)


def test_regions_by_hand_sum_over_channels():
    # two regions, q_t = 1/2 each, q_s = 3/4 and 1/2: only the first differs
    student = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    got = logit_kd(student, torch.zeros_like(student), regions=True)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_temperature_of_regions_by_hand():
    student = torch.tensor(4 * math.log(3.0), dtype=torch.float64).view(1, 1, 1, 1)
    expected = 16 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    got = logit_kd(student, torch.zeros_like(student), temperature=4, regions=True)
    assert got.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_at_equality_and_positive_elsewhere(shape, regions):
    student, teacher = pair(shape)
    assert logit_kd(teacher, teacher, 2.0, regions).abs() < 1e-12
    loss = logit_kd(student, teacher, 2.0, regions)
    assert loss > 0.01
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(regions, masked):
    student, teacher = wave((2, 3, 2, 3), 0.7, 0.13, 2.0).requires_grad_(), wave((2, 3, 2, 3), 0.9, 0.31, 3.0)
    mask = (wave((2, 1, 2, 3), 1.1, 0.2, 1.0) > 0) if masked else None
    assert torch.autograd.gradcheck(lambda s: logit_kd(s, teacher, 3.0, regions, mask), student)


def test_duplicated_batch_leaves_the_value():
    student, teacher = pair((1, 3, 5, 4))
    once = logit_kd(student, teacher)
    assert logit_kd(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)).item() == pytest.approx(once.item())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_is_the_mean_over_the_valid_pixels(shape, dtype):
    student, teacher = pair(shape)
    mask = torch.zeros(shape[0], 1, *shape[2:], dtype=dtype)
    mask[:, :, 1:] = 1
    expected = logit_kd(student[:, :, 1:], teacher[:, :, 1:])
    got = logit_kd(student, teacher, mask=mask)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    got.backward()
    assert student.grad[:, :, :1].abs().max() == 0
    assert student.grad[:, :, 1:].abs().max() > 0


@pytest.mark.parametrize("regions", [False, True])
def test_nothing_valid_is_zero_with_a_gradient(regions):
    student, teacher = pair((2, 3, 5, 4))
    loss = logit_kd(student, teacher, regions=regions, mask=torch.zeros(2, 1, 5, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("regions", [False, True])
def test_huge_logits_stay_finite(regions):
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]).view(2, 2, 1, 1).requires_grad_()
    loss = logit_kd(student, -student.detach(), regions=regions)
    loss.backward()
    # softmax: one gap of 2e4 between two classes; regions: 1e4 for each of two
    assert loss.item() == pytest.approx(2e4, rel=1e-5)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_inputs_under_autocast_are_computed_in_float32(half):
    student, teacher = (x.detach().to(half) for x in pair((2, 3, 5, 4)))
    student = student * 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = logit_kd(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(logit_kd(student.double(), teacher.double(), 4.0).item(), rel=1e-5)


def test_full_precision_switches_autocast_off():
    seen = {}

    @full_precision
    def product(a, b):
        seen["autocast"] = torch.is_autocast_enabled("cpu")
        return a @ b

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(torch.ones(2, 2), b=torch.ones(2, 2)).dtype == torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert seen == {"autocast": False}


def test_shapes_that_do_not_fit_are_refused():
    logits = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="differ"):
        logit_kd(logits, logits[:1])
    with pytest.raises(ValueError, match="mask"):
        logit_kd(logits, logits, mask=torch.ones(2, 4, 4))


@pytest.mark.parametrize("regions", [False, True])
def test_cross_prediction_is_kd_at_temperature_one(regions):
    cross, teacher = pair((2, 3, 5, 4))
    mask = torch.ones(2, 1, 5, 4, dtype=torch.bool)
    mask[:, :, :2] = False
    loss = cross_prediction_loss(cross, teacher, regions=regions, mask=mask)
    assert loss.item() == logit_kd(cross, teacher, 1.0, regions, mask).item() > 0
    loss.backward()
    assert cross.grad.abs().sum() > 0
    assert teacher.grad is None
