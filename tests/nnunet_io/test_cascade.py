"""Cascades: a 3d_lowres student, and a 3d_cascade_fullres student that reads its predictions, with either kind of teacher."""

from __future__ import annotations

import copy
import json
import multiprocessing
import multiprocessing.dummy
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from small_runs import known_trainers, one_step

from nnunet_kd.config.terms import ACT, MSAN, Views
from nnunet_kd.deploy.export import export_model
from nnunet_kd.evaluation.domains import parse_domain
from nnunet_kd.evaluation.fsd.post_hoc import Fit, fitted_run
from nnunet_kd.evaluation.fsd.vectors import load_aligned_run, semantic_vectors
from nnunet_kd.evaluation.predict import load_predictor, predict_domain
from nnunet_kd.nnunet_io.trained_fold import TrainedFold
from nnunet_kd.planning.plans import plan_student, plan_teacher
from nnunet_kd.planning.requests import StudentRequest, TeacherRequest
from nnunet_kd.utils.errors import KDError

ID, LOW, FULL, SECOND = 920, "3d_lowres", "3d_fullres", "3d_cascade_fullres"
IMAGES, LABELS = 1, 2  # channels of the data: images, then the previous stage's labels as one-hot maps
TERMS = ("kd", "intra", "inter", "cross_ts", "cross_st")


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def threads_for_processes():
    """nnU-Net's pools as threads of this process, as in conftest.py."""
    real = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda m=None: multiprocessing.dummy if m == "spawn" else real(m))
        yield


def make(name: str, plans: str, configuration: str, fold: int | str = 0):
    return get_trainer_from_args(str(ID), configuration, fold, name, plans, device=torch.device("cpu"))


def finish(trainer, epochs: int = 1, iterations: int = 2) -> Path:
    """Train and validate, as nnUNetv2_train does. Returns the model folder."""
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 1
    trainer.run_training()
    trainer.perform_actual_validation()
    return Path(trainer.output_folder_base)


@contextmanager
def edited(world, name: str):
    """The content of a plans file, written back afterwards."""
    file = world.dataset.preprocessed / f"{name}.json"
    plans = json.loads(file.read_text())
    yield plans
    file.write_text(json.dumps(plans))


def add_cascade(dataset) -> None:
    """Half-resolution data for 24^3 volumes, as nnU-Net's own integration test adds them."""
    plans = json.loads(dataset.plans_file.read_text())
    configurations = plans["configurations"]
    low = {
        "inherits_from": FULL,
        "data_identifier": "nnUNetPlans_3d_lowres",
        "patch_size": [8, 8, 8],
        "spacing": [2.0, 2.0, 2.0],
        "median_image_size_in_voxels": [12.0, 12.0, 12.0],
        "next_stage": SECOND,
        "architecture": copy.deepcopy(configurations[FULL]["architecture"]),
    }
    low["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "strides": [[1] * 3, [2] * 3, [2] * 3],
        "kernel_sizes": [[3] * 3] * 3,
        "n_conv_per_stage": [1] * 3,
        "n_conv_per_stage_decoder": [1] * 2,
    }
    configurations |= {LOW: low, SECOND: {"inherits_from": FULL, "previous_stage": LOW}}
    dataset.plans_file.write_text(json.dumps(plans))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_n_proc_DA", "1")
        preprocess([dataset.id], configurations=(LOW,), num_processes=(1,), show_progress_bar=False)


def know_the_answer(dataset, predictions: Path) -> None:
    """Write annotations over what the first stage predicted: after two steps that may be background alone."""
    cases = nnUNetDatasetBlosc2(str(dataset.preprocessed / "nnUNetPlans_3d_fullres"))
    for case in dataset.cases:
        file = predictions / f"{case}.b2nd"
        predicted, (_, truth, *_) = blosc2.open(str(file), mode="r")[:], cases.load_case(case)
        assert predicted.shape == truth.shape[1:] and set(np.unique(predicted)) <= {0, 1, 2}
        cases.save_seg(truth[0].clip(0).astype(predicted.dtype), str(predictions / case))


