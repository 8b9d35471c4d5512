"""A full disk, a folder that cannot be written, a hard kill: what was there before is intact, and nothing is left running."""

from __future__ import annotations

import copy
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from small_runs import known_trainers, make, stopped, student

from nnunet_kd.nnunet_io.checkpoints import check_writable, load_checkpoint, save_atomically
from nnunet_kd.planning.plans import plan_teacher
from nnunet_kd.planning.requests import TeacherRequest
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.random_state import random_state

ROOT = Path(__file__).parents[2]
BEST, LATEST = "checkpoint_best.pth", "checkpoint_latest.pth"
BALANCED = {"kd": {"balance": 1.0}}  # keeps a running mean of the teacher's class frequencies
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full, /proc or prctl")


def checkpoint(epoch: int) -> dict:
    weights = {"w": torch.rand(300, 300)}
    return {"network_weights": weights, "trainer_name": "t", "init_args": {}, "current_epoch": epoch}


def intact(path: Path, epoch: int) -> None:
    assert load_checkpoint(path)["current_epoch"] == epoch
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# full disk


@linux
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / LATEST
    save_atomically(checkpoint(1), path)
    (tmp_path / f".{LATEST}.tmp").symlink_to("/dev/full")  # every write to it fails with ENOSPC
    with pytest.raises(KDError, match=f"cannot write {path}: No space left on device; free .* --c .* intact") as error:
        save_atomically(checkpoint(2), path)
    assert "\n" not in str(error.value)
    intact(path, 1)


