"""Half precision: losses stay float32 under autocast, and a training with bfloat16 steps on the CPU."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from distilling import run, setup
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from small_runs import known_trainers, make, one_step, same, stopped, student, weights

from nnunet_kd.deploy.export import export_model
from nnunet_kd.losses import class_prototypes, full_precision, inter_graph_loss
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.planning.plans import plan_teacher
from nnunet_kd.planning.requests import TeacherRequest

TERMS = {n: {"weight": 1.0} for n in ("kd", "intra", "inter", "cross")}


@pytest.fixture(autouse=True)
def trainers(monkeypatch):
    known_trainers(monkeypatch)


# under autocast


@pytest.mark.parametrize(("half", "batch"), [(torch.bfloat16, 1), (torch.float16, 2)])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [{"kind": "vector"}, {"kind": "spatial", "dim": 64}, {"kind": "map", "dim": 6}])
def test_terms_are_float32_and_close_to_those_without_autocast(half, dims, kind, batch):
    graph = {"weight": 1.0, "nodes": "patch" if kind["kind"] == "vector" else "class", "tau": 1.0}
    terms = {**TERMS, "intra": graph, "inter": graph}
    found = []
    for enabled in (False, True):
        distiller, student_network, data, onehot = setup(
            "all", dims, batch=batch, supervision=True, msan={**kind, "stages": ["bottleneck", "decoder0"]}, terms=terms
        )
        with torch.autocast("cpu", half, enabled=enabled):
            step, values = run(distiller, student_network, data, onehot)
        assert (step.student_features[-1].dtype == half) == enabled  # the network itself runs in half precision
        assert (step.teacher_logits.dtype == half) == enabled
        assert all(value.dtype == torch.float32 for _, value in values.values())
        sum(value for _, value in values.values()).backward()
        gradients = [p.grad for p in student_network.parameters() if p.grad is not None]
        assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients)
        act, _ = run(distiller, student_network, data, onehot, 0.2)
        assert all(np.isfinite(v) for v in distiller.align(act).values())
        found.append({n: v.item() for n, (_, v) in values.items()})
    assert found[1] == pytest.approx(found[0], rel=0.1, abs=2e-3)
    assert found[1] != found[0]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_class_nodes_of_half_maps(half):
    maps = (torch.randn(4, 6, 4, 4) * 100).to(half)
    onehot = torch.nn.functional.one_hot(torch.randint(2, (2, 4, 4)), 2).movedim(-1, 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        nodes = class_prototypes(maps, onehot)
        value = inter_graph_loss(nodes, nodes.flip(1), centred=True)
    assert nodes.dtype == value.dtype == torch.float32
    assert torch.allclose(nodes, class_prototypes(maps.float(), onehot))


def test_full_precision_reaches_into_nested_lists_and_keywords():
    seen = {}

    @full_precision
    def loss(outputs, *, target):
        seen["types"] = [outputs[0].dtype, outputs[1][0].dtype, outputs[1][1].dtype, target[0].dtype, target[1].dtype]
        seen["product"] = (outputs[0] @ outputs[0].T).dtype
        return outputs[0].sum()

    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss([x.bfloat16(), (x.half(), x.double())], target=[x.half(), x.long()])
        assert (x @ x).dtype == torch.bfloat16  # autocast is back on
    assert seen["types"] == [torch.float32, torch.float32, torch.float64, torch.float32, torch.int64]
    assert seen["product"] == torch.float32


# cpu_precision


def schedule(precision, epochs=10, iterations=1):
    return {
        "epochs": epochs,
        "iterations_per_epoch": iterations,
        "val_iterations_per_epoch": 1,
        "save_every": 1,
        "cpu_precision": precision,
    }


def channels_last(network) -> bool:
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4)


@pytest.mark.parametrize(
    ("precision", "features", "expected"),
    [
        ("float32", [4, 4, 8], False),
        ("bfloat16", [4, 4, 8], True),
        ("bfloat16", [15, 32], True),
        ("bfloat16", [16, 32], False),
    ],
)
def test_narrow_networks_are_channels_last_under_bfloat16(tiny_dataset, precision, features, expected):
    planned = plan_teacher(
        TeacherRequest(950, "2d", features=features, cpu_precision=precision, name="PlansLayout", overwrite=True)
    )
    trainer = make("nnUNetTrainerScheduled", planned.plans_name)
    trainer.initialize()
    assert channels_last(trainer.network) == expected
    assert trainer.network.decoder.encoder is trainer.network.encoder


def test_channels_last_changes_no_number_but_rounding(tiny_teacher):
    plans = student(tiny_teacher, "KDlayout16", schedule=schedule("bfloat16"))
    found = []
    for narrow in (True, False):
        trainer = make("nnUNetTrainerGKD", plans)
        trainer.on_train_start()
        if not narrow:
            trainer.network.to(memory_format=torch.contiguous_format)
        assert channels_last(trainer.network) == narrow
        found.append([float(one_step(trainer, epoch)["loss"]) for epoch in (0, 1, 5)])
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_a_channels_last_training_is_exported_and_verified(tiny_teacher, tmp_path):
    trainer = make("nnUNetTrainerGKD", student(tiny_teacher, "KDexport16", schedule=schedule("bfloat16", epochs=4)))
    trainer.run_training()
    assert channels_last(trainer.network)
    out = export_model(trainer.output_folder_base, tmp_path / "MODEL")
    exported = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert same(exported, weights(trainer))


def test_float32_leaves_nnunets_loss_and_step_as_they_are(tiny_teacher):
    trainer = make("nnUNetTrainerScheduled", student(tiny_teacher, "KDfull32", schedule=schedule("float32")))
    trainer.initialize()
    logits = [torch.randn(2, 2, 32, 32), torch.randn(2, 2, 16, 16)]
    target = [torch.randint(0, 2, (2, 1, *z.shape[2:])).float() for z in logits]
    stock = nnUNetTrainer._build_loss(trainer)
    assert type(stock) is DeepSupervisionWrapper
    assert trainer.loss(logits, target) == stock(logits, target)
    with trainer._autocast:
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["nnUNetTrainerScheduled", "nnUNetTrainerGKD", "nnUNetTrainerGKDPaper"])
def test_a_bfloat16_step_computes_the_networks_in_half_and_the_loss_in_full(tiny_teacher, name):
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = make(name, student(tiny_teacher, f"KD{precision}", schedule=schedule(precision)))
        trainer.on_train_start()
        types, logits = set(), set()
        trainer.network.encoder.register_forward_hook(lambda m, i, out, t=types: t.update(f.dtype for f in out))
        plain = trainer.loss

        def watched(output, target, plain=plain, logits=logits):
            logits.update(o.dtype for o in output)
            value = plain(output, target)
            assert value.dtype == torch.float32
            return value

        trainer.loss = watched
        losses[precision] = [float(one_step(trainer, epoch)["loss"]) for epoch in (0, 1, 5)]
        with torch.no_grad():
            losses[precision].append(float(trainer.validation_step(next(trainer.dataloader_val))["loss"]))
        assert types == logits == {getattr(torch, precision)}
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
        assert not torch.is_autocast_enabled("cpu")
    assert np.isfinite(losses["bfloat16"]).all()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bfloat16"] != losses["float32"]


def test_a_stopped_bfloat16_training_continues_to_the_same_result(tiny_teacher):
    section = {
        "schedule": schedule("bfloat16"),
        "msan": {"kind": "map", "dim": 4, "stages": ["all", "decoder"]},
        "terms": {"inter": {"nodes": "class", "target": "anchor"}, "cross": {"share": 0.5}},
        "act": {"alignment": 0.5, "share": 0.5},
        "mirrored_teacher": False,
    }
    plans = student(tiny_teacher, "KDresume16", **section)
    whole = make("nnUNetTrainerGKD", plans)
    whole.on_train_start()
    assert channels_last(whole.network)
    stopped(whole, 6)
    logged = whole.logger.local_logger.my_fantastic_logging
    for stop in (2, 4):  # inside ACT, and while distilling
        shutil.rmtree(whole.output_folder)
        Path(whole.output_folder).mkdir()
        first = make("nnUNetTrainerGKD", plans)
        first.on_train_start()
        stopped(first, stop)
        shutil.copy(Path(first.output_folder) / "checkpoint_latest.pth", Path(first.output_folder) / "checkpoint_stop.pth")
        second = make("nnUNetTrainerGKD", plans, resume=True)
        assert second.current_epoch == stop
        second.on_train_start()
        assert channels_last(second.network)
        stopped(second, 6 - stop)
        assert same(weights(second), weights(whole)), stop
        assert same(second.distiller.alignment.state_dict(), whole.distiller.alignment.state_dict()), stop
        again = second.logger.local_logger.my_fantastic_logging
        for key in (k for k in logged if "timestamps" not in k):
            assert np.array_equal(np.array(again[key], float), np.array(logged[key], float), equal_nan=True), key
    state = load_checkpoint(Path(second.output_folder) / "checkpoint_latest.pth")
    assert all(v.dtype == torch.float32 for v in state["network_weights"].values())