@pytest.fixture(scope="module")
def world(make_dataset):
    """Stock models of all three configurations, and a distilled first stage. Fold "all" predicts every case at once."""
    dataset = make_dataset(ID, "Cascade", dims=3, foreground=LABELS, cases=5)
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        add_cascade(dataset)
        stock = {LOW: finish(make("nnUNetTrainer", "nnUNetPlans", LOW, "all"))}
        for configuration in (FULL, SECOND):
            stock[configuration] = finish(make("nnUNetTrainer", "nnUNetPlans", configuration))
        plan_student(StudentRequest(ID, LOW, stock[LOW], width=0.5, iterations=2, epochs=1, name="CascadeLow"))
        low = finish(make("nnUNetTrainerKDViews", "CascadeLow", LOW, "all"))
        know_the_answer(dataset, low / "predicted_next_stage" / SECOND)
    return SimpleNamespace(dataset=dataset, stock=stock, low=low)


def planned(world, teacher: str, name: str, **options):
    options = {"width": 0.5, "iterations": 10, "epochs": 10, "previous_stage": world.low, "overwrite": True} | options
    return plan_student(StudentRequest(ID, SECOND, world.stock[teacher], name=name, **options))


def test_the_plans_of_a_first_stage_keep_the_second(world):
    plans = json.loads((world.dataset.preprocessed / "CascadeLow.json").read_text())["configurations"]
    assert set(plans) == {LOW, SECOND} and plans[LOW]["next_stage"] == [SECOND] and plans[SECOND]["previous_stage"] == LOW
    assert plans[SECOND]["data_identifier"] == "nnUNetPlans_3d_fullres" and plans[SECOND]["spacing"] == [1, 1, 1]
    assert len(list((world.low / "predicted_next_stage" / SECOND).glob("*.b2nd"))) == 5


def test_without_data_of_the_second_stage_a_first_one_does_not_name_it(world):
    data = world.dataset.preprocessed / "nnUNetPlans_3d_fullres"
    data.rename(data.with_name("away"))
    try:
        plans = plan_student(StudentRequest(ID, LOW, world.stock[LOW], width=0.5, name="CascadeAlone")).plans["configurations"]
    finally:
        data.with_name("away").rename(data)
    assert set(plans) == {LOW} and "next_stage" not in plans[LOW]


