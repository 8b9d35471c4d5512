"""What every loss of the registry keeps. A new loss takes one line in CASES; what is peculiar to it has a file of its own."""

import copy
import inspect
from dataclasses import dataclass

import pytest
import torch
from annotated import Annotated, labels
from loss_checks import (
    by_finite_differences,
    finite_at_1e4,
    golden_features,
    golden_logits,
    gradient,
    half_inputs_in_float32,
    mean_over_samples,
    name,
    teacher_and_target_stay_out,
    tensors,
    wave,
    zero_at_equality,
)
from torch import nn

import nnunet_kd.losses
from nnunet_kd.losses.base import CONTEXT, Loss
from nnunet_kd.losses.registry import LOSSES

CLASSES = 3
GRIDS = {"2d": (4, 4), "3d": (2, 3, 4)}


def same_for_the_batch_twice(loss, student, teacher):
    loss = copy.deepcopy(loss).double()
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert twice.item() == pytest.approx(loss(student, teacher).item(), rel=1e-6)


def absent_class_is_finite(loss, student, teacher):
    """A class that neither network sees, and a teacher that is sure of another."""
    for networks in ((student, teacher), (student, 30 * teacher)):
        s, t = (torch.cat([z[:, :-1], torch.full_like(z[:, -1:], -1e4)], 1) for z in networks)
        assert loss(s, t).isfinite() and gradient(loss, s, t).isfinite().all()


ALL = (
    by_finite_differences,
    mean_over_samples,
    same_for_the_batch_twice,
    half_inputs_in_float32,
    finite_at_1e4,
    teacher_and_target_stay_out,
    zero_at_equality,
)
MEAN, TWICE, SLOPE, ZERO, TARGET = (
    mean_over_samples,
    same_for_the_batch_twice,
    by_finite_differences,
    zero_at_equality,
    teacher_and_target_stay_out,
)


@dataclass(frozen=True)
class Case:
    """``value`` on the golden tensors at the published settings, of another implementation; None: in the loss's own file.

    ``breaks``: what the loss does not keep, by its nature. ``idle``: settings that do nothing on tensors this small.
    """

    value: float | None
    breaks: tuple = ()
    idle: tuple = ()


CASES = {
    "kd": Case(1.0700748947886614),
    "skd-pixelwise": Case(3.2336674613156857 / 2, (ZERO,)),  # at equality the teacher's entropy
    "cwd-logits": Case(3.7671341223444954),
    "dist": Case(1.9536586153197977, (MEAN, ZERO)),  # a correlation over the batch, with 1e-8 in its denominator
    "dml": Case(0.4810711911758428, (TARGET,)),  # reads which pixels are annotated
    "at": Case(0.0036806196225511434),
    "fitnets": Case(0.7354302590053294, (ZERO,)),  # an adapter between equal channels too
    "skd-pairwise": Case(0.09264203906059265, (SLOPE,)),  # no gradient through the lengths, as published
    "skd-2x2": Case(0.7710586244764347, (SLOPE,)),
    "ifvd": Case(0.6762971631398502),
    "cwd-features": Case(0.6188706608167929),
    "imd": Case(0.5775758949645817),
    "rad": Case(0.8890723354104729),
    "cirkd": Case(9.122663343287558, (MEAN,), ("max_nodes",)),  # pairs of samples
    "cirkd-memory": Case(
        None,
        (MEAN, TWICE),
        (
            "pixel_memory",
            "region_memory",
            "pixel_contrast",
            "region_contrast",
            "pixels_per_class",
            "max_anchors",
        ),
    ),  # has a memory; with it, every call is another
    "fsp": Case(0.008580037798506529),
    "intra": Case(None),
    "inter": Case(None),
    "cross": Case(1.0700748947886614),
}


class OnOneTensor(nn.Module):
    """A loss on pairs of stages, of the first three channels and the rest of a tensor."""

    needs_target = False

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student, teacher, target=None):
        return self.loss(*((x[:, :3], x[:, 3:]) for x in (student, teacher)))


def inputs(loss: type[Loss], grid, equal: bool = True):
    """A student's and a teacher's tensor as the loss reads them."""
    if loss.reads == "vectors" and loss.name != "cross":
        return wave((3, 4, 6), 1.3, 0.11, 1.0, 0.2), wave((3, 4, 6), 0.77, 0.05, 1.5, 0.9)  # (K+1, B, d)
    if loss.reads in ("logits", "vectors"):
        return tensors(grid, CLASSES, CLASSES)
    return tensors(grid, 6, 6 if equal or loss.reads == "pairs" else 4)


def build(loss: type[Loss], grid, regions: bool = False, equal: bool = True, annotated: bool = True, **settings) -> nn.Module:
    """The loss in the form ``loss(student, teacher)``, with an annotation where it reads one."""
    torch.manual_seed(0)
    widths = (3, 3) if loss.reads == "pairs" else 6, (3, 3) if loss.reads == "pairs" else 6 if equal else 4
    context = {"student_channels": widths[0], "teacher_channels": widths[1], "dims": len(grid), "classes": CLASSES}
    built = loss.build(settings, regions=regions, **context)
    if loss.reads == "pairs":
        return OnOneTensor(built)
    if not (loss.needs_target and annotated):
        return built
    if loss.name == "cirkd-memory":  # one batch to remember, then as in evaluation: a call changes nothing
        built(*(x.float() for x in inputs(loss, grid, equal)), labels(grid, CLASSES))
        built.eval()
    return Annotated(built, labels(grid, CLASSES))


