"""EMKD's importance maps and regional affinities."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from annotated import CHECKS_WITH_TARGET, Annotated, labels
from loss_checks import (
    CHECKS,
    golden_features,
    golden_logits,
    gradient,
    name,
    tensors,
    zero_at_equality,
)

from nnunet_kd.losses.kd import KD
from nnunet_kd.losses.literature.emkd import IMD, RAD

GRIDS = [(3, 4), (2, 3, 2)]


# computed once with the published implementation on these inputs
def test_golden_imd():
    assert IMD()(*golden_features()).item() == pytest.approx(0.5775758949645817, abs=1e-9)


def test_golden_rad():
    target = ((torch.arange(2 * 16 * 16) * 7 // 13) % 3).reshape(2, 16, 16)
    got = RAD(classes=2)(*golden_features(), (target > 0).long())
    assert got.item() == pytest.approx(0.022622849574199192, abs=1e-9)


def test_golden_prediction_maps_are_kd_at_temperature_four():
    student, teacher = (z[:, :2] for z in golden_logits())
    assert KD(temperature=4.0)(student, teacher).item() == pytest.approx(0.9658079175372654, abs=1e-9)


@pytest.mark.parametrize("p", [3, 4])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("check", [*CHECKS, zero_at_equality], ids=name)
def test_contract_imd(check, grid, p):
    check(IMD(p=p), *tensors(grid, 3, 5))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("check", CHECKS_WITH_TARGET, ids=name)
def test_contract_rad(check, batch, grid, classes):
    check(Annotated(RAD(classes=classes), labels(grid, classes, batch)), *tensors(grid, 3, 7, batch))


def test_imd_by_hand():
    # one channel, two pixels: (1, 2) and (3, 0) have maps (1, 16) / |.| and (1, 0)
    student, teacher = (torch.tensor(f, dtype=torch.float64).view(1, 1, 1, 2) for f in ([1, -2], [-3, 0]))
    length = 257**0.5
    expected = (1 / length - 1) ** 2 + (16 / length) ** 2
    assert IMD()(student, teacher).item() == pytest.approx(expected, abs=1e-12)


def _affinity(features, target, a, b):
    means = [features[:, target == c].mean(1) for c in (a, b)]
    return F.cosine_similarity(*means, dim=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_rad_pair_by_pair_of_the_classes_a_sample_holds(grid):
    (student, teacher), target = tensors(grid, 4, 5), labels(grid, 3)
    target[0][target[0] == 2], target[1][target[1] == 0] = -1, -1  # one pair left in each
    terms = [
        (_affinity(student[b], target[b], *pair) - _affinity(teacher[b], target[b], *pair)) ** 2
        for b, pair in enumerate([(0, 1), (1, 2)])
    ]
    got = RAD(classes=5)(student, teacher, target)  # classes 3 and 4 are absent from all
    assert got.item() == pytest.approx((sum(terms) / 2).item(), rel=1e-9)


def test_rad_of_three_classes_compares_all_pairs():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 3)
    terms = [
        (_affinity(student[b], target[b], *pair) - _affinity(teacher[b], target[b], *pair)) ** 2
        for b in range(2)
        for pair in combinations(range(3), 2)
    ]
    assert RAD(classes=3)(student, teacher, target).item() == pytest.approx((sum(terms) / 6).item(), rel=1e-9)


@pytest.mark.parametrize("only", [-1, 0, 1], ids=["ignored", "background", "foreground"])
def test_samples_of_one_class_say_nothing(only):
    student, teacher = tensors((3, 4), 4, 5)
    student.requires_grad_()
    loss = RAD(classes=2)(student, teacher, torch.full((2, 6, 8), only))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("grid", GRIDS)
def test_rad_of_a_duplicated_batch(grid):
    (student, teacher), target, loss = tensors(grid, 4, 5), labels(grid, 2), RAD(classes=2)
    twice = loss(*(torch.cat([x, x]) for x in (student, teacher, target)))
    assert twice.item() == pytest.approx(loss(student, teacher, target).item(), rel=1e-9)


def test_rad_leaves_out_what_is_not_annotated():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 2)
    slope = gradient(Annotated(RAD(classes=2), target), student, teacher).abs().sum(1)
    assert (slope[target >= 0] > 0).all()
    assert (slope[target < 0] == 0).all()


def test_teacher_stays_out_of_rad():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 2)
    teacher.requires_grad_()
    RAD(classes=2)(student.requires_grad_(), teacher, target).backward()
    assert teacher.grad is None


def test_declare_what_they_read():
    assert (IMD.reads, IMD.weight, IMD.needs_target) == ("features", 0.9, False)
    assert (RAD.reads, RAD.weight, RAD.needs_target) == ("features", 0.9, True)


def test_mistakes_are_refused():
    (student, teacher), target = tensors((3, 4), 4, 5), labels((3, 4), 2)
    for loss in (IMD(), Annotated(RAD(classes=2), target)):
        with pytest.raises(ValueError, match=r"\(2, 4, 3, 4\).*\(2, 5, 3, 3\)"):
            loss(student, teacher[..., :3])
    with pytest.raises(ValueError, match="pass target"):
        RAD(classes=2)(student, teacher)
    with pytest.raises(ValueError, match="classes = 1"):
        RAD(classes=1)
    for p in (0, 9):
        with pytest.raises(ValueError, match="p of IMD"):
            IMD(p=p)
