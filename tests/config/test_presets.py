"""Every preset builds and steps in every phase; what the documentation says of them; settings that fit no other."""

import copy

import numpy as np
import pytest
import torch
from distilling import of_decoder, of_encoder, run, setup, touched
from helpers import plans
from small_runs import known_trainers, make, one_step, same, student, weights

from nnunet_kd.config.presets import ALIASES, NAMES, PRESETS, full_name, settings_of
from nnunet_kd.config.recipe import RETIRED
from nnunet_kd.config.run import read_config, to_dict
from nnunet_kd.training import distillation as trainer
from nnunet_kd.training import named as named_trainers
from nnunet_kd.training import retired as retired_trainers
from nnunet_kd.utils.errors import KDError

GRAPHS, CROSS = ("intra", "inter"), ("cross_ts", "cross_st")
# preset -> the terms of its last phase
TERMS = {
    "student": (),
    "views-only": (),
    "kd": ("kd",),
    "kd+views": ("kd",),
    "intra": ("intra",),
    "inter": ("inter",),
    "cross": CROSS,
    "intra+inter": GRAPHS,
    "paper": GRAPHS + CROSS,
    "kd+mirrored": ("kd",),
    "kd+adjusted+mirrored": ("kd",),
    "gkd": ("kd", *GRAPHS, *CROSS),
    "cross-view": ("kd", *GRAPHS, *CROSS),
    "at": ("at@bottleneck",),
    "fitnets": ("fitnets@bottleneck",),
    "fsp": ("fsp@all",),
    "cwd": ("cwd-logits@logits",),
    "skd": ("skd-pixelwise@logits", "skd-pairwise@decoder0"),
    "ifvd": ("kd", "ifvd@decoder0"),
    "dist": ("dist@logits",),
    "dml": ("dml@logits",),
    "emkd": ("kd", "imd@all", "rad@decoder0"),
    "cirkd": ("kd", "cirkd@decoder0", "cirkd-memory@decoder0"),
}


@pytest.fixture(autouse=True)
def trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_steps_in_every_phase(tiny_teacher, preset):
    trainer = make("nnUNetTrainerDistillation", student(tiny_teacher, "KDpreset", preset=preset))
    trainer.on_train_start()
    assert (trainer.teacher is not None) == bool(trainer.kd.distils)
    aligned = trainer.kd.need_alignment
    for epoch, phase in ((0, "warm-up"), (1, "act"), (5, "distil")):
        before, msans = weights(trainer), copy.deepcopy(trainer.distiller.state_dict().get("alignment"))
        values = {k: float(v) for k, v in one_step(trainer, epoch).items() if np.isfinite(v)}
        assert trainer.distiller.phase(epoch / 10) == (phase if aligned else "distil")
        assert not same(before, weights(trainer))  # the student goes on learning in every phase
        assert {"loss", "seg_loss"} <= set(values)
        terms = {k for k in values if k in ("kd", *GRAPHS, *CROSS) or "@" in k}
        if phase == "distil":
            assert terms == set(TERMS[preset])
        if aligned:
            now = trainer.distiller.state_dict()["alignment"]
            changed = {k.split(".")[0] for k in now if not torch.equal(now[k], msans[k])}
            joint = {"msans"} if trainer.kd.msan.after_act == "joint" else set()
            semantic = {"autoencoder"} if trainer.kd.act.semantic else set()
            assert changed == {"warm-up": semantic, "act": {"msans"}, "distil": joint}[phase]
        else:
            assert not [k for k in values if k.startswith("act_")]


@pytest.mark.parametrize("preset", [p for p in PRESETS if "msan" in PRESETS[p]])
def test_every_preset_with_msans_steps_on_volumes_at_batch_1(preset):
    for progress in (0.0, 0.2, 0.9):
        distiller, network, data, onehot = setup(preset, 3, batch=1)
        step, terms = run(distiller, network, data, onehot, progress)
        assert all(torch.isfinite(v) for _, v in terms.values())
        assert all(np.isfinite(v) for v in distiller.align(step).values())


