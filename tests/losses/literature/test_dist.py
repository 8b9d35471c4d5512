"""Distillation from a stronger teacher: correlations."""

import pytest
import torch
from loss_checks import CHECKS, golden_logits, gradient, mean_over_samples, name, tensors

from nnunet_kd.losses.literature.dist import DIST

GRIDS = [(3, 4), (2, 3, 2)]
# a correlation over the pixels of the batch is no mean over the samples
HELD = [check for check in CHECKS if check is not mean_over_samples]
LOSSES = pytest.mark.parametrize(
    "loss", [DIST(), DIST(temperature=3.0, beta=0.5), DIST(regions=True)], ids=["1", "3", "regions"]
)


# computed once with the published implementation on these inputs
def test_golden_dist():
    assert DIST()(*golden_logits()).item() == pytest.approx(1.9536586153197977, abs=1e-9)


@LOSSES
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("check", HELD, ids=name)
def test_contract(check, batch, grid, loss):
    check(loss, *tensors(grid, 3, 3, batch))


@LOSSES
@pytest.mark.parametrize("grid", GRIDS)
def test_zero_at_equality_but_for_the_published_1e8_in_the_denominator(grid, loss):
    student, teacher = tensors(grid, 3, 3)
    assert loss(teacher, teacher).abs() < 1e-4
    assert loss(student, teacher) > 0.1


def _mean_correlation(rows_s, rows_t):
    return torch.stack([torch.corrcoef(torch.stack([s, t]))[0, 1] for s, t in zip(rows_s, rows_t, strict=True)]).mean()


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_row_by_row(grid, regions):
    # at T = 2; rows are pixels, columns classes or regions
    student, teacher = tensors(grid, 3, 3)
    s, t = ((z / 2).movedim(1, -1).reshape(-1, 3) for z in (student, teacher))
    s, t = (s.sigmoid(), t.sigmoid()) if regions else (s.softmax(1), t.softmax(1))
    within_classes = 1 - _mean_correlation(s.T, t.T)
    if regions:
        s, t = torch.cat([s, 1 - s], 1), torch.cat([t, 1 - t], 1)
    within_pixels = 1 - _mean_correlation(s, t)
    got = DIST(beta=0.7, gamma=1.9, temperature=2.0, regions=regions)(student, teacher)
    assert got.item() == pytest.approx(4 * (0.7 * within_pixels + 1.9 * within_classes).item(), rel=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_duplicated_batch_leaves_the_value(regions):
    (student, teacher), loss = tensors((3, 4), 3, 3), DIST(regions=regions)
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert twice.item() == pytest.approx(loss(student, teacher).item(), rel=1e-6)


def test_a_class_the_teacher_never_sees_is_left_out():
    student, teacher = tensors((3, 4), 3, 3)
    absent_s, absent_t = (torch.cat([z, torch.full_like(z[:, :1], -1e4)], 1) for z in (student, teacher))
    only_classes = DIST(beta=0)
    with_absent, without = only_classes(absent_s, absent_t), only_classes(student, teacher)
    assert with_absent.item() == pytest.approx(without.item(), rel=1e-9)
    # the student may see it all the same: neither value nor gradient mind
    absent_s[:, 3] = student[:, 0]
    assert only_classes(absent_s, absent_t).isfinite()
    assert gradient(only_classes, absent_s, absent_t).isfinite().all()


def test_pixels_on_which_the_teacher_has_no_opinion_are_left_out():
    student, teacher = tensors((3, 4), 3, 3)
    only_pixels, expected = DIST(gamma=0), DIST(gamma=0)(student[:, :, 1:], teacher[:, :, 1:])
    teacher[:, :, 0] = 0.3
    assert only_pixels(student, teacher).item() == pytest.approx(expected.item(), rel=1e-9)
    assert gradient(only_pixels, student, teacher)[:, :, 0].abs().max() == 0


def test_a_student_without_opinion_keeps_a_finite_gradient():
    _, teacher = tensors((3, 4), 3, 3)
    slope = gradient(DIST(), torch.zeros_like(teacher), teacher)
    assert slope.isfinite().all()


def test_teacher_without_opinion_anywhere_is_zero_with_a_gradient_of_zero():
    student, _ = tensors((3, 4), 3, 3)
    zero = torch.zeros_like(student)
    assert DIST()(student, zero).item() == 0
    assert gradient(DIST(), student, zero).abs().max() == 0


def test_two_classes_teach_through_the_classes_alone():
    student, teacher = tensors((3, 4), 2, 2)
    within = DIST(gamma=0)
    # 1 or -1, by the preferred class
    differ = (student.argmax(1) != teacher.argmax(1)).double().mean()
    assert 0 < differ < 1
    assert within(student, teacher).item() == pytest.approx(2 * differ.item(), rel=1e-5)
    assert gradient(within, student, teacher).abs().max() < 1e-5
    assert gradient(DIST(beta=0), student, teacher).abs().max() > 1e-3


def test_declares_what_it_reads():
    assert (DIST.reads, DIST.weight, DIST.needs_target) == ("logits", 1.0, False)


def test_mistakes_are_refused():
    student, teacher = tensors((3, 4), 3, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 4, 3, 4\)"):
        DIST()(student, teacher)
    with pytest.raises(ValueError, match="temperature"):
        DIST(temperature=0.0)
    for beta, gamma in ((-1.0, 1.0), (1.0, -1.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match="beta and gamma"):
            DIST(beta=beta, gamma=gamma)


@pytest.mark.parametrize("classes", [2, 3])
def test_pixels_without_a_preference_pass_no_exploding_gradient(classes):
    # in bfloat16 ties between logits are common: 1 / spread would make a handful of pixels the whole gradient
    student, teacher = torch.randn(2, classes, 16, 16), 3 * torch.randn(2, classes, 16, 16)
    student[:, :, ::2] = 0.25
    student[:, 0, 1] = 0.25 + 1e-7
    student.requires_grad_()
    DIST()(student, teacher).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 0.1
    assert student.grad[:, :, 3].abs().max() > 0
