"""Whole trainings in this process on tiny patches, through nnU-Net's own look-up of external trainers."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from small_runs import continued, known_trainers, make, same, stopped, student, weights

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.planning.plans import plan_teacher
from nnunet_kd.planning.requests import TeacherRequest
from nnunet_kd.utils.errors import KDError

FINAL = "fold_0/checkpoint_final.pth"


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture(scope="module")
def gkd(tiny_dataset, tiny_teacher):
    """A finished GKD training (10 epochs of 2 steps, all phases)."""
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch, pictures=True)
        trainer = make("nnUNetTrainerGKDCrossView", student(tiny_teacher, "KDfull"))
        trainer.run_training()
    return trainer


def test_gkd_trains_and_logs_every_term(gkd):
    logged = gkd.logger.local_logger.my_fantastic_logging
    lengths = {k: len(v) for k, v in logged.items()}
    assert set(lengths.values()) == {10}, lengths
    for term in ("intra", "inter", "cross_ts", "cross_st"):
        values = np.array(logged[f"kd/{term}"])
        assert np.isnan(values[:3]).all()  # warm-up and ACT
        assert np.isfinite(values[3:]).all() and (values[3:] > 0).all(), term
    assert np.isfinite(logged["kd/kd"]).all() and np.isfinite(logged["kd/seg_loss"]).all()
    assert np.isfinite(logged["kd/act_reconstruction_teacher"][1:]).all()  # joint: from ACT on
    assert np.isfinite(logged["kd/act_autoencoder"][0]) and np.isnan(logged["kd/act_autoencoder"][1:]).all()
    assert (Path(gkd.output_folder) / "progress_distillation.png").stat().st_size > 1000
    text = Path(gkd.log_file).read_text()
    assert "teacher weights after training: unchanged" in text and "cross_st" in text


def test_the_checkpoint_holds_the_plain_student_and_nothing_of_the_teacher(gkd, tiny_teacher):
    checkpoint = load_checkpoint(Path(gkd.output_folder) / "checkpoint_final.pth")
    assert checkpoint["network_weights"].keys() == gkd.network.state_dict().keys()
    teacher = load_checkpoint(tiny_teacher / FINAL)["network_weights"]
    kept = [*checkpoint["network_weights"].values(), *checkpoint["nnunet_kd"]["distiller"]["alignment"].values()]
    for name, value in teacher.items():
        if value.numel() > 64:  # smaller ones may be equal by chance: all zeros, all ones
            assert not any(k.shape == value.shape and torch.equal(k, value) for k in kept), name
    assert set(checkpoint["nnunet_kd"]) == {"recipe", "random", "distiller"}
    assert len(checkpoint["optimizer_state"]["param_groups"]) == 1  # MSANs have an optimizer of their own


def test_validation_and_prediction_need_no_teacher(gkd, tiny_dataset, tiny_teacher, tmp_path):
    away = tiny_teacher.with_name("moved_away")
    tiny_teacher.rename(away)
    try:
        trainer = get_trainer_from_args("950", "2d", 0, "nnUNetTrainerGKDCrossView", "KDfull", False, torch.device("cpu"))
        maybe_load_checkpoint(trainer, False, True)  # as --val does
        assert same(weights(trainer), weights(gkd))
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(gkd.output_folder_base, ("0",), "checkpoint_final.pth")
        image = str(tiny_dataset.raw / "imagesTr" / "case_00_0000.png")
        predictor.predict_from_files_sequential([[image]], [str(tmp_path / "case_00")])
        assert (tmp_path / "case_00.png").is_file()
    finally:
        away.rename(tiny_teacher)


def test_one_seed_gives_every_method_the_same_student_and_the_same_batches(tiny_teacher):
    plans = student(tiny_teacher, "KDsame")
    batches, initial = {}, {}
    for name in ("nnUNetTrainerScheduled", "nnUNetTrainerKD", "nnUNetTrainerGKD", "nnUNetTrainerViewsOnly"):
        trainer = make(name, plans)
        trainer.on_train_start()
        initial[name] = weights(trainer)
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        for _ in range(2):
            batch = next(trainer.dataloader_train)
            trainer.train_step(batch)
        batches[name] = next(trainer.dataloader_train)["data"]
    first = "nnUNetTrainerScheduled"
    for name in initial:
        assert same(initial[name], initial[first]), name
        assert torch.equal(batches[name], batches[first]), name


def test_another_seed_is_another_student(tiny_teacher):
    a, b = (make("nnUNetTrainerScheduled", student(tiny_teacher, f"KDs{s}", seed=s)) for s in (0, 1))
    a.initialize(), b.initialize()
    assert not same(weights(a), weights(b))


@pytest.mark.parametrize(
    ("trainer_name", "stops"),
    [
        ("nnUNetTrainerGKD", [3]),
        ("nnUNetTrainerGKDCrossView", [1, 3]),  # inside ACT, and while distilling
        ("nnUNetTrainerGKDPaper", [1]),
        ("nnUNetTrainerScheduled", [3]),
    ],
)
def test_a_stopped_training_continues_to_the_same_result(tiny_teacher, trainer_name, stops):
    schedule = {"epochs": 5, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}
    plans = student(tiny_teacher, "KDresume", schedule=schedule)
    whole = make(trainer_name, plans)
    whole.run_training()
    expected, logged = weights(whole), whole.logger.local_logger.my_fantastic_logging
    extra = load_checkpoint(Path(whole.output_folder) / "checkpoint_final.pth")["nnunet_kd"]
    for stop in stops:
        second = continued(whole, stop, partial(make, trainer_name, plans))
        assert same(weights(second), expected), stop
        again = second.logger.local_logger.my_fantastic_logging
        for key in logged:
            if "timestamps" not in key:
                assert np.array_equal(np.array(again[key], float), np.array(logged[key], float), equal_nan=True), key
        state = load_checkpoint(Path(second.output_folder) / "checkpoint_final.pth")["nnunet_kd"]
        if "distiller" in extra:
            a, b = (s["distiller"].get("alignment", {}) for s in (state, extra))
            assert same(a, b)


def test_a_term_that_leaves_steps_out_counts_on_through_epochs_and_resuming(tiny_teacher):
    schedule = {"epochs": 10, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}
    plans = student(tiny_teacher, "KDevery", schedule=schedule, terms={"cross": {"every": 4}})
    first = make("nnUNetTrainerGKDCrossView", plans)
    first.on_train_start()
    stopped(first, 5)
    second = make("nnUNetTrainerGKDCrossView", plans, resume=True)
    second.on_train_start()
    stopped(second, 5)
    logged = np.array(second.logger.local_logger.my_fantastic_logging["kd/cross_st"])
    # steps 8, 12 and 16 of 20; ACT ends with step 5
    assert np.flatnonzero(np.isfinite(logged)).tolist() == [4, 6, 8]


def test_frozen_msans_do_not_change_after_act_and_joint_ones_do(tiny_teacher):
    for name, frozen in (("nnUNetTrainerGKDPaper", True), ("nnUNetTrainerGKDCrossView", False)):
        trainer = make(name, student(tiny_teacher, "KDfrozen"))
        trainer.on_train_start()
        before = {k: v.clone() for k, v in trainer.distiller.alignment.msans.state_dict().items()}
        stopped(trainer, 3)
        act = {k: v.clone() for k, v in trainer.distiller.alignment.msans.state_dict().items()}
        assert not same(before, act)
        stopped(trainer, 2)
        assert same(act, trainer.distiller.alignment.msans.state_dict()) == frozen


def test_a_scheduled_teacher_trains_and_teaches(tiny_dataset):
    planned = plan_teacher(TeacherRequest(950, "2d", iterations=2, epochs=1, name="TeacherPlans", overwrite=True))
    trainer = make("nnUNetTrainerScheduled", planned.plans_name)
    trainer.run_training()
    plans = student(Path(trainer.output_folder_base), "KDsched", epochs=1, iterations=1)
    pupil = make("nnUNetTrainerKD", plans)
    pupil.run_training()
    assert np.isfinite(pupil.logger.get_value("kd/kd", -1))


def broken_teacher(tiny_teacher, tmp_path, change):
    """A copy of the teacher's folder that was planned from and then damaged."""
    folder = tmp_path / tiny_teacher.name
    shutil.copytree(tiny_teacher, folder)
    plans = student(folder, "KDbroken", epochs=1, iterations=1)
    change(folder)
    return plans