@pytest.mark.parametrize("teacher", [SECOND, FULL])
def test_a_second_stage_learns_from_a_teacher_with_and_without_the_cascades_input(world, teacher):
    name = planned(world, teacher, f"Cascade{teacher[3:]}").plans_name
    trainer = make("nnUNetTrainerGKDCrossView", name, SECOND)
    trainer.on_train_start()
    assert trainer.folder_with_segs_from_previous_stage == str(world.low / "predicted_next_stage" / SECOND)
    assert trainer.num_input_channels == IMAGES + LABELS
    reads, steps = [], []
    trainer.teacher.network.encoder.register_forward_pre_hook(lambda module, inputs: reads.append(inputs[0].clone()))
    prepare = trainer.distiller.prepare
    trainer.distiller.prepare = lambda *args: steps.append((args[0], prepare(*args))) or steps[-1][1]
    for epoch in (0, 1, 5):
        values = one_step(trainer, epoch)
    assert all(values[term] > 0 for term in TERMS), values
    assert len(reads) == len(steps) == 3
    for read, (data, step) in zip(reads, steps, strict=True):
        batch, previous = len(data), data[:, IMAGES:]
        assert data.shape[1] == IMAGES + LABELS and set(previous.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(step.data[:batch], data)
        assert torch.equal(step.data[batch:, IMAGES:], previous)  # of the view: the images alone have changed
        assert not torch.equal(step.data[batch:, :IMAGES], data[:, :IMAGES])
        assert torch.equal(read[:batch], data if teacher == SECOND else data[:, :IMAGES])
    assert any(data[:, IMAGES:].any() for data, _ in steps)


def test_a_second_stage_trains_validates_predicts_and_is_exported(world, tmp_path):
    trainer = make("nnUNetTrainerGKD", planned(world, SECOND, "CascadeWhole").plans_name, SECOND)
    folder = finish(trainer, epochs=2)
    summary = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"} and len(summary["metric_per_case"]) == 1
    case = world.dataset.cases[0]
    image = str(world.dataset.raw / "imagesTr" / f"{case}_0000.nii.gz")
    low, second = (nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False) for _ in range(2))
    low.initialize_from_trained_model_folder(str(world.low), ("all",), "checkpoint_final.pth")
    (tmp_path / "low").mkdir()
    low.predict_from_files_sequential([[image]], [str(tmp_path / "low" / case)])
    stock = export_model(folder, tmp_path / "exported")
    for model, out in ((folder, "ours"), (stock, "stock")):
        (tmp_path / out).mkdir()
        second.initialize_from_trained_model_folder(str(model), ("0",), "checkpoint_final.pth")
        second.predict_from_files_sequential(
            [[image]], [str(tmp_path / out / case)], folder_with_segs_from_prev_stage=str(tmp_path / "low")
        )
    files = [(tmp_path / out / f"{case}.nii.gz").read_bytes() for out in ("ours", "stock")]
    assert files[0] == files[1]
    # evaluation runs both stages
    domain = replace(parse_domain(f"d={ID}:Tr", world.dataset.raw.parent), cases=list(world.dataset.cases[:2]))
    out = predict_domain(load_predictor(folder, ("0",), "checkpoint_final.pth"), domain, tmp_path / "evaluated", "x").folder
    assert (out / f"{case}.nii.gz").read_bytes() == files[0]
    one, seen = replace(domain, cases=[case]), {}
    predict_domain(load_predictor(folder, ("0",), "checkpoint_final.pth"), one, tmp_path / "seen", "x", see=seen.__setitem__)
    assert (tmp_path / "seen" / f"{case}.nii.gz").read_bytes() == files[0] and list(seen) == [case]
    assert (out / "previous_stage" / f"{case}.nii.gz").read_bytes() == (tmp_path / "low" / f"{case}.nii.gz").read_bytes()
    run = load_aligned_run(TrainedFold.open(folder))
    seen = []
    run.student.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    samples = semantic_vectors(run, domain, ("student", "teacher"), maps=True)
    assert all(len(sample) == 16 for sample in samples.values()) and "annotation" in samples
    assert all(x.shape[1] == IMAGES + LABELS and set(x[:, IMAGES:].unique().tolist()) <= {0.0, 1.0} for x in seen)
    fitted = fitted_run(TrainedFold.open(folder), Fit(MSAN("spatial", dim=64), ACT(decoded=0), Views("light"), steps=4))
    assert semantic_vectors(fitted, domain)["student"].vectors.shape == (16, 64)
    # an export says nothing of its first stage
    with pytest.raises(KDError, match="second stage of a cascade and its first stage .3d_lowres. is not to be found"):
        load_predictor(stock, ("0",), "checkpoint_final.pth")


def test_a_student_reads_what_its_teacher_read_unless_told_otherwise(world):
    section = planned(world, SECOND, "CascadeDefault", previous_stage=None).plans["nnunet_kd"]
    assert section["previous_stage"] == f"{world.dataset.name}/nnUNetTrainer__nnUNetPlans__{LOW}"
    # a scheduled teacher says it in its own plans
    plans = plan_teacher(
        TeacherRequest(ID, SECOND, previous_stage=world.low, iterations=2, epochs=1, name="CascadeTeacher")
    ).plans
    assert plans["nnunet_kd"]["previous_stage"] == f"{world.dataset.name}/{world.low.name}"
    teacher = finish(make("nnUNetTrainerScheduled", "CascadeTeacher", SECOND))
    student = plan_student(StudentRequest(ID, SECOND, teacher, width=0.5, name="CascadeOfScheduled")).plans["nnunet_kd"]
    assert student["previous_stage"] == plans["nnunet_kd"]["previous_stage"]
    # which a teacher without the cascade's input cannot
    with pytest.raises(KDError, match="--previous-stage FOLDER is missing: name the trained 3d_lowres model"):
        planned(world, FULL, "CascadeNone", previous_stage=None)
    with pytest.raises(KDError, match="--previous-stage FOLDER is missing"):
        plan_teacher(TeacherRequest(ID, SECOND, name="CascadeNone"))


