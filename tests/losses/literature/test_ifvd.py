"""Intra-class feature variation."""

import pytest
import torch
import torch.nn.functional as F
from annotated import CHECKS_WITH_TARGET, Annotated, labels
from loss_checks import (
    golden_features,
    gradient,
    name,
    tensors,
)

from nnunet_kd.losses.literature.ifvd import IFVD

GRIDS = [(3, 4), (2, 3, 2)]


def golden_labels(ignored_rows=0):
    target = ((torch.arange(2 * 16 * 16) * 7 // 13) % 3).reshape(2, 16, 16)
    target[:, :ignored_rows] = -1
    return target


# computed once with the published implementation on these inputs
@pytest.mark.parametrize(("ignored_rows", "expected"), [(0, 0.6762971631398502), (5, 0.21692063342086254)])
def test_golden_ifvd(ignored_rows, expected):
    student, teacher = golden_features()
    assert IFVD(classes=3)(student, teacher, golden_labels(ignored_rows)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("check", CHECKS_WITH_TARGET, ids=name)
def test_contract(check, batch, grid):
    check(Annotated(IFVD(classes=3), labels(grid, 3, batch)), *tensors(grid, 4, 5, batch))


def _pixel_by_pixel(features, target):
    found = torch.zeros(target.shape, dtype=features.dtype)
    for index in (target >= 0).nonzero().tolist():
        b, pixel = index[0], tuple(index[1:])
        mean = features[b][:, target[b] == target[tuple(index)]].mean(1)
        found[tuple(index)] = F.cosine_similarity(features[b][(slice(None), *pixel)], mean, dim=0)
    return found


@pytest.mark.parametrize("grid", GRIDS)
def test_pixel_by_pixel(grid):
    (student, teacher), target = tensors(grid, 4, 5), labels(grid, 3)
    target[1][target[1] == 2] = 0  # absent from one sample
    difference = _pixel_by_pixel(student, target) - _pixel_by_pixel(teacher, target)
    got = IFVD(classes=4)(student, teacher, target)  # class 3 is absent from all
    assert got.item() == pytest.approx(difference.square().mean().item(), rel=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
def test_duplicated_batch_leaves_the_value(grid):
    (student, teacher), target, loss = tensors(grid, 4, 5), labels(grid, 3), IFVD(classes=3)
    twice = loss(*(torch.cat([x, x]) for x in (student, teacher, target)))
    assert twice.item() == pytest.approx(loss(student, teacher, target).item(), rel=1e-9)


def test_nothing_annotated_is_zero_with_a_gradient_of_zero():
    student, teacher = tensors((3, 4), 4, 5)
    student.requires_grad_()
    loss = IFVD(classes=3)(student, teacher, torch.full((2, 6, 8), -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_pixels_without_annotation_pass_no_gradient():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 3)
    slopes = gradient(Annotated(IFVD(classes=3), target), student, teacher).abs().sum(1)
    assert (slopes[target >= 0] > 0).all()
    assert (slopes[target < 0] == 0).all()


def test_a_pixel_without_features_has_no_direction():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 3)
    student[0, :, 0, 0] = 0
    slope = gradient(Annotated(IFVD(classes=3), target), student, teacher)
    # its part in the class's mean remains
    assert 0 < slope[0, :, 0, 0].abs().max() < 1


def test_teacher_stays_out():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 3)
    teacher.requires_grad_()
    IFVD(classes=3)(student.requires_grad_(), teacher, target).backward()
    assert teacher.grad is None


def test_declares_what_it_reads():
    assert (IFVD.reads, IFVD.weight, IFVD.needs_target) == ("features", 200.0, True)
    assert not list(IFVD(classes=2).parameters())


def test_mistakes_are_refused():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 3)
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 4\).*\(2, 5, 3, 3\)"):
        IFVD(classes=3)(student, teacher[..., :3], target)
    with pytest.raises(ValueError, match="pass target"):
        IFVD(classes=3)(student, teacher)
    with pytest.raises(ValueError, match="classes = 0"):
        IFVD(classes=0)
