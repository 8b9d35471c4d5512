"""KD's target averaged over mirrored copies of the patch: as nnU-Net predicts, drawn anew at every step, and for KD alone."""

import pytest
import torch
from distilling import run, setup, touched
from helpers import network, plans
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from small_runs import continues_to_the_same, known_trainers, make, student

from nnunet_kd.augmentation.mirroring import draw_mirrorings, mirrored_logits, mirrorings_of
from nnunet_kd.config.run import read_config
from nnunet_kd.losses import logit_kd
from nnunet_kd.networks.teacher import FrozenTeacher
from nnunet_kd.nnunet_io import trained_fold
from nnunet_kd.utils.errors import KDError


def test_every_mirroring_once():
    assert mirrorings_of((0, 1)) == [(2,), (3,), (2, 3)]
    assert len(mirrorings_of((0, 1, 2))) == len(set(mirrorings_of((0, 1, 2)))) == 7
    assert mirrorings_of((1,)) == [(3,)] and mirrorings_of(()) == []


def test_a_mean_by_hand():
    data = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    ramp = torch.tensor([[0.0, 10.0], [20.0, 30.0]])  # a network that knows up from down
    found = mirrored_logits(lambda x: x + ramp, data, data + ramp, [(2,)])
    assert found.tolist() == (data + torch.tensor([[10.0, 20.0], [10.0, 20.0]])).tolist()


@pytest.mark.parametrize("dims", [2, 3])
def test_all_of_them_are_nnunets_own_prediction(dims):
    torch.manual_seed(0)
    teacher, data = FrozenTeacher(network(dims), range(dims)), torch.randn(2, 1, *[16] * dims)
    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"))
    predictor.network, predictor.allowed_mirroring_axes = teacher.network, tuple(range(dims))
    with torch.no_grad():
        expected = predictor._internal_maybe_mirror_and_predict(data)
        plain = teacher(data)
        found = mirrored_logits(teacher, data, plain, teacher.mirrorings)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_draws_are_without_repetition_and_reach_all():
    copies, generator = mirrorings_of((0, 1, 2)), torch.Generator().manual_seed(0)
    drawn = [draw_mirrorings(copies, 3, generator) for _ in range(40)]
    assert all(len(set(d)) == 3 for d in drawn) and {axes for d in drawn for axes in d} == set(copies)


# in the distiller


@pytest.mark.parametrize("target", ["anchor", "view"])
@pytest.mark.parametrize("preset", ["kd+views", "cross-view"])  # without and with features of the teacher
def test_kd_learns_from_the_mean_and_nothing_else_does(preset, target):
    terms = {"kd": {"target": target, "mirrorings": 3}}
    distiller, net, data, onehot = setup(preset, terms=terms)
    plain, *rest = setup(preset, terms={"kd": {"target": target}})
    step, found = run(distiller, net, data, onehot)
    _, without = run(plain, *rest)
    rows = step.batch if target == "anchor" else len(step.data)
    with torch.no_grad():
        seen = step.data[:rows]
        mean = mirrored_logits(distiller.teacher, seen, distiller.teacher(seen), distiller.teacher.mirrorings)
    expected = logit_kd(step.student_logits, mean.repeat(len(step.data) // rows, 1, 1, 1), 1.0, False)
    assert found["kd"][1].item() == pytest.approx(expected.item(), rel=1e-4)
    assert found["kd"][1].item() != pytest.approx(without["kd"][1].item(), rel=1e-3)
    assert {n.split(".")[0] for n in touched(net, found["kd"][1])} == {"encoder", "decoder"}
    for name in found.keys() - {"kd"}:
        assert found[name][1].item() == pytest.approx(without[name][1].item(), rel=1e-5), name


@pytest.mark.parametrize("batch", [1, 2])
def test_three_dimensions_draw_some_of_seven(batch):
    distiller, net, data, onehot = setup("kd", dims=3, batch=batch, terms={"kd": {"weight": 1.0, "mirrorings": 2}})
    targets = [run(distiller, net, data, onehot)[0].mirrored_logits for _ in range(4)]
    assert all(t.shape == (batch, 2, 16, 16, 16) and t.isfinite().all() for t in targets)
    assert any(not torch.equal(targets[0], t) for t in targets[1:])


def test_one_forward_for_each_copy():
    distiller, net, data, onehot = setup("kd", terms={"kd": {"weight": 1.0, "mirrorings": 2}})
    read = []
    distiller.teacher.network.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    run(distiller, net, data, onehot)
    assert read == [2, 2, 2]


def test_more_than_the_teacher_knows_is_an_error_before_training():
    with pytest.raises(KDError, match='"nnunet_kd.terms.kd.mirrorings" is 4, the teacher was trained with 3.*write 3 or less'):
        setup("kd", terms={"kd": {"mirrorings": 4}})
    distiller, *_ = setup("kd", terms={"kd": {"mirrorings": 1}})
    with pytest.raises(KDError, match="with 0 mirrorings: remove the key"):
        distiller.attach(FrozenTeacher(network()))


@pytest.mark.parametrize("value", [0, -1, 1.5, "all", True])
def test_bad_values(value):
    with pytest.raises(KDError, match="mirrorings"):
        read_config(plans(terms={"kd": {"mirrorings": value}}), "kd", "T")


# in a training

SECTION = {
    "schedule": {"epochs": 4, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1},
    "terms": {"kd": {"weight": 1.0, "target": "anchor", "mirrorings": 2}},
}


@pytest.fixture
def trainers(monkeypatch):
    known_trainers(monkeypatch)


def test_the_axes_are_those_of_the_teachers_checkpoint(tiny_teacher, trainers):
    trainer = make("nnUNetTrainerKDViews", student(tiny_teacher, "KDmirroraxes", **SECTION))
    trainer.on_train_start()
    assert trainer.teacher.mirrorings == [(2,), (3,), (2, 3)]


@pytest.mark.parametrize(("saved", "expected"), [(None, ()), ((0, 1), (0, 1)), ([1], (1,))])
def test_a_teacher_trained_without_mirroring_has_no_axes(tiny_teacher, monkeypatch, saved, expected):
    monkeypatch.setattr(trained_fold, "load_checkpoint", lambda file: {"inference_allowed_mirroring_axes": saved})
    assert trained_fold.TrainedFold.open(tiny_teacher).mirror_axes == expected


def test_a_stopped_training_continues_to_the_same_result(tiny_teacher, trainers):
    continues_to_the_same("nnUNetTrainerKDViews", student(tiny_teacher, "KDmirrored", **SECTION))