def test_missing_predictions_name_the_command_that_makes_them(world, tmp_path):
    first = tmp_path / world.low.name
    shutil.copytree(world.low, first)
    name = planned(world, FULL, "CascadeMissing", previous_stage=first).plans_name
    (first / "predicted_next_stage" / SECOND / "case_01.b2nd").unlink()
    trainer = make("nnUNetTrainerGKD", name, SECOND)
    with pytest.raises(
        KDError,
        match=r"1 of 5 cases \(case_01\).*nnUNetv2_train .* 3d_lowres FOLD -p CascadeLow "
        "-tr nnUNetTrainerKDViews`.*--val",
    ) as error:
        trainer.on_train_start()
    assert "\n" not in str(error.value)
    shutil.rmtree(first / "predicted_next_stage")
    trainer = make("nnUNetTrainerGKD", name, SECOND)
    trainer.initialize()
    with pytest.raises(KDError, match=r"5 of 5 cases \(case_00, case_01, case_02, \.\.\.\)"):
        trainer.perform_actual_validation()  # --val
    # without our key nnU-Net looks beside the model of the same trainer and plans
    with edited(world, name) as plans:
        del plans["nnunet_kd"]["previous_stage"]
    trainer = make("nnUNetTrainerGKD", name, SECOND)
    with pytest.raises(KDError, match="3d_lowres FOLD -p CascadeMissing -tr nnUNetTrainerGKD`"):
        trainer.on_train_start()


def test_what_does_not_fit_a_cascade_is_an_error_that_says_why(world):
    with pytest.raises(KDError, match=r"is a 3d_cascade_fullres model, -c says 3d_fullres: pass -c 3d_cascade_fullres"):
        plan_student(StudentRequest(ID, FULL, world.stock[SECOND], width=0.5, name="CascadeNo"))
    with pytest.raises(KDError, match="was trained with spacing .*both must read the same preprocessed data"):
        planned(world, LOW, "CascadeNo")
    with pytest.raises(KDError, match="nnUNetPlans__3d_fullres is a 3d_fullres model, the plans ask for 3d_lowres"):
        planned(world, FULL, "CascadeNo", previous_stage=world.stock[FULL])
    with pytest.raises(KDError, match="--previous-stage is for the second stage of a cascade, 3d_fullres is none"):
        plan_student(StudentRequest(ID, FULL, world.stock[FULL], width=0.5, previous_stage=world.low, name="CascadeNo"))
    name = plan_student(StudentRequest(ID, FULL, world.stock[FULL], width=0.5, name="CascadeKey")).plans_name
    with edited(world, name) as plans:
        plans["nnunet_kd"]["previous_stage"] = str(world.low)
    with pytest.raises(KDError, match="previous_stage.* is set but 3d_fullres is no second stage of a cascade: remove the key"):
        make("nnUNetTrainerGKD", name, FULL)


def test_a_second_stages_teacher_cannot_teach_what_does_not_load_its_input(world):
    name = planned(world, SECOND, "CascadeFlat").plans_name
    with edited(world, name) as plans:
        plans["configurations"][FULL] = {k: v for k, v in plans["configurations"][SECOND].items() if k != "previous_stage"}
        del plans["nnunet_kd"]["previous_stage"]
    trainer = make("nnUNetTrainerKD", name, FULL)
    with pytest.raises(KDError, match="reads the first one's segmentation, which 3d_fullres does not load"):
        trainer.on_train_start()


def test_the_controls_read_the_same_data(world):
    name = planned(world, FULL, "CascadeControl").plans_name
    batches = []
    for trainer_name in ("nnUNetTrainerScheduled", "nnUNetTrainerKD"):
        trainer = make(trainer_name, name, SECOND)
        trainer.on_train_start()
        batches.append(next(trainer.dataloader_train)["data"])
    assert np.array_equal(*batches)
