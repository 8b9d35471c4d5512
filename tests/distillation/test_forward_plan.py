"""What a step runs and reads in every phase, for every preset, as a table; and that reading settings needs no torch."""

import subprocess
import sys

import pytest
from helpers import plans

from nnunet_kd.config.presets import PRESETS
from nnunet_kd.config.run import Config, read_config
from nnunet_kd.config.stage_losses import LossSetting
from nnunet_kd.config.terms import Terms
from nnunet_kd.config.validation import build
from nnunet_kd.distillation.forward_plan import ForwardPlan, phase_at, phases, plan_forwards

# letters: s student's batch has the views, l its own loss reads them; t teacher runs, v on the views, p their predictions are
# read; f stage features, d also the decoder's; g DCGD and DICD; then what the alignment step trains
FLAGS = {
    "s": "student_views",
    "l": "annotated_views",
    "t": "teacher",
    "v": "teacher_views",
    "p": "teacher_logits_of_views",
    "f": "features",
    "d": "decoder_stages",
    "g": "vector_terms",
}
PAPER = (2, "- autoencoder", "stvf msans", "stvfg -")
PROBED = (1, "st autoencoder", "stf msans", "stf msans")
# preset: views, then one entry per phase
TABLE = {
    "student": (0, "- -"),
    "views-only": (1, "sl -"),
    "kd": (0, "t -"),
    "kd+views": (1, "st -"),
    "intra": PAPER,
    "inter": PAPER,
    "intra+inter": PAPER,
    "all": PAPER,
    "paper": PAPER,
    "cross": (2, "- autoencoder", "stvf msans", "stfg -"),
    "kd+mirrored": (1, "st -"),
    "kd+adjusted+mirrored": PROBED,
    "gkd": (1, "st autoencoder", "stvf msans", "stvfg msans"),
    "default": PROBED,
    "adjusted": PROBED,
    "balanced": PROBED,
    "dice": PROBED,
    "cross-view": (1, "slt autoencoder", "sltvf msans", "sltvfg msans"),
    "at": (0, "tf -"),
    "fitnets": (0, "tf -"),
    "fsp": (0, "tf -"),
    "skd": (0, "tfd -"),
    "ifvd": (0, "tfd -"),
    "cwd": (0, "t -"),
    "dist": (0, "t -"),
    "dml": (0, "t -"),
    "emkd": (0, "tfd -"),
    "cirkd": (0, "tfd -"),
}


def expected(views: int, entry: str) -> ForwardPlan:
    letters, trains = entry.split()
    flags = {FLAGS[letter]: True for letter in letters if letter != "-"}
    return ForwardPlan(views=views, trains=None if trains == "-" else trains, **flags)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_in_every_phase(preset):
    config = read_config(plans(), preset, "test")
    views, *entries = TABLE[preset]
    assert plan_forwards(config) == {p: expected(views, e) for p, e in zip(phases(config), entries, strict=True)}


VIEWS = {"preset": "light", "count": 2, "student_loss": "anchor"}
LOSSES = {
    "anchor": ({"logits": {"dist": {"target": "anchor"}}}, "st -"),
    "view": ({"logits": {"dist": {}}}, "stvp -"),
    "features of views": ({"bottleneck": {"at": {}}}, "stvf -"),
    "decoder": ({"decoder0:encoder1": {"at": {"target": "anchor"}}}, "stfd -"),
    "both": ({"logits": {"dist": {}}, "all": {"fsp": {"target": "anchor"}}}, "stvpf -"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses_beside_views(case):
    losses, entry = LOSSES[case]
    config = read_config(plans(views=VIEWS, losses=losses, terms={"kd": None}), "kd", "test")
    assert plan_forwards(config) == {"distil": expected(2, entry)}


def test_phases_begin_where_act_says():
    config = read_config(plans(act={"start": 0.2, "end": 0.5}), "paper", "test")
    assert [phase_at(config, p) for p in (0, 0.19, 0.2, 0.49, 0.5, 1)] == ["warm-up"] * 2 + ["act"] * 2 + ["distil"] * 2
    assert phase_at(read_config(plans(), "kd", "test"), 0.0) == "distil"


def test_settings_and_forward_plans_import_no_torch():
    modules = {part.__module__ for part in (Config, build, Terms, LossSetting, ForwardPlan)}
    assert len(modules) == 5
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