def rewrite(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


DAMAGES = {
    "folder gone": (shutil.rmtree, "model folder .* does not exist"),
    "no checkpoint": (lambda f: (f / FINAL).unlink(), r"no checkpoint at .*fold_0/checkpoint_final.pth \(folds with"),
    "truncated": (
        lambda f: (f / FINAL).write_bytes((f / FINAL).read_bytes()[:500]),
        "truncated|damaged|not a checkpoint",
    ),
    "another dataset": (
        lambda f: rewrite(f / "plans.json", dataset_name="Dataset007_X"),
        "was trained on Dataset007_X",
    ),
    "other labels": (lambda f: rewrite(f / "dataset.json", labels={"background": 0, "a": 1, "b": 2}), "has labels"),
    "other channels": (lambda f: rewrite(f / "dataset.json", channel_names={"0": "CT"}), "has input channels"),
    "other regions": (lambda f: rewrite(f / "dataset.json", regions_class_order=[1]), "has regions"),
    "no plans": (lambda f: (f / "plans.json").unlink(), "plans.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_teacher_stops_the_training_before_it_starts(tiny_teacher, tmp_path, damage):
    change, message = DAMAGES[damage]
    trainer = make("nnUNetTrainerGKD", broken_teacher(tiny_teacher, tmp_path, change))
    with pytest.raises(KDError, match=message) as error:
        trainer.run_training()
    assert "\n" not in str(error.value)
    assert not list(Path(trainer.output_folder).glob("checkpoint*"))


def test_a_fold_the_teacher_was_not_trained_on_is_an_error(tiny_teacher):
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "KDfold", epochs=1, iterations=1), fold=4)
    with pytest.raises(KDError, match=r"no checkpoint at .*fold_4/checkpoint_final.pth \(folds with .*: 0.*\): train fold 4"):
        trainer.run_training()


def test_another_folds_teacher_is_allowed_with_a_warning(tiny_teacher):
    plans = student(tiny_teacher, "KDleak", epochs=1, iterations=1)
    trainer = make("nnUNetTrainerKD", plans, fold=1)
    object.__setattr__(trainer.kd.teacher, "fold", 0)
    trainer.on_train_start()
    assert "has seen the student's validation cases" in Path(trainer.log_file).read_text()


def test_the_teachers_plans_must_not_have_changed_since(tiny_teacher, tmp_path):
    def change(folder):
        content = json.loads((folder / "plans.json").read_text())
        content["configurations"]["2d"]["batch_size"] = 99
        (folder / "plans.json").write_text(json.dumps(content))

    trainer = make("nnUNetTrainerKD", broken_teacher(tiny_teacher, tmp_path, change))
    with pytest.raises(KDError, match="has changed since the student was planned"):
        trainer.run_training()


def test_stock_plans_name_the_plan_command(tiny_dataset):
    with pytest.raises(KDError, match="nnunet-kd plan .*-p nnUNetKDPlans"):
        make("nnUNetTrainerGKD", "nnUNetPlans")


def test_impossible_stage_pairs_are_an_error_at_the_start(tiny_teacher):
    plans = student(tiny_teacher, "KDpairs", msan={"stages": [9]})
    trainer = make("nnUNetTrainerGKD", plans)
    with pytest.raises(KDError, match="student stage 9 has no teacher stage"):
        trainer.initialize()


def test_a_probe_leaves_the_student_as_it_is(tiny_teacher):
    """MSANs that no term reads learn beside the student: its weights are those of a training without them, bit for bit."""
    found = []
    for name, section in (("KDprobe", {}), ("KDnoprobe", {"msan": None, "act": None})):
        trainer = make("nnUNetTrainerKDAdjustedMirrored", student(tiny_teacher, name, **section))
        assert (trainer.kd.msan is None) == bool(section)
        trainer.on_train_start()
        before = None if section else {k: v.clone() for k, v in trainer.distiller.alignment.msans.state_dict().items()}
        stopped(trainer, 4)
        if before is not None:
            assert not same(before, trainer.distiller.alignment.msans.state_dict())
        found.append(weights(trainer))
    assert same(*found)