@linux
@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_disk_that_is_full_half_way_leaves_the_old_file(tmp_path, share):
    """torch's writer then raises a RuntimeError of its own in place of the system's error."""
    path = tmp_path / LATEST
    save_atomically(checkpoint(1), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * path.stat().st_size), limits[1]))
    try:
        with pytest.raises(KDError, match=f"cannot write {path}: File too large; free disk space"):
            save_atomically(checkpoint(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    intact(path, 1)


def test_a_disk_that_fails_at_the_very_end(tmp_path, monkeypatch):
    path = tmp_path / LATEST
    save_atomically(checkpoint(1), path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(KDError, match="No space left on device"):
            save_atomically(checkpoint(2), path)
    intact(path, 1)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(Exception, match="pickle|local") as error:
        save_atomically({"f": lambda: 0}, tmp_path / "c.pth")
    assert not isinstance(error.value, KDError) and not list(tmp_path.iterdir())


@pytest.fixture
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@linux
def test_a_training_on_a_full_disk_stops_with_the_fix_and_goes_on_later(tiny_teacher, external_trainers):
    schedule = {"epochs": 3, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "save_every": 1}
    plans = student(tiny_teacher, "KDfull_disk", schedule=schedule)
    first = make("nnUNetTrainerKD", plans)
    first.on_train_start()
    stopped(first, 1)
    folder = Path(first.output_folder)
    (folder / f".{LATEST}.tmp").symlink_to("/dev/full")
    with pytest.raises(KDError, match=f"cannot write .*{LATEST}: No space left"):
        stopped(first, 1)
    assert load_checkpoint(folder / LATEST)["current_epoch"] == 1 and not list(folder.glob(".*.tmp"))
    second = make("nnUNetTrainerKD", plans, resume=True)
    assert second.current_epoch == 1
    second.run_training()
    assert load_checkpoint(folder / "checkpoint_final.pth")["current_epoch"] == 3


@linux
def test_a_disk_that_fills_up_while_a_picture_is_drawn(tiny_teacher, external_trainers, monkeypatch):
    draw = lambda self, folder: Path(folder, "progress.png").write_bytes(b"a picture")  # noqa: E731
    monkeypatch.setattr(LocalLogger, "plot_progress_png", draw)
    plans = student(tiny_teacher, "KDfull_picture", epochs=1, iterations=1)
    trainer = make("nnUNetTrainerKD", plans)
    (Path(trainer.output_folder) / "progress.png").symlink_to("/dev/full")
    with pytest.raises(KDError, match=f"cannot write {trainer.output_folder}.*: No space left") as error:
        trainer.run_training()
    assert "\n" not in str(error.value)


# folders that cannot be written: as root, permissions do not count, so /proc stands in


@linux
def test_a_read_only_result_folder_stops_the_training_before_it_starts(tiny_teacher, external_trainers, monkeypatch):
    plans = student(tiny_teacher, "KDreadonly", epochs=1, iterations=1)
    trainer = make("nnUNetTrainerKD", plans)
    trainer.output_folder = "/proc/1"
    monkeypatch.setattr(trainer, "get_dataloaders", lambda: pytest.fail("training began"))
    with pytest.raises(KDError, match="cannot write /proc/1: .*mend its permissions"):
        trainer.run_training()
    monkeypatch.setenv("nnUNet_results", "/proc/results")
    with pytest.raises(KDError, match="cannot write /proc/results") as error:
        make("nnUNetTrainerKD", plans)
    assert "\n" not in str(error.value)


def test_what_a_killed_training_left_is_cleared_away(tmp_path):
    save_atomically(checkpoint(1), tmp_path / BEST)
    (tmp_path / f".{LATEST}.tmp").write_bytes(b"half")
    check_writable(tmp_path)
    intact(tmp_path / BEST, 1)


# workers

FORKS = """
import multiprocessing, os, signal, sys, time
from nnunet_kd.training.loader_workers import end_with_parent

def worker():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

if sys.argv[1] == "yes":
    end_with_parent(), end_with_parent()
started = [multiprocessing.get_context("fork").Process(target=worker, daemon=True) for _ in range(3)]
[p.start() for p in started]
print(*[p.pid for p in started], flush=True)
time.sleep(600)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@linux
@pytest.mark.parametrize("ask", ["yes", "no"])
def test_forked_workers_end_with_a_killed_training(ask):
    process = subprocess.Popen([sys.executable, "-c", FORKS, ask], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(0.2)
    assert len(pids) == 3 and all(running(pid) for pid in pids)
    process.kill()
    process.wait()
    end = time.monotonic() + (20 if ask == "yes" else 1)
    while any(running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    left = [pid for pid in pids if running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == ([] if ask == "yes" else pids)
    if ask == "yes":
        assert process.stdout.read() == ""  # nobody holds the other end


def test_with_workers_the_state_is_the_same_at_the_checkpoint(tiny_teacher, external_trainers, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    schedule = {"epochs": 10, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}
    losses = {"bottleneck": {"cirkd-memory": {"pixel_memory": 50, "region_memory": 20}}}
    plans = student(tiny_teacher, "KDworkers", schedule=schedule, losses=losses, terms=BALANCED)
    first = make("nnUNetTrainerGKDCrossView", plans)
    try:
        first.on_train_start()
        stopped(first, 4)
        saved = whole_state(first)
    finally:
        finish(first)
    second = make("nnUNetTrainerGKDCrossView", plans, resume=True)
    try:
        second.on_train_start()
        again = whole_state(second)
        assert first.dataloader_train.num_processes == 2 and second.current_epoch == 4
        assert list(differences(saved, again)) == []
        assert len(saved["distiller"]["losses"]) > 3 and saved["distiller"]["frequencies"] is not None
    finally:
        finish(second)


def whole_state(trainer) -> dict:
    """Everything a checkpoint stands for, random states included."""
    logged = trainer.logger.local_logger.my_fantastic_logging
    return copy.deepcopy(
        {
            "student": trainer.network.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "distiller": trainer.distiller.state_dict(),
            "random": random_state(),
            "epoch": trainer.current_epoch,
            "best": trainer._best_ema,
            "logged": {k: np.array(v, float) for k, v in logged.items() if k != "lrs"},
        }
    )


def differences(a, b):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from drill.same import differences as found
    finally:
        sys.path.pop(0)
    return found(a, b)


def finish(trainer) -> None:
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if loader is not None:
            loader._finish()


def test_a_difference_of_one_bit_is_found():
    state = {"a": [torch.arange(4.0), {"n": float("nan"), "m": np.float32(1)}], "epoch_end_timestamps": [1.0]}
    assert list(differences(state, {**copy.deepcopy(state), "epoch_end_timestamps": [2.0]})) == []
    for change in (
        lambda s: s["a"][0].__setitem__(2, np.nextafter(np.float32(2), np.float32(3)).item()),
        lambda s: s["a"][1].update(n=1.0),
        lambda s: s["a"][1].update(m=np.float32(2)),
        lambda s: s["a"][1].update(more=1),
        lambda s: s["a"].append(0),
        lambda s: s.update(a=tuple(s["a"])),
    ):
        other = copy.deepcopy(state)
        change(other)
        assert len(list(differences(state, other))) == 1


# the best checkpoint


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_continued_training_knows_its_best_epoch(tiny_dataset, external_trainers, stop):
    """nnU-Net writes the latest before it knows of a new best; continued from it, a worse epoch would replace the best."""
    planned = plan_teacher(TeacherRequest(950, "2d", iterations=5, epochs=5, name="BestPlans", overwrite=True))
    dice = [0.5, 0.9, 0.2, 0.7, 0.1]  # of the epochs; their running mean is best after the second

    def begin(resume: bool):
        trainer = make("nnUNetTrainerScheduled", planned.plans_name, resume)
        trainer.save_every = 1

        def validation_step(batch):
            d = dice[trainer.current_epoch]
            return {"loss": np.array(0.5), **{k: np.array([v]) for k, v in zip(KEYS, (d, 1 - d, 1 - d), strict=True)}}

        trainer.validation_step = validation_step
        trainer.on_train_start()
        return trainer

    first = begin(False)
    folder = Path(first.output_folder)
    stopped(first, stop)
    assert load_checkpoint(folder / LATEST)["current_epoch"] == stop
    second = begin(True)
    assert second.current_epoch == stop and second._best_ema == first._best_ema
    stopped(second, 5 - stop)
    best = load_checkpoint(folder / BEST)
    logged = second.logger.get_value("ema_fg_dice", None)
    assert best["current_epoch"] == 1 + int(np.argmax(logged)) and best["_best_ema"] == max(logged) == second._best_ema


KEYS = ("tp_hard", "fp_hard", "fn_hard")


# everything together, through the real command line


@pytest.mark.slow
def test_the_fault_drill(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    command = [sys.executable, ROOT / "scripts" / "fault_drill.py", "--quick", "-o", tmp_path / "drill"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1700)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall("(?m)^[123] .* the same$", result.stdout)) == 3
    assert "bytes of another" in result.stdout.splitlines()[2]  # the first is inside a checkpoint's writing
    assert "3 kills and one with loader workers, 0 losses" in result.stdout


# a training that ends before it should


def test_a_training_without_a_teacher_of_its_fold_leaves_nothing(tiny_teacher, external_trainers):
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "FAULTfold", epochs=1, iterations=1), fold=3)
    fold = Path(trainer.output_folder)
    assert fold.is_dir()
    with pytest.raises(KDError, match="no checkpoint at .*fold_3/checkpoint_final.pth"):
        trainer.run_training()
    assert not fold.exists() and not fold.parent.exists() and fold.parents[1].is_dir()


def test_what_else_lies_in_the_folder_stays(tiny_teacher, external_trainers):
    plans = student(tiny_teacher, "FAULTstays", epochs=1, iterations=1)
    make("nnUNetTrainerKD", plans).run_training()
    trained = make("nnUNetTrainerKD", plans, fold=3)
    fold = Path(trained.output_folder)
    (fold / "notes.txt").write_text("mine")
    with pytest.raises(KDError, match="no checkpoint at"):
        trained.run_training()
    assert [file.name for file in fold.iterdir()] == ["notes.txt"]
    assert (fold.with_name("fold_0") / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("saved", [True, False])
def test_ctrl_c_is_one_line_that_says_how_to_continue(tiny_teacher, external_trainers, saved, capsys):
    name = f"FAULTctrlc{saved}"
    plans = student(tiny_teacher, name, epochs=3, iterations=3)
    file = Path(os.environ["nnUNet_preprocessed"]) / "Dataset950_Tiny" / f"{name}.json"
    content = json.loads(file.read_text())
    content["nnunet_kd"]["schedule"]["save_every"] = 1 if saved else 50
    file.write_text(json.dumps(content))
    trainer = make("nnUNetTrainerKD", plans)
    begin = trainer.on_train_epoch_start

    def interrupted() -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        begin()

    trainer.on_train_epoch_start = interrupted
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 1") as stop:
        trainer.run_training()
    assert type(stop.value) is KeyboardInterrupt  # for any other, Python's exit code would not be 130
    said = "the same command with --c continues from" if saved else "before the first checkpoint"
    assert said in str(stop.value) and "\n" not in str(stop.value)
    assert Path(trainer.log_file).is_file()
    capsys.readouterr()
    sys.excepthook(type(stop.value), stop.value, None)
    assert capsys.readouterr().err == f"nnunet-kd: {stop.value}\n"
