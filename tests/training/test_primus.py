"""Primus, nnU-Net's transformer, as teacher and as student: its logits can be distilled, stages it has none."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer
from small_runs import TRAINERS, continued, known_trainers, one_step, same, stopped, weights

from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.utils.errors import KDError

ID = 926
LOGITS = {"losses": {"logits": {"dist": {}, "cwd-logits": {}}}}
# what a user writes for a Primus student, and a smaller network than the smallest of nnU-Net's (23 million parameters)
THEIRS = """
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer

from nnunet_kd.training.named import nnUNetTrainerGKD, nnUNetTrainerIFVD, nnUNetTrainerKDViews


class Small:
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        return Primus(num_input_channels, 48, (8, 8, 8), num_output_channels, 2, 2, configuration_manager.patch_size,
                      drop_path_rate=0.2, scale_attn_inner=True, init_values=0.1)


class nnUNetTrainerPrimus(Small, nnUNet_Primus_S_Trainer):
    pass


class nnUNetTrainerKDPrimus(Small, nnUNetTrainerKDViews, nnUNet_Primus_S_Trainer):
    pass


class nnUNetTrainerGKDPrimus(Small, nnUNetTrainerGKD, nnUNet_Primus_S_Trainer):
    pass


class nnUNetTrainerIFVDPrimus(Small, nnUNetTrainerIFVD, nnUNet_Primus_S_Trainer):
    pass
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "primus_trainers_of_theirs.py").write_text(THEIRS)
    return f"{folder}{os.pathsep}{TRAINERS}"


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch, theirs):
    known_trainers(monkeypatch)
    monkeypatch.setenv("nnUNet_extTrainer", theirs)


@pytest.fixture(scope="module")
def volumes(make_dataset):
    return make_dataset(ID, "Primus", dims=3, cases=5)


@pytest.fixture(scope="module")
def plain_teacher(volumes, train) -> Path:
    return train(volumes)


@pytest.fixture(scope="module")
def primus_teacher(volumes, train, theirs) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", theirs)
        return train(volumes, trainer="nnUNetTrainerPrimus")


def make(name: str, plans: str, resume: bool = False):
    trainer = get_trainer_from_args(str(ID), "3d_fullres", 0, name, plans, resume, torch.device("cpu"))
    maybe_load_checkpoint(trainer, resume, False)
    return trainer


def planned(teacher: Path, name: str, **section) -> str:
    options = {"width": 0.5, "iterations": 10, "epochs": 10, "initial_lr": 3e-4, "name": name, "overwrite": True}
    made = plan_student(StudentRequest(ID, "3d_fullres", teacher, **options))
    made.plans["nnunet_kd"].update(section)
    made.file.write_text(json.dumps(made.plans))
    return made.plans_name


def learns_from_logits(trainer, student: str, teacher: str) -> None:
    trainer.on_train_start()
    assert (type(trainer.network).__name__, type(trainer.teacher.network).__name__) == (student, teacher)
    before, digest = weights(trainer), trainer.teacher.digest()
    for epoch in (0, 5):
        values = one_step(trainer, epoch)
        assert all(np.isfinite(values[k]) and values[k] > 0 for k in ("kd", "dist@logits", "cwd-logits@logits")), values
    assert any(not torch.equal(before[k], v) for k, v in weights(trainer).items())
    assert trainer.teacher.digest() == digest


def refused(make_or_start, says: str) -> None:
    with pytest.raises(NotImplementedError, match=says) as error:
        make_or_start()
    assert isinstance(error.value, KDError) and "\n" not in str(error.value)


def test_nnunets_own_primus_builds_here():
    configuration = type("Configuration", (), {"patch_size": (16, 16, 16)})
    network = nnUNet_Primus_S_Trainer.build_network_architecture(None, configuration, 1, 2)
    assert isinstance(network, Primus) and network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_a_u_net_learns_from_the_logits_of_a_primus(primus_teacher):
    name = planned(primus_teacher, "PrimusTeaches", **LOGITS)
    learns_from_logits(make("nnUNetTrainerKDViews", name), "PlainConvUNet", "Primus")


