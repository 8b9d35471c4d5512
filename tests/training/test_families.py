"""Teachers and students of different families, plans and trainers: what can be paired trains, the rest says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from small_runs import TRAINERS, known_trainers, make, one_step, stopped, weights

from nnunet_kd.nnunet_io.model_folder import build_network, read_model_folder
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.utils.errors import KDError

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
TERMS = ("kd", "intra", "inter", "cross_ts", "cross_st")
# an external trainer with a network of its own: twice as wide as planned. The second is of nnU-Net 2.5's signature.
THEIRS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


def wide(name, kwargs, imports, inputs, outputs, supervision):
    kwargs = {**kwargs, "features_per_stage": [2 * f for f in kwargs["features_per_stage"]]}
    return get_network_from_plans(name, kwargs, imports, inputs, outputs, True, supervision)


class nnUNetTrainerTheirs(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        c = configuration_manager
        return wide(c.network_arch_class_name, c.network_arch_init_kwargs, c.network_arch_init_kwargs_req_import,
                    num_input_channels, num_output_channels, enable_deep_supervision)


class nnUNetTrainerTheirsOld(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        return wide(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
                    num_output_channels, enable_deep_supervision)
"""


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture(scope="module")
def write_plans(tiny_dataset):
    """`write_plans(name, features, patch=32, residual=False, **keys)`: plans of the tiny data set beside nnU-Net's."""

    def write(name: str, features: list[int], patch: int = 32, residual: bool = False, **keys) -> str:
        plans = json.loads(tiny_dataset.plans_file.read_text())
        config = plans["configurations"]["2d"]
        config |= {"patch_size": [patch, patch], **keys}
        kwargs, n = config["architecture"]["arch_kwargs"], len(features)
        kwargs |= {
            "n_stages": n,
            "features_per_stage": features,
            "kernel_sizes": [[3, 3]] * n,
            "strides": [[1, 1]] + [[2, 2]] * (n - 1),
            "n_conv_per_stage_decoder": [1] * (n - 1),
        }
        kwargs["n_conv_per_stage"] = [2] * n
        if residual:
            config["architecture"]["network_class_name"] = (
                "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
            )
            kwargs["n_blocks_per_stage"] = [1, *[2] * (n - 1)]
            del kwargs["n_conv_per_stage"]
        (tiny_dataset.preprocessed / f"{name}.json").write_text(json.dumps(plans | {"plans_name": name}))
        return name

    return write


@pytest.fixture(scope="module")
def residual_teacher(tiny_dataset, train, write_plans):
    """A ResidualEncoderUNet of four stages on patches of 48x48; the tiny teacher is a PlainConvUNet of three on 32x32."""
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        return train(tiny_dataset, plans=write_plans("FamilyResidual", [8, 16, 24, 32], patch=48, residual=True))


def learns(trainer) -> None:
    """All phases of cross-view: every term is there, and what it teaches moves the student."""
    trainer.on_train_start()
    before, teacher = weights(trainer), trainer.teacher.digest()
    for epoch in (0, 1, 5):
        values = one_step(trainer, epoch)
    assert all(np.isfinite(values[t]) and values[t] > 0 for t in TERMS), values
    assert any(not torch.equal(before[k], v) for k, v in weights(trainer).items())
    assert trainer.teacher.digest() == teacher


def family(network) -> str:
    return type(network).__name__


def test_a_plain_student_of_a_residual_teacher_with_its_own_plans(residual_teacher):
    options = {"width": 0.5, "iterations": 10, "epochs": 10, "base_plans": "nnUNetPlans"}
    planned = plan_student(StudentRequest(950, "2d", residual_teacher, name="FamilyPlainOfResidual", **options))
    trainer = make("nnUNetTrainerGKDCrossView", planned.plans_name)
    learns(trainer)
    assert (family(trainer.network), family(trainer.teacher.network)) == ("PlainConvUNet", "ResidualEncoderUNet")
    assert list(trainer.configuration_manager.patch_size) == [32, 32] and trainer.kd.teacher.stages.strides[-1] == [8, 8]
    # the deepest stage that both have, not the teacher's fourth
    assert [(p.name, p.teacher, p.student) for p in trainer.distiller.alignment.pairs] == [("4x4", 2, 2)]


