"""A training that is continued, validated or evaluated keeps its recipe, whatever presets and plans mean by then."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from small_runs import known_trainers, make, one_step, same, stopped, student, weights

from nnunet_kd.config import presets
from nnunet_kd.config.recipe import RETIRED, config_of, recipe_of
from nnunet_kd.config.run import read_config, to_dict
from nnunet_kd.deploy.export import export_model
from nnunet_kd.evaluation.fsd.post_hoc import fit_of_run
from nnunet_kd.evaluation.fsd.vectors import load_aligned_run
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.nnunet_io.model_folder import build_network, read_model_folder
from nnunet_kd.nnunet_io.trained_fold import TrainedFold
from nnunet_kd.utils.errors import KDError

OLD = Path(__file__).parents[1] / "fixtures" / "old_training"
SCHEDULE = {"epochs": 10, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "save_every": 1}


@pytest.fixture(autouse=True)
def trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture
def old(tiny_dataset, tmp_path, monkeypatch) -> Path:
    """The old training beside its teacher in results of their own, its plans where they were planned."""
    results = tmp_path / "results" / tiny_dataset.name
    for folder in OLD.glob("nnUNetTrainer*"):
        shutil.copytree(folder, results / folder.name)
    for name in ("OldTeacher", "OldStudent"):
        shutil.copy(OLD / f"{name}.json", tiny_dataset.preprocessed)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return results / "nnUNetTrainerGKD__OldStudent__2d"


def edit(plans: str, **section) -> None:
    """Change the section of preprocessed plans by hand; None takes a key out."""
    file = Path(os.environ["nnUNet_preprocessed"], "Dataset950_Tiny", f"{plans}.json")
    content = json.loads(file.read_text())
    content["nnunet_kd"] = {k: v for k, v in (content["nnunet_kd"] | section).items() if v is not None}
    file.write_text(json.dumps(content))


def said(trainer) -> list[str]:
    """What this package wrote into the log, each line once: two trainers of one second share a file."""
    lines = Path(trainer.log_file).read_text().splitlines()
    ours = (line.partition("nnunet_kd:")[2] for line in lines if "nnunet_kd:" in line and " iterations of " not in line)
    return list(dict.fromkeys(ours))


def validated(name: str, plans: str):
    """A trainer as `nnUNetv2_train --val` makes it."""
    trainer = get_trainer_from_args("950", "2d", 0, name, plans, False, torch.device("cpu"))
    maybe_load_checkpoint(trainer, False, True)
    return trainer


def active(config) -> dict:
    return {k: v for k, v in to_dict(config).items() if k not in ("schedule", "teacher", "seed", "role")}


# --- a folder of before checkpoints held recipes


def test_an_old_gkd_training_goes_on_as_the_old_default(old):
    expected = json.loads((OLD / "expected.json").read_text())
    trainer = make("nnUNetTrainerGKD", "OldStudent", resume=True)
    plans = trainer.plans_manager.plans
    assert active(trainer.kd) == active(read_config(plans, "default", "T"))
    assert trainer.kd.mirrored_teacher and trainer.kd.logit_adjustment_views == 1.0 and trainer.kd.distils == ["kd"]
    assert list(trainer._log_keys) == expected["log_keys"]
    assert trainer.current_epoch == 6
    trainer.on_train_start()
    found = {k: float(v) for k, v in one_step(trainer, 6).items() if np.isfinite(v)}
    assert found == pytest.approx(expected["next_step"], rel=1e-4)  # what the old code's next step was
    line = said(trainer)[0]
    assert 'stood for preset "kd+adjusted+mirrored" when this training began, and goes on as that' in line
    assert "-tr nnUNetTrainerKDAdjustedMirrored in new trainings" in line
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    again = make("nnUNetTrainerGKD", "OldStudent", resume=True)  # the recipe is in the checkpoint now
    assert again.kd == trainer.kd
    assert any('preset "kd+adjusted+mirrored" means something else today (' in line for line in said(again))


def test_an_old_folder_whose_plans_fit_the_old_preset_alone_goes_on_and_starts_no_new_training(old):
    (old / "fold_0" / "checkpoint_latest.pth").rename(old / "fold_0" / "checkpoint_final.pth")
    for section in ({"mirrored_teacher": True}, {"preset": "default"}):
        edit("OldStudent", **section)
        for trainer in (make("nnUNetTrainerGKD", "OldStudent", resume=True), validated("nnUNetTrainerGKD", "OldStudent")):
            assert trainer.kd.distils == ["kd"] and trainer.kd.mirrored_teacher
            assert len(said(trainer)) == 2 and "was changed since this training began" in said(trainer)[1]
        fresh = make("nnUNetTrainerGKD", "OldStudent")
        with pytest.raises(KDError, match='mirrored_teacher" to false|remove "preset" from the plans or') as error:
            fresh.run_training()
        assert "\n" not in str(error.value)


def test_a_fresh_training_whose_plans_name_the_old_default_is_an_error_with_the_fix(tiny_teacher):
    plans = student(tiny_teacher, "RECIPEdefault", preset="default")
    with pytest.raises(KDError, match='"default", which is "kd.adjusted.mirrored", .*stands for preset "gkd".*remove "preset"'):
        make("nnUNetTrainerGKD", plans)
    assert make("nnUNetTrainerKDAdjustedMirrored", plans).kd == make("nnUNetTrainerDistillation", plans).kd


def test_msans_and_terms_of_an_old_folder_are_read_as_the_old_default(old, tmp_path):
    fold = TrainedFold.open(old, 0, "checkpoint_latest.pth")
    run = load_aligned_run(fold)
    assert run.alignment.act.consistency == 0 and len(run.alignment.pairs) == 1
    assert fit_of_run(fold).msan.kind == "spatial"
    card = (export_model(old, tmp_path / "model", checkpoint="checkpoint_latest.pth") / "MODEL_CARD.md").read_text()
    assert "nnUNetTrainerGKD (terms: kd)" in card


def test_a_users_trainer_of_an_old_one_goes_on_as_that(old):
    from nnunet_kd.training.named import nnUNetTrainerGKD, nnUNetTrainerKD

    checkpoint = load_checkpoint(old / "fold_0" / "checkpoint_latest.pth")
    plans = read_model_folder(old).plans

    class nnUNetTrainerMine(nnUNetTrainerGKD):
        pass

    class nnUNetTrainerOwn(nnUNetTrainerGKD):
        preset = "kd+views"

    assert config_of(checkpoint, plans, nnUNetTrainerMine)[0].mirrored_teacher
    config, lines = config_of(checkpoint, plans, nnUNetTrainerOwn)
    assert config.preset == "kd+views" and not lines
    assert config_of(checkpoint, plans, nnUNetTrainerKD)[0].preset == "kd"


@pytest.mark.parametrize("name", RETIRED)
def test_a_retired_trainer_is_found_trains_and_says_what_to_use(tiny_teacher, name):
    plans = student(tiny_teacher, "RECIPEretired", schedule=SCHEDULE)
    first = make(name, plans)
    first.on_train_start()
    stopped(first, 1)
    assert any(f"--preset {RETIRED[name]}` and use -tr nnUNetTrainerDistillation" in line for line in said(first))
    second = make(name, plans, resume=True)
    assert recipe_of(second.kd) == recipe_of(first.kd) and second.kd.preset == RETIRED[name]
    shapes = {k: v.shape for k, v in build_network(read_model_folder(first.output_folder_base), name).state_dict().items()}
    assert shapes == {k: v.shape for k, v in weights(first).items()}


# --- recipes in checkpoints


@pytest.mark.parametrize("name", ["nnUNetTrainerGKD", "nnUNetTrainerKDAdjustedMirrored"])
def test_a_training_goes_on_by_its_recipe_bit_by_bit_though_its_preset_changed(tiny_teacher, name, monkeypatch):
    plans = student(tiny_teacher, "RECIPEchanged", schedule=SCHEDULE, losses={"logits": {"dist": {}}})
    first = make(name, plans)
    first.on_train_start()
    stopped(first, 5)
    going_on = one_step(first, 5)  # as if it had not been stopped
    changed = {"views": {"count": 2}, "terms": {"kd": {"weight": 3.0, "target": "anchor"}}}
    monkeypatch.setitem(presets.PRESETS, first.preset, changed)
    second = make(name, plans, resume=True)
    assert recipe_of(second.kd) == recipe_of(first.kd)
    line = next(line for line in said(second) if "today" in line)
    assert f'preset "{first.preset}" means something else today (views.' in line and "recipe of the checkpoint goes on" in line
    second.on_train_start()
    resumed = one_step(second, 5)
    assert going_on.keys() == resumed.keys()
    assert np.array_equal([float(v) for v in going_on.values()], [float(v) for v in resumed.values()], equal_nan=True)
    assert np.isfinite(resumed["dist@logits"]) and same(weights(first), weights(second))


def test_validation_and_a_finished_training_keep_the_recipe(tiny_teacher, monkeypatch):
    plans = student(tiny_teacher, "RECIPEval", epochs=1, iterations=1)
    first = make("nnUNetTrainerKDViews", plans)
    first.run_training()
    monkeypatch.setitem(presets.PRESETS, "kd+views", {"terms": {"intra": {}}})  # there are no views: no preset at all
    for trainer in (validated("nnUNetTrainerKDViews", plans), make("nnUNetTrainerKDViews", plans, resume=True)):
        assert recipe_of(trainer.kd) == recipe_of(first.kd)
        assert any("would not take the plans of this training today" in line for line in said(trainer))
    with pytest.raises(KDError, match="need views"):
        make("nnUNetTrainerKDViews", plans).run_training()


def test_settings_changed_by_hand_are_named_and_not_used_but_a_longer_schedule_is(tiny_teacher):
    plans = student(tiny_teacher, "RECIPEedited", schedule=SCHEDULE)
    first = make("nnUNetTrainerKDViews", plans)
    first.on_train_start()
    stopped(first, 2)
    edit(plans, terms={"kd": {"weight": 2.0}}, schedule=SCHEDULE | {"epochs": 12})
    second = make("nnUNetTrainerKDViews", plans, resume=True)
    assert second.kd.terms == first.kd.terms and second.num_epochs == 12
    (line,) = said(second)
    assert "(terms.kd.weight none -> 2.0): not used" in line and "nnunet-kd plan --name NAME" in line
    assert make("nnUNetTrainerKDViews", plans).kd.terms.kd.weight == 2.0  # a new training uses them


def test_a_recipe_is_plain_and_gives_its_configuration_back(tiny_teacher):
    plans = student(tiny_teacher, "RECIPEplain", schedule=SCHEDULE)
    content = json.loads(Path(os.environ["nnUNet_preprocessed"], "Dataset950_Tiny", f"{plans}.json").read_text())
    for preset in presets.NAMES:
        config = read_config(content, preset, "T")
        recipe = json.loads(json.dumps(recipe_of(config)))
        again = read_config(content, None, "T", recipe)
        assert recipe_of(again) == recipe_of(config) and again.loss_settings == config.loss_settings
        assert not {"schedule", "teacher", "seed"} & set(recipe)


def test_wrong_settings_without_a_training_are_an_error_at_once(tiny_teacher):
    plans = student(tiny_teacher, "RECIPEwrong", terms={"kd": {"wieght": 1}})
    for resume in (False, True):
        with pytest.raises(KDError, match="wieght"):
            make("nnUNetTrainerKD", plans, resume)


def test_nnunet_finds_the_retired_trainers_by_name():
    for name in RETIRED:
        assert recursive_find_trainer_class_by_name(name).__module__ == "nnunet_kd.training.retired"
