"""The Dice loss between two soft predictions."""

import pytest
import torch
from loss_checks import gradient, tensors

from nnunet_kd.losses.literature.dml import DML

GRIDS = [(3, 4), (2, 3, 2)]
LOSSES = pytest.mark.parametrize("loss", [DML(), DML(regions=True)], ids=["softmax", "regions"])


@LOSSES
@pytest.mark.parametrize("grid", GRIDS)
def test_one_sample(grid, loss):
    student, teacher = tensors(grid, 3, 3, batch=1)
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert twice.item() == pytest.approx(loss(student, teacher).item())
    assert gradient(loss, student, teacher).abs().max() > 1e-3


def test_a_value_by_hand():
    # foreground .25 and .5 in the student, .5 and .25 in the teacher; the second sample is the first with equal networks
    s, t = (torch.tensor(p).view(1, 1, 1, 2) for p in ([0.25, 0.5], [0.5, 0.25]))
    student, teacher = (torch.cat([1 - p, p], 1).log() for p in (s, t))
    assert DML()(student, teacher).item() == pytest.approx(0.5 / 2.5)
    both = DML()(torch.cat([student, teacher]), torch.cat([teacher, teacher]))
    assert both.item() == pytest.approx(0.1)
    regions = DML(regions=True)(torch.logit(s), torch.logit(t))
    assert regions.item() == pytest.approx(0.2)


@pytest.mark.parametrize("grid", [(16, 16), (8, 8, 4)])
def test_with_a_sure_teacher_it_is_nnunets_dice_loss(grid):
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from nnunetv2.utilities.helpers import softmax_helper_dim1

    student, _ = tensors(grid, 3, 3)
    labels = torch.randint(0, 3, (2, 1, *grid), generator=torch.Generator().manual_seed(0))
    teacher = torch.zeros_like(student).scatter_(1, labels, 1e4)
    theirs = MemoryEfficientSoftDiceLoss(softmax_helper_dim1, batch_dice=False, do_bg=False, smooth=0.5, ddp=False)
    # theirs is minus the Dice with 0.5 added above and below, ours is 1 - Dice with 1 added below
    dice = -theirs(student, labels)
    assert DML()(student, teacher).item() == pytest.approx(1 - dice.item(), abs=0.01)


def test_the_best_student_is_the_teacher_not_a_surer_one():
    _, teacher = tensors((3, 4), 2, 2)
    losses = {k: DML()(k * teacher, teacher).item() for k in (0.5, 1.0, 2.0, 10.0)}
    assert min(losses, key=losses.get) == 1.0 and losses[1.0] == 0


def test_an_unclear_sample_asks_for_more_foreground():
    # every pixel is vessel with a chance of 0.45: KD would have the student say 0.45, background; Dice says vessel
    labels = (torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.45).long()
    teacher = torch.zeros(1, 2, 40, 40).scatter_(1, labels, 20.0)
    logit = torch.zeros(1, requires_grad=True)

    def student():
        return torch.stack([torch.zeros(1, 40, 40), logit.expand(1, 40, 40)], 1)

    optimizer = torch.optim.SGD([logit], lr=5.0)
    for _ in range(300):
        optimizer.zero_grad()
        DML()(student(), teacher).backward()
        optimizer.step()
    assert logit.item() > 2


@LOSSES
def test_an_absent_class_hardly_counts(loss):
    student, teacher = tensors((3, 4), 3, 3)
    absent = torch.full_like(student[:, :1], -20.0)
    student, teacher = torch.cat([student, absent], 1), torch.cat([teacher, absent + 1], 1)
    assert gradient(loss, student, teacher)[:, 3].abs().max() < 1e-6


@LOSSES
@pytest.mark.parametrize("grid", GRIDS)
def test_pixels_that_are_not_annotated_do_not_count(grid, loss):
    student, teacher = (x.requires_grad_() for x in tensors(grid, 3, 3))
    labels = torch.zeros(2, *grid, dtype=torch.long)
    assert torch.equal(loss(student, teacher, labels), loss(student, teacher))
    labels[:, 0] = -1
    value = loss(student, teacher, labels)
    assert value.item() == pytest.approx(loss(student[:, :, 1:], teacher[:, :, 1:]).item())
    value.backward()
    assert teacher.grad is None
    assert student.grad[:, :, 0].abs().max() == 0 and student.grad[:, :, 1:].abs().max() > 1e-4
    # nothing annotated: nothing to learn, and no NaN
    assert loss(student, teacher, labels.fill_(-1)).item() == 0


def test_shapes_that_differ():
    with pytest.raises(ValueError):
        DML()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4))