def test_a_primus_learns_from_the_logits_of_a_u_net_and_of_a_primus(plain_teacher, primus_teacher):
    for teacher, family in ((plain_teacher, "PlainConvUNet"), (primus_teacher, "Primus")):
        trainer = make("nnUNetTrainerKDPrimus", planned(teacher, f"PrimusLearnsFrom{family}", **LOGITS))
        learns_from_logits(trainer, "Primus", family)
        assert isinstance(trainer.optimizer, torch.optim.AdamW) and not trainer.enable_deep_supervision  # Primus's own
    stopped(trainer, 1)
    trainer.current_epoch = trainer.warmup_duration_whole_net  # Primus takes another schedule from here on
    assert np.isfinite(one_step(trainer, trainer.current_epoch)["kd"]) and trainer.training_stage == "train"


def test_a_stopped_primus_student_continues_to_the_same_result(plain_teacher):
    schedule = {"epochs": 3, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "initial_lr": 3e-4, "save_every": 1}
    name = planned(plain_teacher, "PrimusResume", schedule=schedule)
    whole = make("nnUNetTrainerKDPrimus", name)
    whole.run_training()
    second = continued(whole, 1, partial(make, "nnUNetTrainerKDPrimus", name))
    assert same(weights(second), weights(whole))


def test_a_finished_primus_student_validates_and_predicts(plain_teacher, volumes, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    name = planned(
        plain_teacher,
        "PrimusWhole",
        schedule={"epochs": 2, "iterations_per_epoch": 2, "initial_lr": 3e-4, "val_iterations_per_epoch": 1},
    )
    trainer = make("nnUNetTrainerKDPrimus", name)
    trainer.run_training()
    assert np.isfinite(trainer.logger.local_logger.my_fantastic_logging["kd/kd"]).all()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("0",), "checkpoint_final.pth")
    image = volumes.raw / "imagesTr" / "case_00_0000.nii.gz"
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "case_00")])
    assert (tmp_path / "case_00.nii.gz").is_file()


@pytest.mark.parametrize("name", ["nnUNetTrainerGKD", "nnUNetTrainerGKDPaper", "nnUNetTrainerIFVD"])
def test_what_reads_stages_is_not_implemented_for_a_primus_teacher(primus_teacher, name):
    plans = planned(primus_teacher, "PrimusNoStages")
    refused(lambda: make(name, plans), "the teacher, a Primus, has no encoder stages with strides.*distil its logits")


@pytest.mark.parametrize("name", ["nnUNetTrainerGKDPrimus", "nnUNetTrainerIFVDPrimus"])
def test_what_reads_stages_is_not_implemented_for_a_primus_student(plain_teacher, name):
    trainer = make(name, planned(plain_teacher, "PrimusNoStudentStages"))
    refused(trainer.initialize, "Primus has no encoder stages with strides.*-tr nnUNetTrainerKD")


def test_planning_knows_what_a_primus_teacher_allows(primus_teacher, tmp_path, capsys):
    from nnunet_kd.cli.main import main

    refused(
        lambda: plan_student(StudentRequest(ID, "3d_fullres", primus_teacher, preset="paper", name="PrimusNo")),
        "the teacher, a Primus",
    )
    assert main(["plan", str(ID), "-c", "3d_fullres", "--teacher", str(primus_teacher), "--name", "PrimusCLI"]) == 0
    out = capsys.readouterr().out
    assert "-tr nnUNetTrainerKDViews" in out and "nnUNetTrainerGKD " not in out


def test_a_primus_teacher_reads_patches_of_its_own_size_alone(primus_teacher, volumes):
    for patch in (24, 20):
        plans = json.loads(volumes.plans_file.read_text())
        plans["configurations"]["3d_fullres"]["patch_size"] = [patch] * 3
        (volumes.preprocessed / "PrimusPatch.json").write_text(json.dumps(plans | {"plans_name": "PrimusPatch"}))
        with pytest.raises(KDError, match=rf"patches of \[16, 16, 16\] and cannot read .* \[{patch}.*its own size"):
            plan_student(StudentRequest(ID, "3d_fullres", primus_teacher, base_plans="PrimusPatch", name="PrimusNo"))
