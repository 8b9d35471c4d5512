import math

import pytest
from helpers import TEACHER, plans

from nnunet_kd.config.presets import NAMES, full_name
from nnunet_kd.config.run import read_config
from nnunet_kd.utils.errors import KDError


@pytest.mark.parametrize("preset", NAMES)
def test_every_preset_is_valid_and_needs_what_it_says(preset):
    config = read_config(plans(preset=preset), None, "nnUNetTrainerDistillation")
    assert config.preset == full_name(preset)
    assert (config.msan is not None) == config.need_alignment == (config.act is not None)


def test_the_section_overrides_the_preset_key_by_key():
    config = read_config(plans(terms={"kd": {"weight": 0.5}, "cross": None}), "cross-view", "nnUNetTrainerX")
    assert config.terms.kd.weight == 0.5
    assert config.terms.kd.target == "anchor"  # from the preset
    assert config.terms.cross is None and config.terms.intra is not None


def test_the_undistilled_control_reads_only_schedule_and_seed_of_the_students_plans():
    section = plans(seed=3, schedule={"epochs": 7}, terms={"kd": {"weight": 2.0}}, views={"count": 2})
    config = read_config(section, "student", "nnUNetTrainerScheduled")
    assert (config.seed, config.schedule.epochs, config.views, config.terms.active) == (3, 7, None, [])


BAD = [
    ({"sedd": 1}, 'unknown key "nnunet_kd.sedd".*did you mean "seed"'),
    ({"terms": {"kd": {"wieght": 1}}}, 'unknown key "nnunet_kd.terms.kd.wieght".*"weight"'),
    ({"seed": "one"}, "nnunet_kd.seed.*type int"),
    ({"seed": -1}, "seed"),
    ({"seed": True}, "type int"),
    ({"schedule": {"epochs": 0}}, "nnunet_kd.schedule.epochs.*at least 1"),
    ({"schedule": {"initial_lr": math.nan}}, "initial_lr"),
    ({"schedule": 5}, "nnunet_kd.schedule"),
    ({"views": {"preset": "weird"}}, "weird"),
    ({"views": {"count": 0}}, "count"),
    ({"views": {"student_loss": "none"}}, "student_loss"),
    ({"msan": {"kind": "graph"}}, "msan.kind"),
    ({"msan": {"stages": []}}, "msan.stages"),
    ({"msan": {"after_act": "melted"}}, "after_act"),
    ({"act": {"start": 0.5, "end": 0.4}}, "end.*after start"),
    ({"act": {"end": 1.0}}, "no time is left"),
    ({"act": {"start": 0.0}}, "semantic"),
    ({"act": {"lr": 0}}, "lr"),
    ({"terms": {"kd": {"temperature": 0}}}, "temperature"),
    ({"terms": {"kd": {"target": "moon"}}}, "target"),
    ({"terms": {"intra": {"form": "cubic"}}}, "form"),
    ({"terms": {"cross": {"ts": 0, "st": 0}}}, "both 0"),
    ({"terms": {"cross": {"views": "some"}}}, "views"),
    ({"terms": {"cross": {"every": 0}}}, "every.* is 0, it must be at least 1"),
    ({"views": None}, "need views"),
    ({"ramp": 2}, "ramp"),
    ({"teacher": None}, "teacher.*missing"),
    ({"teacher": {**TEACHER, "fold": "best"}}, "teacher.fold"),
    ({"teacher": {k: v for k, v in TEACHER.items() if k != "folder"}}, "teacher.folder.*missing"),
    ({"role": "teacher"}, "role teacher"),
    ({"preset": "nope"}, "known presets"),
    ({"preset": "paper"}, 'preset "paper".*nnUNetTrainerX.*"cross-view"'),
    ({"terms": {"kd": None, "intra": None, "inter": None, "cross": None}}, '"nnunet_kd.msan" is set but nothing reads it'),
]


@pytest.mark.parametrize(("section", "message"), BAD)
def test_a_bad_section_is_one_line_that_names_the_key(section, message):
    with pytest.raises(KDError, match=message) as error:
        read_config(plans(**section), "cross-view", "nnUNetTrainerX")
    assert "\n" not in str(error.value)


def test_views_that_nothing_reads_are_an_error():
    with pytest.raises(KDError, match="nothing reads"):
        read_config(plans(views={"student_loss": "anchor"}), "views-only", "T")


def test_plans_without_section_name_the_plan_command():
    with pytest.raises(KDError, match="nnunet-kd plan.*-p nnUNetKDPlans"):
        read_config({"plans_name": "nnUNetPlans"}, "cross-view", "nnUNetTrainerX")


def test_a_trainer_without_preset_needs_one_in_the_plans():
    with pytest.raises(KDError, match="--preset"):
        read_config(plans(), None, "nnUNetTrainerDistillation")