def takes(loss: type[Loss]) -> set[str]:
    """What the loss takes of the context."""
    return set(inspect.signature(loss.__init__).parameters) & set(CONTEXT)


def kept() -> list:
    cases = []
    for loss_name, loss in LOSSES.items():
        breaks = CASES[loss_name].breaks if loss_name in CASES else ()
        checks = [check for check in ALL if check not in breaks]
        if loss.needs_target:  # the annotation is of the whole batch
            checks = [check for check in checks if check not in (mean_over_samples, same_for_the_batch_twice, TARGET)]
        if loss.reads == "vectors" and loss_name != "cross":  # graphs of the whole batch
            checks = [check for check in checks if check not in (mean_over_samples, same_for_the_batch_twice)]
        if loss.reads == "logits":
            checks.append(absent_class_is_finite)
        regions = (False, True) if "regions" in takes(loss) else (False,)
        cases += [
            pytest.param(loss, check, r, grid, id=f"{loss_name}-{name(check)}{'-regions' if r else ''}-{grid}")
            for check in checks
            for r in regions
            for grid in GRIDS
        ]
    return cases


@pytest.mark.parametrize(("loss", "check", "regions", "grid"), kept())
def test_contract(loss, check, regions, grid):
    grid = GRIDS[grid]
    check(build(loss, grid, regions), *inputs(loss, grid))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("loss", [pytest.param(x, id=n) for n, x in LOSSES.items() if x.reads == "features"])
def test_networks_of_other_widths(loss, grid):
    grid = GRIDS[grid]
    built, (student, teacher) = build(loss, grid, equal=False), (x.float() for x in inputs(loss, grid, equal=False))
    assert student.shape[1] != teacher.shape[1]
    built(student.requires_grad_(), teacher).backward()
    gradients = [student.grad, *(p.grad for p in built.parameters())]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def test_every_loss_has_a_case():
    assert set(CASES) == set(LOSSES), "a loss of nnunet_kd/losses/ takes one line in CASES of this file"


@pytest.mark.parametrize("loss_name", [n for n, case in CASES.items() if case.value is not None])
def test_golden_value(loss_name):
    loss = LOSSES[loss_name]
    channels = (4, 4) if loss.reads == "pairs" else 4
    context = {"student_channels": channels, "teacher_channels": channels, "dims": 2, "classes": CLASSES}
    built = loss.build({}, **context).double()
    with torch.no_grad():
        for p in built.parameters():
            p.copy_(wave(p.shape, 0.5, 0.2, 0.3))
    student, teacher = golden_logits() if loss.reads in ("logits", "vectors") else golden_features()
    if loss.reads == "pairs":
        student, teacher = (student, student**2), (teacher, teacher**2)
    target = ((torch.arange(2 * 16 * 16) * 7 // 13) % CLASSES).reshape(2, 16, 16)
    value = built(student, teacher, target if loss.needs_target else None)
    coarse = loss_name in ("skd-pairwise", "skd-2x2")  # the published implementations cast to float32
    assert value.item() == pytest.approx(CASES[loss_name].value, rel=1e-5 if coarse else 1e-9)


OTHER_TEXT = {"form": "squared"}


def settings() -> list:
    return [(n, key) for n, loss in LOSSES.items() for key in loss.settings() if n not in CASES or key not in CASES[n].idle]


@pytest.mark.parametrize(("loss_name", "key"), settings())
def test_a_setting_changes_the_value(loss_name, key):
    loss = LOSSES[loss_name]
    default = loss.settings()[key].default
    other = {int: lambda: default + 1, float: lambda: default / 2, bool: lambda: not default, str: lambda: OTHER_TEXT[key]}
    built = [build(loss, GRIDS["2d"], **given).double() for given in ({}, {key: other[type(default)]()})]
    values = [loss(*inputs(LOSSES[loss_name], GRIDS["2d"])).item() for loss in built]
    assert values[0] != pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("loss", [pytest.param(x, id=n) for n, x in LOSSES.items()])
def test_what_a_loss_says_of_itself(loss):
    assert getattr(nnunet_kd.losses, loss.__name__) is loss and loss.__name__ in nnunet_kd.losses.__all__
    assert isinstance(loss.weight, float) and loss.weight > 0
    assert all(type(p.default) in (int, float, bool, str) for p in loss.settings().values())
    assert not {"weight", "target", "until"} & set(loss.settings())  # what every loss has
    assert isinstance(loss.example(), Loss)


@pytest.mark.parametrize("loss", [pytest.param(x, id=n) for n, x in LOSSES.items() if x.needs_target])
def test_a_loss_on_classes_asks_for_the_annotation(loss):
    with pytest.raises(ValueError, match="pass target"):
        build(loss, GRIDS["2d"], annotated=False)(*(x.float() for x in inputs(loss, GRIDS["2d"])))
