"""nnU-Net's other commands on our students, with real processes: find the best, hand on as an archive, predict. Minutes."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.dummy
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import succeeds, without_nnunet
from nnunetv2.run.run_training import run_training
from skimage.io import imread
from small_runs import TRAINERS, known_trainers, student

pytestmark = pytest.mark.slow

PLANS, GKD, CONTROL = "SwitchPlans", "nnUNetTrainerGKD", "nnUNetTrainerScheduled"
MODEL = f"{GKD}__{PLANS}__2d"
SCHEDULE = {"epochs": 3, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def environment(tiny_dataset, tiny_teacher, train) -> dict[str, str]:
    """A user's shell with a distilled student and its control, folds 0 and 1, trained with --npz."""
    train(tiny_dataset, fold=1)
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        get, threads = multiprocessing.get_context, multiprocessing.dummy
        patch.setattr(multiprocessing, "get_context", lambda method=None: threads if method == "spawn" else get(method))
        plans = student(tiny_teacher, PLANS, schedule=SCHEDULE)
        for name in (GKD, CONTROL):
            for fold in (0, 1):
                run_training("950", "2d", fold, name, plans, export_validation_probabilities=True, device=torch.device("cpu"))
                # what the trainer draws is switched off here, and the archive takes it along
                (tiny_dataset.results / f"{name}__{PLANS}__2d" / f"fold_{fold}" / "progress.png").touch()
    folders = {f"nnUNet_{n}": os.environ[f"nnUNet_{n}"] for n in ("raw", "preprocessed", "results")}
    return without_nnunet() | folders | {"nnUNet_extTrainer": TRAINERS, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}


def test_find_best_configuration(environment, tiny_dataset):
    """Student against control and their ensemble."""
    models = ["-c", "2d", "-f", 0, 1, "-tr", GKD, CONTROL, "-p", PLANS]
    said = succeeds(["nnUNetv2_find_best_configuration", 950, *models, "-np", 1], environment)
    found = json.loads((tiny_dataset.results / "inference_information.json").read_text())["all_results"]
    assert {MODEL, f"{CONTROL}__{PLANS}__2d"} < found.keys() and len(found) == 3
    assert all(0 <= dice <= 1 for dice in found.values())
    assert f"*Best*: {max(found, key=found.get)}" in said and re.search(rf"nnUNetv2_predict .*-c 2d -p {PLANS}", said)


def test_an_archive_installs_and_predicts_where_there_is_no_teacher(environment, tiny_dataset, tmp_path):
    archive, results = tmp_path / "student.zip", tmp_path / "results"
    results.mkdir()
    names = ["-d", "950", "-p", PLANS, "-tr", GKD, "-f", 0, 1, "-c", "2d"]
    succeeds(["nnUNetv2_export_model_to_zip", *names, "-o", archive], environment)
    inside = zipfile.ZipFile(archive).namelist()
    assert {f"Dataset950_Tiny/{MODEL}/fold_{fold}/checkpoint_final.pth" for fold in (0, 1)} < set(inside)
    assert not any("nnUNetTrainer__" in name for name in inside)  # no teacher
    elsewhere = environment | {"nnUNet_results": str(results)}
    succeeds(["nnUNetv2_install_pretrained_model_from_zip", archive], elsewhere)
    assert (results / "Dataset950_Tiny" / MODEL / "plans.json").is_file()
    (tmp_path / "images").mkdir()
    shutil.copy(tiny_dataset.raw / "imagesTr" / "case_00_0000.png", tmp_path / "images")
    for place, out in ((environment, "here"), (elsewhere, "there")):
        command = [
            "nnUNetv2_predict",
            *names,
            "-i",
            tmp_path / "images",
            "-o",
            tmp_path / out,
            "-device",
            "cpu",
            "-npp",
            1,
            "-nps",
            1,
        ]
        succeeds(command, place)
    here, there = (imread(tmp_path / out / "case_00.png") for out in ("here", "there"))
    np.testing.assert_array_equal(here, there)
    assert here.shape == (48, 48)
    assert not list(Path(results).rglob("nnUNetTrainer__*"))
