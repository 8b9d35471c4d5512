"""The losses by name."""

import inspect

import pytest
import torch
from annotated import labels
from loss_checks import tensors
from torch import nn

import nnunet_kd.losses
from nnunet_kd.losses.registry import LOSSES

GEOMETRY = {"student_channels", "teacher_channels", "dims", "classes", "regions"}
NAMES = [
    "kd",
    "at",
    "fitnets",
    "fsp",
    "skd-pixelwise",
    "skd-pairwise",
    "skd-2x2",
    "ifvd",
    "cwd-logits",
    "cwd-features",
    "dist",
    "dml",
    "imd",
    "rad",
    "cirkd",
    "cirkd-memory",
]
each = pytest.mark.parametrize("name", NAMES)


def test_names():
    assert list(LOSSES) == NAMES


@each
def test_class_is_exported_and_says_what_it_reads(name):
    kind = LOSSES[name]
    assert getattr(nnunet_kd.losses, kind.__name__) is kind
    assert kind.__name__ in nnunet_kd.losses.__all__
    assert kind.reads in ("logits", "features")
    assert isinstance(kind.weight, float) and kind.weight > 0
    assert isinstance(kind.needs_target, bool)
    assert issubclass(kind, nn.Module)


@each
def test_settings_are_keywords_with_plain_defaults(name):
    parameters = [p for p in inspect.signature(LOSSES[name].__init__).parameters.values() if p.name != "self"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    settings = [p for p in parameters if p.name not in GEOMETRY]
    assert all(type(p.default) in (int, float) for p in settings)
    assert "weight" not in {p.name for p in settings}


@each
@pytest.mark.parametrize("grid", [(4, 4), (4, 2, 4)])
def test_one_call_for_all(name, grid):
    kind, pair = LOSSES[name], name == "fsp"
    channels = (3, 3) if LOSSES[name].reads == "logits" else (3, 5)
    known = {"dims": len(grid), "classes": 3, "student_channels": channels[0], "teacher_channels": channels[1]}
    if pair:
        known |= {f"{who}_channels": (known[f"{who}_channels"],) * 2 for who in ("student", "teacher")}
    loss = kind(**{key: value for key, value in known.items() if key in inspect.signature(kind.__init__).parameters}).double()
    student, teacher = tensors(grid, *channels)
    student.requires_grad_()
    value = loss((student, student), (teacher, teacher)) if pair else loss(student, teacher, labels(grid, 3))
    assert value.shape == ()
    assert value > 0
    value.backward()
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


@each
def test_annotation_is_read_where_the_class_says_so(name):
    if name == "fsp":
        pytest.skip("reads pairs, see test_fsp.py")
    kind = LOSSES[name]
    known = {"dims": 2, "classes": 3, "student_channels": 4, "teacher_channels": 4}
    loss = kind(**{key: value for key, value in known.items() if key in inspect.signature(kind.__init__).parameters})
    student, teacher = (f.float() for f in tensors((4, 4), 4, 4))
    if kind.needs_target:
        with pytest.raises(ValueError, match="pass target"):
            loss(student, teacher)
    else:
        annotation = labels((4, 4), 3)
        if name == "dml":  # reads where there is one, and no class
            annotation = annotation.clamp(min=0)
        assert torch.equal(loss(student, teacher), loss(student, teacher, annotation))
