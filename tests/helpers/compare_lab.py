"""A comparison's file in small, rows for its CSV, a folder to work it off in. Tests import the fixture."""

from __future__ import annotations

import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from small_runs import known_trainers

import nnunet_kd.comparison.running.execute as execution
import nnunet_kd.comparison.running.loop as loop
from nnunet_kd.comparison.checked_settings import read_settings
from nnunet_kd.comparison.planning import plan_comparison
from nnunet_kd.comparison.rows import read_rows
from nnunet_kd.comparison.running.train import train

CONTENT = {
    "dataset": 950,
    "configuration": "2d",
    "csv": "results/tiny.csv",
    "models": "results/models",
    "seeds": [0],
    "teacher": {"features": [8, 16, 32], "iterations": 2},
    "student": {"features": [4, 4, 8], "iterations": 2},
    "methods": {"teacher": {"role": "teacher"}, "kd+views": {"preset": "kd+views"}},
    "domains": {"val": {"domain": "950:Tr", "cases": "validation"}, "all": "950:Tr:case_0[0-2]"},
}


def write(folder: Path, **changes) -> Path:
    """A comparison's file: CONTENT with top-level keys changed, or taken out by None."""
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in {**CONTENT, **changes}.items() if v is not None}, sort_keys=False))
    return file


def row(method="kd", seed=0, case="a", dice=0.5, **more) -> dict:
    given = {
        "method": method,
        "seed": seed,
        "dataset": "val",
        "case": case,
        "dice": dice,
        "iterations": 2,
        "device": "cpu",
        "commit": "c0",
        "config_hash": "h0",
        "params": 100,
        "date": "2026-01-01T00:00:00",
        "cpu_seconds": "10.0",
    }
    return given | more


@pytest.fixture
def lab(tiny_dataset, tmp_path, monkeypatch):
    """A folder to work in, with preprocessed data and empty results of its own. Trainings run in this process; `trained`
    lists their plans names, with --c where they went on."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_dataset.preprocessed, tmp_path / "preprocessed" / tiny_dataset.name)
    for file in (tmp_path / "preprocessed" / tiny_dataset.name).glob("*.json"):
        if file.name not in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
            file.unlink()  # other tests' plans, splits
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "trainings"))
    known_trainers(monkeypatch)
    monkeypatch.setattr(loop, "PAUSE", 0.01)
    lab = Lab(tmp_path)
    monkeypatch.setattr(execution, "start_training", lab.train_here)
    return lab


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.trained, self.before_training = folder, [], lambda run: None
        self.results = folder / "trainings" / "Dataset950_Tiny"

    def train_here(self, command, environment, output, lock_fd, epochs_done, run, bar) -> None:
        dataset, configuration, fold, plans, trainer, device, _threads, *resume = command[3:]
        self.trained.append(" ".join([plans, *resume]))
        try:
            self.before_training(run)
            with redirect_stdout(output):
                train(dataset, configuration, int(fold), plans, trainer, device, bool(resume))
        except RuntimeError as error:  # as a process of its own would end
            output.write(f"RuntimeError: {error}\nsome last words\n")
            output.flush()

    def compare(self, **changes) -> list[dict]:
        """Work off the file. Returns the CSV's rows."""
        loop.compare(read_settings(write(self.folder, **changes)))
        return read_rows(self.folder / "results/tiny.csv")

    def plan(self, **changes):
        return plan_comparison(read_settings(write(self.folder, **changes)))