def test_all_is_paper_and_student_is_nothing():
    assert to_dict(read_config(plans(), "all", "T")) == to_dict(read_config(plans(), "paper", "T"))
    plain = read_config(plans(views={"count": 3}, msan={"dim": 5}, act={}, terms={"inter": {}}), "student", "T")
    assert (plain.views, plain.msan, plain.act, plain.terms.active) == (None, None, None, [])


ALIASED = {  # what an old name means, as it was written out before it became an alias
    "adjusted": {"terms": {"kd": {"weight": 1.0, "target": "anchor"}}, "logit_adjustment": 0.5},
    "balanced": {"terms": {"kd": {"weight": 1.0, "target": "anchor", "balance": 1.0}}},
    "dice": {
        "terms": {"kd": {"weight": 1.0, "target": "anchor", "balance": 0.5}},
        "losses": {"logits": {"dml": {"weight": 1.0, "target": "anchor"}}},
    },
    "default": {
        "terms": {"kd": {"weight": 1.0, "target": "anchor"}},
        "logit_adjustment_views": 1.0,
        "mirrored_teacher": True,
    },
}


@pytest.mark.parametrize("name", ALIASED)
def test_an_alias_means_what_it_meant(name):
    probe = {
        "views": {"preset": "strong", "count": 1, "student_loss": "anchor"},
        "msan": {"kind": "spatial", "stages": ["bottleneck"], "dim": 128, "after_act": "joint"},
        "act": {"consistency": 0.0, "decoded": 0.0, "share": 0.25},
    }
    found = to_dict(read_config(plans(), name, "T"))
    expected = to_dict(read_config(plans(), None, "T", {"preset": full_name(name), **probe, **ALIASED[name]}))
    assert found == expected


def test_aliases_are_of_presets_and_no_preset_is_called_like_one():
    assert {settings["preset"] for settings in ALIASES.values()} <= set(PRESETS) and not set(ALIASES) & set(PRESETS)
    assert (
        full_name("default") == "kd+adjusted+mirrored" and full_name("adjusted") == "adjusted" and len(set(NAMES)) == len(NAMES)
    )
    settings_of("default")["terms"]["kd"]["weight"] = 9.0
    assert settings_of("default")["terms"]["kd"]["weight"] == 1.0


def test_plans_and_trainer_may_name_one_preset_by_two_names():
    assert read_config(plans(preset="default"), "kd+adjusted+mirrored", "T").preset == "kd+adjusted+mirrored"
    with pytest.raises(
        KDError, match='"default", which is "kd.adjusted.mirrored", but trainer T stands for preset "gkd".*remove'
    ):
        read_config(plans(preset="default"), "gkd", "T")


def test_kd_mirrored_is_kd_on_views_from_a_mirrored_teacher_and_nothing_else():
    mirrored, views = (to_dict(read_config(plans(), p, "T")) for p in ("kd+mirrored", "kd+views"))
    assert mirrored.pop("mirrored_teacher") and mirrored | {"preset": "kd+views"} == views


def trains_by_everything(config) -> bool:
    """Whether MSANs, ACT, DCGD's two graphs and DICD both ways train the student."""
    terms, act = config.terms, config.act
    if config.msan is None or act is None or None in (terms.intra, terms.inter, terms.cross):
        return False
    trained = act.reconstruction + act.semantic + act.consistency + act.decoded + act.alignment > 0
    return (
        trained
        and min(
            terms.intra.weight, terms.inter.weight, terms.cross.weight * terms.cross.ts, terms.cross.weight * terms.cross.st
        )
        > 0
    )


def test_a_trainer_is_called_gkd_if_and_only_if_all_of_gkd_trains_the_student():
    classes = {
        n: c
        for n, c in {**vars(trainer), **vars(named_trainers)}.items()
        if n.startswith("nnUNetTrainer") and hasattr(c, "preset")
    }
    gkd = {n for n, c in classes.items() if c.preset and trains_by_everything(read_config(plans(), c.preset, n))}
    assert (
        gkd == {n for n in classes if "GKD" in n} == {"nnUNetTrainerGKD", "nnUNetTrainerGKDCrossView", "nnUNetTrainerGKDPaper"}
    )
    retired = {n: c.preset for n, c in vars(retired_trainers).items() if n.startswith("nnUNetTrainerGKD")}
    assert retired == RETIRED and not set(retired) & set(classes)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_term_of_gkd_has_a_gradient_on_the_student_at_batch_2(dims, regions):
    distiller, network, data, onehot = setup("gkd", dims, regions, batch=2)
    _, terms = run(distiller, network, data, onehot)
    assert set(terms) == {"kd", *GRAPHS, *CROSS}
    for name, (weight, value) in terms.items():
        assert weight > 0 and value > 0, name
        # DICD's TS has the teacher's vectors in place of all the student's features: it trains the student's decoder
        part = of_decoder if name == "cross_ts" else of_encoder
        assert part(touched(network, value)), name


