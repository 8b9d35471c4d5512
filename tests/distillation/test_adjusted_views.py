"""Logit adjustment of views alone: what the student says about anchors is read as it is."""

import pytest
import torch
from distilling import run, setup
from helpers import plans
from small_runs import known_trainers, make, one_step, student

from nnunet_kd.config.run import read_config
from nnunet_kd.losses import adjusted_logits, cross_prediction_loss, logit_kd
from nnunet_kd.losses.literature.dml import DML
from nnunet_kd.networks.stages import decode, swap
from nnunet_kd.utils.errors import KDError

KD = {"terms": {"kd": {"weight": 1.0, "target": "anchor"}}}


def lowered(logits, batch, view, anchor=0.0, regions=False):
    return torch.cat([adjusted_logits(logits[:batch], anchor, regions), adjusted_logits(logits[batch:], view, regions)])


@pytest.mark.parametrize(("anchor", "view"), [(None, 0.7), (0.2, 0.7), (0.2, 1)])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_kd_and_the_losses_on_logits_read_views_lowered_and_anchors_as_set(dims, regions, anchor, view):
    section = {**KD, "losses": {"logits": {"dml": {}}}, "logit_adjustment": anchor}
    distiller, network, *rest = setup("kd+views", dims, regions, logit_adjustment_views=view, **section)
    step, terms = run(distiller, network, *rest)
    expected = lowered(step.student_logits, step.batch, view, anchor or 0.0, regions)
    teacher = step.teacher_logits[: step.batch].repeat(step.views + 1, *[1] * (dims + 1))
    assert terms["kd"][1].item() == pytest.approx(logit_kd(expected, teacher, 1.0, regions).item(), rel=1e-5)
    dml = next(value for name, (_, value) in terms.items() if "dml" in name)
    assert dml.item() == pytest.approx(DML(regions=regions)(expected, step.teacher_logits).item(), rel=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_gradient_on_anchors_is_that_of_the_run_without(batch):
    gradients = []
    for adjustment in (None, 0.7):
        distiller, network, *rest = setup("kd+views", batch=batch, logit_adjustment_views=adjustment, **KD)
        step, terms = run(distiller, network, *rest)
        gradients.append(torch.autograd.grad(terms["kd"][1], step.student_logits)[0])
    without, with_it = gradients
    assert torch.equal(without[:batch], with_it[:batch]) and without[:batch].abs().max() > 0
    # a loss of lowered logits asks for more foreground, everywhere
    assert (with_it[batch:, 1] < without[batch:, 1]).all()


@pytest.mark.parametrize(("views", "read"), [("cross", 0.7), ("same", 0.0)])
def test_a_crossed_prediction_is_lowered_where_it_is_of_a_view(views, read):
    section = {"views": {"preset": "strong", "count": 1}, "terms": {"cross": {"weight": 1.0, "views": views}, **KD["terms"]}}
    distiller, network, *rest = setup("cross-view", logit_adjustment_views=0.7, **section)
    step, terms = run(distiller, network, *rest)
    rows = torch.arange(step.batch) + (step.batch if views == "cross" else 0)
    with torch.no_grad():
        vectors = distiller.alignment.encode("teacher", [f[: step.batch] for f in step.teacher_features])
        features = [f[rows] for f in step.student_features]
        crossed = decode(distiller.student, swap(features, distiller.alignment.reconstruct("student", vectors, features)))
        teacher = step.teacher_logits[: step.batch]
        expected = cross_prediction_loss(adjusted_logits(crossed, read), teacher, False, None)
        other = cross_prediction_loss(adjusted_logits(crossed, 0.7 - read), teacher, False, None)
    assert terms["cross_ts"][1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["cross_ts"][1].item() != pytest.approx(other.item(), rel=1e-3)


@pytest.mark.parametrize("student_loss", ["anchor", "all"])
def test_nnunets_own_loss_reads_views_lowered_at_every_head_and_anchors_as_they_are(tiny_teacher, monkeypatch, student_loss):
    known_trainers(monkeypatch)
    section = {"preset": "kd+views", "ramp": 0, "views": {"preset": "light", "count": 1, "student_loss": student_loss}, **KD}
    trainer = make("nnUNetTrainerDistillation", student(tiny_teacher, "KDviews", **section, logit_adjustment_views=0.7))
    twin = make("nnUNetTrainerDistillation", student(tiny_teacher, "KDviewstwin", **section))
    for one in (trainer, twin):
        one.on_train_start()
    heads, targets = [], []

    def watch(output, target):
        heads.append([o.detach().clone() for o in output])
        targets.append(target)
        return plain(output, target)

    plain, trainer.loss = trainer.loss, watch
    said = one_step(trainer, 0)["seg_loss"]
    (output,), (target,) = heads, targets
    assert len(output) > 1
    times, size = (2 if student_loss == "all" else 1), len(output[0]) // 2
    assert len(output[0]) == 2 * size and len(target[0]) == times * size
    read = [lowered(o, size, 0.7)[: times * size] for o in output]
    assert said == pytest.approx(twin.loss(read, target).item(), rel=1e-5)
    unread = twin.loss([o[: times * size] for o in output], target).item()
    if student_loss == "all":
        assert said != pytest.approx(unread, rel=1e-3)
    # validation has no views
    trainer.network.eval()
    batch = next(trainer.dataloader_val)
    with torch.no_grad():
        known, output = trainer.validation_step(batch), trainer.network(batch["data"])
        assert float(known["loss"]) == pytest.approx(twin.loss(output, batch["target"]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("preset", "section", "message"),
    [
        ("kd", {}, 'no loss reads what the student says about views: set it to null, or switch "views" and "terms.kd" on'),
        ("intra", {}, "logit_adjustment_views.*no loss reads"),
        ("cross", {}, "logit_adjustment_views.*no loss reads"),  # its crossed predictions are of anchors
        ("kd+views", {"views": None, "terms": {"kd": {"target": "view"}}}, "logit_adjustment_views.*no loss reads"),
        ("kd+views", {"logit_adjustment_views": -0.1}, "logit_adjustment_views"),
        ("kd+views", {"logit_adjustment_views": 11.0}, "logit_adjustment_views"),
        ("kd+views", {"logit_adjustment_views": "1"}, "logit_adjustment_views"),
    ],
)
def test_where_nothing_would_read_it_it_is_an_error(preset, section, message):
    with pytest.raises(KDError, match=message):
        read_config(plans(**{"logit_adjustment_views": 1.0, **section}), preset, "T")


@pytest.mark.parametrize("preset", ["kd+views", "views-only", "cross-view", "default"])
def test_where_something_reads_it_it_is_taken(preset):
    assert read_config(plans(logit_adjustment_views=1.0), preset, "T").logit_adjustment_views == 1.0


def test_the_undistilled_control_does_not_read_it():
    assert read_config(plans(logit_adjustment_views=1.0), "student", "T").logit_adjustment_views is None


@pytest.mark.parametrize("off", [0.0, None])
def test_the_default_has_it_and_can_be_told_not_to(off):
    assert read_config(plans(), "default", "T").logit_adjustment_views > 0
    assert not read_config(plans(logit_adjustment_views=off), "default", "T").logit_adjustment_views