def test_a_residual_student_of_a_plain_teacher(tiny_teacher, write_plans):
    base = write_plans("FamilyResidualBase", [8, 16, 32], residual=True)
    options = {"width": 0.4, "iterations": 10, "epochs": 10, "base_plans": base}
    planned = plan_student(StudentRequest(950, "2d", tiny_teacher, name="FamilyResidualOfPlain", **options))
    trainer = make("nnUNetTrainerGKDCrossView", planned.plans_name)
    learns(trainer)
    assert (family(trainer.network), family(trainer.teacher.network)) == ("ResidualEncoderUNet", "PlainConvUNet")


def test_families_pair_in_volumes_too(make_dataset, train):
    """A plain student of a residual teacher; both ways round on images, above."""
    dataset = make_dataset(925, "Family3d", dims=3, cases=5)
    plans = json.loads(dataset.plans_file.read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = RESIDUAL
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    (dataset.preprocessed / "FamilyResidual.json").write_text(json.dumps(plans | {"plans_name": "FamilyResidual"}))
    teacher = train(dataset, plans="FamilyResidual")
    options = {"width": 0.4, "iterations": 10, "epochs": 10, "base_plans": "nnUNetPlans", "name": "FamilyA"}
    plan_student(StudentRequest(dataset.id, "3d_fullres", teacher, **options))
    where = (str(dataset.id), "3d_fullres", 0)
    trainer = get_trainer_from_args(*where, "nnUNetTrainerGKDCrossView", "FamilyA", device=torch.device("cpu"))
    learns(trainer)
    assert (family(trainer.network), family(trainer.teacher.network)) == ("PlainConvUNet", "ResidualEncoderUNet")


def test_a_student_as_deep_as_its_own_plans_say(residual_teacher, write_plans):
    base = write_plans("FamilyFlat", [8, 16], patch=16)
    planned = plan_student(
        StudentRequest(950, "2d", residual_teacher, iterations=10, epochs=10, base_plans=base, name="FamilyTwoStages")
    )
    trainer = make("nnUNetTrainerGKDCrossView", planned.plans_name)
    learns(trainer)
    assert trainer.distiller.alignment.pairs[0].name == "2x2" and list(trainer.configuration_manager.patch_size) == [16, 16]
    # one output: nnU-Net's deep supervision would weigh it with 0 / 0
    assert not trainer.enable_deep_supervision and torch.is_tensor(trainer.network(torch.zeros(1, 1, 16, 16)))


def test_a_patch_that_the_teacher_cannot_read_is_an_error_before_training(residual_teacher, write_plans, tiny_dataset):
    says = r"was trained on patches of \[48, 48\] and cannot read the student's of \[20, 20\].*multiples of its strides"
    base = write_plans("FamilyOddPatch", [8, 16, 32], patch=20)
    with pytest.raises(KDError, match=says) as error:
        plan_student(StudentRequest(950, "2d", residual_teacher, base_plans=base, name="FamilyNo"))
    assert "\n" not in str(error.value)
    # and where the plans were edited afterwards
    planned = plan_student(
        StudentRequest(950, "2d", residual_teacher, iterations=1, base_plans="nnUNetPlans", name="FamilyEdited")
    )
    planned.plans["configurations"]["2d"]["patch_size"] = [20, 20]
    planned.file.write_text(json.dumps(planned.plans))
    trainer = make("nnUNetTrainerKD", planned.plans_name)
    with pytest.raises(KDError, match=says):
        trainer.on_train_start()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"spacing": [2.0, 2.0]}, r"trained with spacing \[1.0, 1.0\], the student's configuration 2d has \[2.0, 2.0\]"),
        ({"normalization_schemes": ["NoNormalization"]}, "trained with normalization_schemes"),
        ({"use_mask_for_norm": [True]}, "trained with use_mask_for_norm"),
    ],
)
def test_plans_of_other_data_are_an_error_that_says_why(tiny_teacher, write_plans, keys, says):
    base = write_plans("FamilyOtherData", [8, 16, 32], **keys)
    with pytest.raises(KDError, match=f"{says}.*both must read the same preprocessed data"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, base_plans=base, name="FamilyNo"))


