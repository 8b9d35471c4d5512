"""KD as a module, and what its own gradient must not change. logit_kd itself: tests/losses/test_kd.py."""

import pytest
import torch
import torch.nn.functional as F
from loss_checks import golden_logits, tensors

from nnunet_kd.losses.kd import KD, logit_kd

GRIDS = [(3, 4), (2, 3, 2)]


# computed once with the published implementations (CIRKD; EMKD for two classes at T = 4) on these inputs
@pytest.mark.parametrize(
    ("temperature", "classes", "expected"),
    [(1.0, 3, 1.0700748947886614), (4.0, 3, 1.976190851624269), (4.0, 2, 0.9658079175372654)],
)
def test_golden_kd(temperature, classes, expected):
    student, teacher = (z[:, :classes] for z in golden_logits())
    assert KD(temperature=temperature)(student, teacher).item() == pytest.approx(expected, abs=1e-9)


def test_declares_what_it_reads():
    assert (KD.reads, KD.weight, KD.needs_target) == ("logits", 1.0, False)
    assert not list(KD().parameters())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_its_gradient_is_that_of_autograd(regions, temperature, masked):
    student, teacher = tensors((3, 4), 3, 3)
    mask = torch.arange(24).reshape(2, 1, 3, 4).remainder(5) if masked else None  # a weight: 0 to 4
    student.requires_grad_()
    if regions:
        p = torch.sigmoid(teacher / temperature)
        log_s = [F.logsigmoid(sign * student / temperature) for sign in (1, -1)]
        divergence = -(p * log_s[0] + (1 - p) * log_s[1]).sum(1)
    else:
        divergence = -(torch.softmax(teacher / temperature, 1) * torch.log_softmax(student / temperature, 1)).sum(1)
    weight = torch.ones(2, 3, 4) if mask is None else mask[:, 0]
    expected = temperature**2 * (divergence * weight).sum() / weight.sum()  # but for the teacher's entropy
    (wanted,) = torch.autograd.grad(3 * expected, student)
    (got,) = torch.autograd.grad(3 * logit_kd(student, teacher, temperature, regions, mask), student)
    torch.testing.assert_close(got, wanted)


def test_a_second_derivative_is_refused_and_not_wrong():
    student, teacher = tensors((3, 4), 3, 3)
    student.requires_grad_()
    (first,) = torch.autograd.grad(logit_kd(student, teacher).square(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="not have been used|once_differentiable"):
        torch.autograd.grad(first.square().sum(), student)


def test_regions_and_temperature_arrive():
    student, teacher = tensors((3, 4), 3, 3)
    value = KD(temperature=2.0, regions=True)(student, teacher).item()
    assert value == logit_kd(student, teacher, 2.0, regions=True).item()
    assert value != pytest.approx(logit_kd(student, teacher, 2.0).item(), rel=1e-2)


def test_two_losses_on_the_same_logits_add_up():
    student, teacher = tensors((3, 4), 3, 3)
    student.requires_grad_()
    losses = [logit_kd(student, teacher), logit_kd(student, teacher, 4.0, regions=True)]
    parts = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in losses]
    (both,) = torch.autograd.grad(losses[0] + losses[1], student)
    torch.testing.assert_close(both, parts[0] + parts[1])


def test_inputs_stay_as_they_were():
    student, teacher = tensors((3, 4), 3, 3)
    before = student.clone(), teacher.clone()
    mask = torch.ones(2, 1, 3, 4, dtype=torch.float64)
    for regions in (False, True):
        logit_kd(student.requires_grad_(), teacher, regions=regions, mask=mask).backward()
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])
    assert torch.equal(mask, torch.ones_like(mask))


def test_without_gradients_the_value_is_the_same():
    student, teacher = tensors((3, 4), 3, 3)
    with torch.no_grad():
        value = logit_kd(student, teacher, 2.0)
    assert not value.requires_grad
    assert value.item() == logit_kd(student.requires_grad_(), teacher, 2.0).item()


def test_mistakes_are_refused():
    student, teacher = tensors((3, 4), 3, 3)
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 2, 3, 4\)"):
        KD()(student, teacher[:, :2])
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            KD(temperature=temperature)
