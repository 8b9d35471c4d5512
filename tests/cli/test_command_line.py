"""The walk-through with real processes: nnU-Net's own commands around ours, as a user types them. Minutes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import BIN, run, succeeds, without_nnunet
from skimage.io import imread

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

PLANS, TRAINER = "CommandPlans", "nnUNetTrainerGKD"
TRAIN = ["nnUNetv2_train", "950", "2d", "0", "-p", PLANS, "-tr", TRAINER, "-device", "cpu"]
FINAL = f"Dataset950_Tiny/{TRAINER}__{PLANS}__2d/fold_0/checkpoint_final.pth"
BLOCK = """\
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nnunet_kd":
            raise ImportError("stock nnU-Net must not need nnunet_kd")

sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def environment(tiny_dataset, tiny_teacher) -> dict[str, str]:
    """A user's shell: nnU-Net's three folders, and what `nnunet-kd trainers-path` prints. The student is planned."""
    bare = without_nnunet()
    folders = {f"nnUNet_{n}": os.environ[f"nnUNet_{n}"] for n in ("raw", "preprocessed", "results")}
    printed = succeeds(["nnunet-kd", "trainers-path"], bare)
    assert printed.count("\n") == 1
    environment = bare | folders | {"nnUNet_extTrainer": printed.strip(), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    teacher = tiny_teacher.relative_to(folders["nnUNet_results"])
    command = ["nnunet-kd", "plan", 950, "-c", "2d", "--teacher", teacher, "--iterations", 20, "--epochs", 10]
    assert f"-p {PLANS} -tr {TRAINER}" in succeeds([*command, "--name", PLANS], environment)
    file = tiny_dataset.preprocessed / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["nnunet_kd"]["schedule"]["save_every"] = 1
    file.write_text(json.dumps(plans))
    return environment


@pytest.fixture(scope="module")
def trained(environment) -> Path:
    """Training folder of a GKD student, trained by nnU-Net's command."""
    succeeds(TRAIN, environment)
    folder = Path(environment["nnUNet_results"], FINAL).parents[1]
    assert (folder / "fold_0" / "progress_distillation.png").is_file()
    return folder


@pytest.fixture(scope="module")
def continued(environment, tiny_teacher, tmp_path_factory) -> dict[str, str]:
    """The environment of another nnUNet_results, where the same training was killed and taken up again with --c."""
    results = tmp_path_factory.mktemp("continued")
    shutil.copytree(tiny_teacher, results / tiny_teacher.relative_to(environment["nnUNet_results"]))
    environment = environment | {"nnUNet_results": str(results)}
    latest = (results / FINAL).with_name("checkpoint_latest.pth")
    with (results / "log.txt").open("w") as log:
        process = subprocess.Popen([BIN / TRAIN[0], *TRAIN[1:]], env=environment, stdout=log, stderr=log)
        end = time.time() + 200
        while not latest.is_file():
            assert process.poll() is None and time.time() < end, (results / "log.txt").read_text()[-2000:]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (results / FINAL).exists()
    stopped = load_checkpoint(latest)["current_epoch"]
    assert 1 <= stopped < 10
    said = succeeds([*TRAIN, "--c"], environment)
    assert f"Epoch {stopped}" in said and "Epoch 0" not in said
    return environment


def test_a_killed_training_continues_to_the_same_student(trained, continued):
    whole, again = (
        load_checkpoint(f) for f in (trained / "fold_0" / Path(FINAL).name, Path(continued["nnUNet_results"], FINAL))
    )
    assert whole["current_epoch"] == again["current_epoch"] == 10
    assert all(torch.equal(v, again["network_weights"][k]) for k, v in whole["network_weights"].items())
    for key in ("kd/kd", "kd/act_reconstruction_student"):
        np.testing.assert_array_equal(whole["logging"][key], again["logging"][key])


def test_validation_and_training_without_the_teacher(continued, tiny_teacher, environment):
    results = Path(continued["nnUNet_results"])
    shutil.rmtree(results / tiny_teacher.relative_to(environment["nnUNet_results"]))
    fold = (results / FINAL).parent
    shutil.rmtree(fold / "validation")
    succeeds([*TRAIN, "--val"], continued)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1 and len(summary["metric_per_case"]) == 2

    before = (results / FINAL).read_bytes()
    ends_with_one_line(
        run(TRAIN, continued), r"model folder .*nnUNetPlans__2d does not exist: neither in nnUNet_results .*; pass"
    )
    assert (results / FINAL).read_bytes() == before


def ends_with_one_line(result: subprocess.CompletedProcess, says: str) -> None:
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("nnunet-kd: error: ") and re.search(says, lines[-1]), result.stderr
    assert sum("nnunet-kd: error" in line for line in lines) == 1


def test_plans_without_a_section_are_one_line(environment):
    command = [PLANS if a == PLANS else a for a in TRAIN]
    command[command.index(PLANS)] = "nnUNetPlans"
    ends_with_one_line(run(command, environment), "have no .* section.*nnunet-kd plan")
    assert not list(Path(environment["nnUNet_results"]).glob(f"*/{TRAINER}__nnUNetPlans__2d/fold_0/*.pth"))


def test_our_own_mistakes_are_one_line_and_nothing_else(environment):
    for command, variables, says in (
        (["plan", 950, "-c", "2d", "--teacher", "x"], without_nnunet(), "nnUNet_raw is not set: export nnUNet_raw="),
        (["plan", 950, "-c", "2d", "--teacher", "nowhere"], environment, "model folder .*nowhere does not exist"),
        (["evaluate", "--model", "a=nowhere", "--domain", "b=950:Tr", "-o", "x"], environment, "nowhere does not exist"),
    ):
        result = run(["nnunet-kd", *command], variables)
        assert result.returncode == 2 and result.stdout == ""
        assert re.fullmatch(rf"nnunet-kd: error: .*{says}.*\n", result.stderr), result.stderr


def test_the_exported_student_predicts_the_same_in_stock_nnunet(trained, environment, tiny_dataset, tmp_path):
    """`nnUNetv2_predict_from_modelfolder` where nnunet_kd cannot be imported, against the training environment."""
    model = tmp_path / "MODEL"
    relative = trained.relative_to(environment["nnUNet_results"])
    assert f"wrote {model}" in succeeds(["nnunet-kd", "export", relative, "-o", model], environment)

    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    stock = without_nnunet() | {"PYTHONPATH": str(tmp_path / "block"), "nnUNet_def_n_proc": "1"}
    blocked = subprocess.run([sys.executable, "-c", "import nnunet_kd"], env=stock, capture_output=True, text=True, check=False)
    assert "stock nnU-Net must not need nnunet_kd" in blocked.stderr
    images = ["-i", tiny_dataset.raw / "imagesTr", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    succeeds(["nnUNetv2_predict_from_modelfolder", *images, "-m", model, "-o", tmp_path / "stock"], stock)
    names = ["-d", "950", "-c", "2d", "-p", PLANS, "-tr", TRAINER]
    succeeds(["nnUNetv2_predict", *images, *names, "-o", tmp_path / "ours"], environment)

    maps = [imread(tmp_path / "stock" / f"{case}.png") for case in tiny_dataset.cases]
    assert len(list((tmp_path / "ours").glob("*.png"))) == len(maps) == 6
    assert any(len(np.unique(m)) == 2 for m in maps)  # something to compare
    for case, own in zip(tiny_dataset.cases, maps, strict=True):
        np.testing.assert_array_equal(imread(tmp_path / "ours" / f"{case}.png"), own)


def test_the_demo_runs_from_end_to_end(tmp_path):
    out = tmp_path / "demo"
    said = succeeds(["nnunet-kd", "demo", "--quick", "-o", out], without_nnunet(), timeout=900)
    report = json.loads((out / "report.json").read_text())
    assert {"models", "fsd", "seconds"} <= report.keys() and report["seconds"] > 0
    assert [m["name"] for m in report["models"]] == ["teacher", "student", "kd", "gkd"]
    for model in report["models"]:
        assert list(model["domains"]) == ["Source", "Contrast", "Texture", "Noise"]
        assert isinstance(model["parameters"], int) and model["cpu_seconds_per_case"] > 0
        for found in model["domains"].values():
            dice = [c["dice"] for c in found["cases"].values()]
            assert len(dice) == 2 and found["dice"] == pytest.approx(np.mean(dice)) and 0 <= found["dice"] <= 1
    teacher, *students = report["models"]
    assert len({m["parameters"] for m in students}) == 1 and students[0]["parameters"] < teacher["parameters"]
    assert {r["model"] for r in report["fsd"]} == {"gkd"}
    between = [r["target"] for r in report["fsd"] if r["comparison"] == "domains"]
    assert set(between) == {"Source (other half)", "Contrast", "Texture", "Noise"}
    page = (out / "report.html").read_text()
    assert "data:image/png" in page and all(f"-tr nnUNetTrainer{t}" in page for t in ("Scheduled", "KD", "GKD"))
    steps = re.findall(r"^\[(\d+)/(\d+)\]", said, re.MULTILINE)
    assert [int(n) for n, _ in steps] == list(range(1, int(steps[0][1]) + 1))
    assert f"report: {out / 'report.html'}" in said and re.search(r"^gkd +[\d.]+", said, re.MULTILINE)