def test_other_axes_and_missing_base_plans(tiny_dataset, tiny_teacher, write_plans):
    file = tiny_dataset.preprocessed / f"{write_plans('FamilyAxes', [8, 16, 32])}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transpose_forward": [0, 2, 1]}))
    with pytest.raises(KDError, match=r"axes in the order \[0, 1, 2\], the student's plans say \[0, 2, 1\]"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, base_plans="FamilyAxes", name="FamilyNo"))
    with pytest.raises(KDError, match="FamilyNowhere.json does not exist: run `nnUNetv2_plan_and_preprocess -d 950` first"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, base_plans="FamilyNowhere", name="FamilyNo"))


def test_other_channels_are_an_error_that_says_why(tiny_dataset, tiny_teacher, tmp_path):
    file = tiny_teacher / "dataset.json"
    content = file.read_text()
    file.write_text(json.dumps(json.loads(content) | {"channel_names": {"0": "red", "1": "green"}}))
    try:
        with pytest.raises(KDError, match="has input channels .*red.*train teacher and student on the same dataset.json"):
            plan_student(StudentRequest(950, "2d", tiny_teacher, name="FamilyNo"))
    finally:
        file.write_text(content)


def test_several_folds_average_their_predictions_and_cannot_share_features(tiny_dataset, tiny_teacher, train):
    train(tiny_dataset, fold=1, seed=1)
    options = {"iterations": 4, "epochs": 2, "teacher_fold": ["same", 1]}
    planned = plan_student(StudentRequest(950, "2d", tiny_teacher, name="FamilyFolds", **options))
    trainer = make("nnUNetTrainerKDViews", planned.plans_name)
    trainer.on_train_start()
    x = torch.randn(2, 1, 32, 32)
    one, other = (network(x).softmax(1) for network in trainer.teacher.network)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(trainer.teacher(x).softmax(1), (one + other) / 2)
    stopped(trainer, 1)
    assert trainer.logger.local_logger.my_fantastic_logging["kd/kd"][0] > 0
    with pytest.raises(KDError, match="2 folds: their predictions can be averaged, not their features, which an MSAN reads"):
        make("nnUNetTrainerGKD", planned.plans_name)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """nnUNet_extTrainer with a folder of someone else's trainers before ours."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_trainers.py").write_text(THEIRS)
    return f"{folder}{os.pathsep}{TRAINERS}"


@pytest.mark.parametrize("name", ["nnUNetTrainerTheirs", "nnUNetTrainerTheirsOld", "nnUNetTrainerBN"])
def test_a_teacher_of_another_trainer(tiny_dataset, train, theirs, monkeypatch, name):
    """Custom trainers from outside with a network of their own, and one of nnU-Net's with batch norms."""
    monkeypatch.setenv("nnUNet_extTrainer", theirs)
    folder = train(tiny_dataset, trainer=name)
    planned = plan_student(StudentRequest(950, "2d", folder, iterations=10, epochs=10, name=f"Family{name[13:]}"))
    wide = [8, 16, 32] if name == "nnUNetTrainerBN" else [16, 32, 64]
    assert planned.plans["nnunet_kd"]["teacher"]["stages"]["channels"] == wide
    trainer = make("nnUNetTrainerGKDCrossView", planned.plans_name)
    learns(trainer)
    assert list(trainer.teacher.network.encoder.output_channels) == wide
    if name == "nnUNetTrainerBN":
        assert any(isinstance(m, torch.nn.BatchNorm2d) for m in trainer.teacher.modules())
        return
    monkeypatch.setenv("nnUNet_extTrainer", TRAINERS)
    says = f"cannot build the network of .*{name}.*set nnUNet_extTrainer to its folder"
    with pytest.raises(KDError, match=says) as error:
        plan_student(StudentRequest(950, "2d", folder, name="FamilyNo"))
    assert "\n" not in str(error.value)
    trainer = make("nnUNetTrainerGKD", planned.plans_name)
    with pytest.raises(KDError, match=says):
        trainer.on_train_start()


def test_a_student_can_teach_without_any_variable(tiny_dataset, tiny_teacher, monkeypatch):
    trainer = make(
        "nnUNetTrainerGKD", plan_student(StudentRequest(950, "2d", tiny_teacher, iterations=1, name="FamilyFirst")).plans_name
    )
    trainer.run_training()
    monkeypatch.delenv("nnUNet_extTrainer")
    model = read_model_folder(Path(trainer.output_folder_base))
    assert model.trainer == "nnUNetTrainerGKD"
    built = build_network(model, model.trainer)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in weights(trainer).items()}