def test_paper_has_the_published_form():
    paper = read_config(plans(), "paper", "T")
    assert paper.terms.kd is None
    assert (paper.msan.kind, paper.msan.stages, paper.msan.after_act) == ("vector", ["bottleneck"], "frozen")
    assert (paper.views.count, paper.views.student_loss, paper.terms.cross.views) == (2, "anchor", "same")
    for graph in (paper.terms.intra, paper.terms.inter):
        assert (graph.nodes, graph.centred, graph.target) == ("patch", False, "view")


def test_columns_of_the_ablation_differ_in_their_terms_alone():
    columns = [read_config(plans(), p, "T") for p in ("intra", "inter", "cross", "intra+inter", "paper")]
    assert len({str(to_dict(c)["views"] | to_dict(c)["msan"] | to_dict(c)["act"]) for c in columns}) == 1
    assert columns[3].terms.intra == columns[0].terms.intra == columns[4].terms.intra
    assert columns[3].terms.inter == columns[1].terms.inter == columns[4].terms.inter
    assert columns[4].terms.cross == columns[2].terms.cross


# settings that do not fit each other


def test_class_nodes_need_a_map():
    graph = {"inter": {"nodes": "class"}}
    for kind in ("map", "spatial"):
        assert read_config(plans(msan={"kind": kind, "dim": 128}, terms=graph), "inter", "T").terms.inter.nodes == "class"
    with pytest.raises(KDError, match='nodes "class" need.*msan.kind "vector"'):
        read_config(plans(msan={"kind": "vector"}, terms=graph), "inter", "T")


def test_swapping_needs_an_encoder_stage():
    # DICD swaps encoder stages only: at decoder stages alone it would compare each network with itself
    with pytest.raises(KDError, match="terms.cross.*swaps encoder stages.*has none"):
        distiller, *_ = setup("cross", msan={"stages": ["decoder"]})


BAD = [
    ({"terms": {"inter": {"nodes": "pixel"}}}, "nodes"),
    ({"terms": {"inter": {"target": "teacher"}}}, "target"),
    ({"terms": {"inter": {"form": "squared", "tau": 0.1}}}, "tau.*squared"),
    ({"terms": {"kd": {"balance": -0.1}}}, "kd.balance"),
    ({"terms": {"kd": {"balance": 1.1}}}, "kd.balance"),
    ({"terms": {"cross": {"balance": 2}}}, "cross.balance"),
    ({"schedule": {"initial_lr": 0}}, "initial_lr"),
    ({"terms": {"inter": {"centred": 1}}}, "centred.*type bool"),
    ({"terms": {"inter": {"share": 0.5}}}, 'unknown key "nnunet_kd.terms.inter.share"'),
    ({"terms": {"cross": {"share": 0}}}, "share"),
    ({"terms": {"cross": {"share": 1.5}}}, "share"),
    ({"act": {"share": 0}}, "act.share"),
    ({"act": {"alignment": -1}}, "act.alignment"),
    ({"msan": {"stages": [True]}}, "msan.stages"),
    ({"msan": {"stages": [1.5]}}, "msan.stages"),
    ({"schedule": {"cpu_precision": "float16"}}, "cpu_precision"),
]


@pytest.mark.parametrize(("section", "message"), BAD)
def test_bad_values_of_the_newer_keys_are_errors(section, message):
    with pytest.raises(KDError, match=message) as error:
        read_config(plans(**section), "all", "T")
    assert "\n" not in str(error.value)
