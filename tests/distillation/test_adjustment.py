"""Logit adjustment: losses read the foreground lower than the student says it, prediction reads what it says."""

import math

import pytest
import torch
from distilling import run, setup, touched
from helpers import plans
from small_runs import known_trainers, make, one_step, student

from nnunet_kd.config.run import read_config
from nnunet_kd.losses import adjusted_logits, cross_prediction_loss, logit_kd
from nnunet_kd.losses.literature.dml import DML
from nnunet_kd.networks.stages import decode, swap


@pytest.mark.parametrize("dims", [2, 3])
def test_every_foreground_class_is_lowered_and_the_background_is_not(dims):
    logits = torch.randn(2, 3, *[4] * dims)
    lowered = adjusted_logits(logits, 0.7)
    assert torch.equal(lowered[:, 0], logits[:, 0])
    assert torch.allclose(lowered[:, 1:], logits[:, 1:] - 0.7)
    assert torch.allclose(adjusted_logits(logits, 0.7, regions=True), logits - 0.7)


def test_without_adjustment_the_logits_are_the_very_same():
    logits = torch.randn(2, 2, 4, 4).bfloat16()
    assert adjusted_logits(logits, 0.0) is logits


def test_half_precision_is_not_rounded_a_second_time():
    logits = torch.full((1, 2, 2, 2), 100.0, dtype=torch.bfloat16)  # next to it are 99.5 and 100.5
    assert adjusted_logits(logits, 0.1)[0, 1, 0, 0].item() == pytest.approx(99.9, abs=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_a_network_that_minimises_the_adjusted_loss_puts_its_threshold_where_the_docstring_says(regions):
    adjustment, likely = 0.5, torch.tensor([0.2, 0.37, 0.39, 0.6])  # 1 / (1 + e^0.5) = 0.378
    logits = torch.zeros(1, 1 if regions else 2, 4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        read = adjusted_logits(logits, adjustment, regions)[0]
        p = read[0].sigmoid() if regions else read.softmax(0)[1]
        loss = -(likely * p.log() + (1 - likely) * (1 - p).log()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    foreground = logits[0, 0] if regions else logits[0, 1] - logits[0, 0]
    assert torch.allclose(foreground, torch.logit(likely) + adjustment, atol=1e-3)
    assert (foreground > 0).tolist() == [False, False, True, True]
    assert 1 / (1 + math.exp(adjustment)) == pytest.approx(0.378, abs=1e-3)


# in the distiller


@pytest.mark.parametrize("regions", [False, True])
def test_kd_and_the_losses_on_logits_read_the_adjusted_student(regions):
    section = {"terms": {"kd": {"weight": 1.0}}, "losses": {"logits": {"dml": {}}}}
    distiller, network, data, onehot = setup("kd+views", regions=regions, logit_adjustment=0.7, **section)
    step, terms = run(distiller, network, data, onehot)
    lowered = adjusted_logits(step.student_logits, 0.7, regions)
    teacher = step.teacher_logits[: step.batch].repeat(step.views + 1, 1, 1, 1)
    assert terms["kd"][1].item() == pytest.approx(logit_kd(lowered, teacher, 1.0, regions).item(), rel=1e-5)
    assert terms["kd"][1].item() != pytest.approx(logit_kd(step.student_logits, teacher, 1.0, regions).item(), rel=1e-3)
    name = next(n for n in terms if "dml" in n)
    dml = DML(regions=regions)
    seen = step.teacher_logits
    assert terms[name][1].item() == pytest.approx(dml(lowered, seen).item(), rel=1e-4)
    assert terms[name][1].item() != pytest.approx(dml(step.student_logits, seen).item(), rel=1e-3)
    assert {n.split(".")[0] for n in touched(network, terms["kd"][1])} == {"encoder", "decoder"}


def test_crossed_predictions_are_adjusted_through_the_students_decoder_and_not_through_the_teachers():
    plain, *rest = setup("cross")
    step, without = run(plain, *rest)
    adjusted, *rest = setup("cross", logit_adjustment=0.7)
    _, terms = run(adjusted, *rest)
    assert terms["cross_st"][1].item() == pytest.approx(without["cross_st"][1].item(), rel=1e-6)
    assert terms["cross_ts"][1].item() != pytest.approx(without["cross_ts"][1].item(), rel=1e-3)
    rows = torch.arange(step.batch)
    with torch.no_grad():
        vectors = plain.alignment.encode("teacher", [f[rows] for f in step.teacher_features])
        features = [f[rows] for f in step.student_features]
        crossed = decode(plain.student, swap(features, plain.alignment.reconstruct("student", vectors, features)))
        expected = cross_prediction_loss(adjusted_logits(crossed, 0.7), step.teacher_logits[rows], False, None)
    assert terms["cross_ts"][1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_alignment_networks_read_what_the_student_says():
    # they compare it with what its own decoder makes of a rebuilt feature, which nothing lowers
    values = []
    for adjustment in (0.0, 9.0):
        distiller, network, data, onehot = setup("cross", logit_adjustment=adjustment)
        step, _ = run(distiller, network, data, onehot, progress=0.2)
        values.append(distiller.align(step))
    assert values[0] == values[1]


# in a training


def section(adjustment: float) -> dict:
    return {
        "preset": "kd+views",
        "views": {"preset": "light", "count": 1, "student_loss": "anchor"},
        "terms": {"kd": {"target": "anchor"}},
        "ramp": 0,
        "logit_adjustment": adjustment,
    }


def test_nnunets_own_loss_reads_the_adjusted_logits_of_every_head_in_training_and_in_validation(tiny_teacher, monkeypatch):
    known_trainers(monkeypatch)
    trainer = make("nnUNetTrainerDistillation", student(tiny_teacher, "KDadjusted", **section(0.7)))
    trainer.on_train_start()
    twin = make("nnUNetTrainerDistillation", student(tiny_teacher, "KDtwin", **section(0.0)))
    twin.on_train_start()
    batch = next(trainer.dataloader_val)
    data, target = batch["data"], batch["target"]
    trainer.network.train()
    output = trainer.network(data)
    assert isinstance(output, list) and len(output) > 1
    lowered = [adjusted_logits(o, 0.7) for o in output]
    assert trainer.loss(output, target).item() == pytest.approx(twin.loss(lowered, target).item(), rel=1e-6)
    assert trainer.loss(output, target).item() != pytest.approx(twin.loss(output, target).item(), rel=1e-3)
    trainer.network.eval()
    with torch.no_grad():
        known = trainer.validation_step(batch)
        expected = twin.loss([adjusted_logits(o, 0.7) for o in trainer.network(data)], target)
    assert float(known["loss"]) == pytest.approx(expected.item(), rel=1e-5)


def test_a_training_ends_with_a_student_that_finds_more_foreground(tiny_teacher, monkeypatch):
    known_trainers(monkeypatch)
    found = []
    for adjustment in (0.0, 3.0):
        planned = student(tiny_teacher, f"KDready{int(adjustment)}", **section(adjustment))
        trainer = make("nnUNetTrainerDistillation", planned)
        trainer.on_train_start()
        for _ in range(30):
            values = one_step(trainer, 0)
        assert math.isfinite(values["loss"]) and values["kd"] > 0
        trainer.network.eval()
        with torch.no_grad():
            logits = trainer.network(next(trainer.dataloader_val)["data"])[0]
        found.append((logits[:, 1] - logits[:, 0]).mean().item())
    assert found[1] > found[0] + 1


def test_the_undistilled_control_does_not_read_it():
    config = read_config(plans(logit_adjustment=0.5), "student", "nnUNetTrainerScheduled")
    assert config.logit_adjustment is None
