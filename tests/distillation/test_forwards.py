"""What a step computes: one encoder pass of each network, decoder passes as DICD and ACT need them, views of the teacher."""

from dataclasses import replace

import pytest
import torch
from distilling import LATE, run, setup
from small_runs import known_trainers, make, one_step, student

from nnunet_kd.networks.stages import unwrap

ALL = {"kd": {"weight": 1.0}, "intra": {"weight": 1.0}, "inter": {"weight": 1.0}, "cross": {"weight": 1.0, "views": "cross"}}


def count(module: torch.nn.Module, calls: list) -> None:
    """Keep the batch size of every call of an encoder, or of a decoder, whose argument is a list."""
    module.register_forward_pre_hook(
        lambda m, inputs: calls.append(len(inputs[0][0] if isinstance(inputs[0], list) else inputs[0]))
    )


@pytest.fixture
def trainers(monkeypatch, tiny_teacher):
    known_trainers(monkeypatch)

    def build(name, **section):
        trainer = make("nnUNetTrainerDistillation", student(tiny_teacher, f"KD{name}", **section))
        trainer.on_train_start()
        return trainer

    return build


# decoder passes of either network at epochs 0, 1 and 5 of 10 (warm-up, ACT, distillation): its own one, ACT's, TS or ST
PASSES = {
    "frozen": ({"after_act": "frozen", "stages": ["bottleneck"]}, (1, 2, 2)),
    "joint": ({"after_act": "joint", "stages": ["bottleneck"]}, (1, 2, 3)),
    # decoder stages need no pass of their own: the tap keeps them
    "decoder": ({"after_act": "joint", "stages": ["bottleneck", "decoder"]}, (1, 2, 3)),
}


@pytest.mark.parametrize("case", PASSES)
@pytest.mark.parametrize("kd", [True, False])
def test_one_encoder_pass_of_each_network_per_step(trainers, case, kd):
    msan, passes = PASSES[case]
    terms = ALL if kd else {**ALL, "kd": None}
    trainer = trainers(f"count{case}", preset="all", msan=msan, terms=terms, views={"preset": "light", "count": 2})
    calls = {}
    for name, network in (("student", unwrap(trainer.network)), ("teacher", trainer.teacher.network)):
        for part in ("encoder", "decoder"):
            count(getattr(network, part), calls.setdefault((name, part), []))
    for epoch, decoders in zip((0, 1, 5), passes, strict=True):
        for kept in calls.values():
            kept.clear()
        one_step(trainer, epoch)
        # the student's own loss is on the anchor; without KD nothing reads the views, or the teacher, in the warm-up
        idle = epoch == 0 and not kd
        assert calls["student", "encoder"] == [2 if idle else 6]
        assert calls["teacher", "encoder"] == ([] if idle else [6])
        assert len(calls["student", "decoder"]) == decoders
        assert len(calls["teacher", "decoder"]) == (0 if idle else decoders)


VIEW_KD, ANCHOR_KD = {"weight": 1.0}, {"weight": 1.0, "target": "anchor"}
ANCHOR_GRAPH = {"weight": 1.0, "target": "anchor"}
CROSS = {"weight": 1.0, "views": "cross"}
FROZEN, JOINT = {"after_act": "frozen"}, {"after_act": "joint"}
# terms, MSAN, ACT -> whether the teacher sees the views in the warm-up, ACT and distillation (None: it does not run)
READS_VIEWS = {
    "kd on views": ({"kd": VIEW_KD, "cross": CROSS}, FROZEN, {"consistency": 0.0}, (True, True, True)),
    "kd on anchors": ({"kd": ANCHOR_KD, "cross": CROSS}, FROZEN, {"consistency": 0.0}, (False, False, False)),
    "nothing": ({"cross": CROSS}, FROZEN, {"consistency": 0.0}, (None, False, False)),
    "consistency": ({"cross": CROSS}, FROZEN, {}, (None, True, False)),
    "consistency, joint": ({"cross": CROSS}, JOINT, {}, (None, True, True)),
    "joint": ({"cross": CROSS}, JOINT, {"consistency": 0.0}, (None, False, False)),
    "alignment": ({"cross": CROSS}, JOINT, {"consistency": 0.0, "alignment": 1.0}, (None, False, False)),
    "graph": ({"intra": {"weight": 1.0}}, FROZEN, {"consistency": 0.0}, (None, True, True)),
    "graph of the anchors": ({"inter": ANCHOR_GRAPH}, FROZEN, {"consistency": 0.0}, (None, False, False)),
    "one graph of each": ({"inter": ANCHOR_GRAPH, "intra": {"weight": 1.0}}, FROZEN, {"consistency": 0.0}, (None, True, True)),
}


@pytest.mark.parametrize("stages", [["bottleneck"], ["bottleneck", "decoder"]])
@pytest.mark.parametrize("case", READS_VIEWS)
def test_the_teacher_sees_views_only_where_something_reads_them(case, stages):
    terms, msan, act, expected = READS_VIEWS[case]
    section = {"msan": {**msan, "stages": stages}, "act": act}
    only = {**dict.fromkeys(("kd", "intra", "inter", "cross")), **terms}
    distiller, student, data, onehot = setup("all", **section, terms=only)
    calls = []
    count(distiller.teacher.network.encoder, calls)
    for progress, seen in zip((0.0, 0.2, LATE), expected, strict=True):
        calls.clear()
        step, found = run(distiller, student, data, onehot, progress)
        assert calls == ([] if seen is None else [6 if seen else 2])
        if progress and seen is not None:
            assert all(len(f) == calls[0] for f in step.teacher_features)
            assert len(step.teacher_features) == (5 if len(stages) == 2 else 3)
        assert all(torch.isfinite(v) for _, v in found.values())
        distiller.align(step)  # the rows suffice


def test_a_teacher_that_skips_the_views_gives_the_same_values_as_one_that_sees_them():
    only = {"kd": ANCHOR_KD, "intra": ANCHOR_GRAPH, "inter": ANCHOR_GRAPH, "cross": CROSS}
    found = []
    for everything in (False, True):
        distiller, student, data, onehot = setup("all", act={"consistency": 0.0}, terms=only)
        if everything:
            distiller.forward_plans = {
                phase: replace(plan, teacher_views=True) for phase, plan in distiller.forward_plans.items()
            }
        step, terms = run(distiller, student, data, onehot)
        assert len(step.teacher_features[0]) == (6 if everything else 2)
        found.append({n: v.item() for n, (_, v) in terms.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)
