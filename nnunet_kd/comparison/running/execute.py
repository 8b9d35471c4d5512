"""One run: train, export, predict what is missing, write rows. What exists already is used."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from tqdm import tqdm

from nnunet_kd.comparison.planning import Comparison, Run, same_training
from nnunet_kd.comparison.rows import append_rows, cases_by_identity, identity, read_rows, replace_rows
from nnunet_kd.comparison.running.kept_models import keep_model, kept_model, model_folder, read_kept
from nnunet_kd.comparison.running.measure import measure_run
from nnunet_kd.comparison.running.train import RECORD, read_record
from nnunet_kd.config.recipe import difference
from nnunet_kd.config.run import SECTION
from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.nnunet_io.trained_fold import FINAL
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json

ERROR = re.compile(r"nnunet-kd: error|([a-zA-Z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt)\b")  # a traceback's last line
FRESH = 30 * 60  # seconds in which a training that writes nothing is still taken to be going on
Say = Callable[[str], None]


class TrainedElsewhere(Exception):
    """Another program than a comparison is training this very run; its end is waited for."""


def missing(comparison: Comparison, run: Run, rows: list[dict[str, str]] | None = None) -> list[Domain]:
    """The run's domains with only those cases that have no row yet. ``rows``: the CSV's, if they have just been read."""
    measured = cases_by_identity(read_rows(comparison.settings.csv) if rows is None else rows)
    remaining = []
    for domain in comparison.domains_of(run):
        done = measured.get(_identity_of(run, domain), set())
        left = [c for c in domain.cases if c not in done]
        if left:
            remaining.append(dataclasses.replace(domain, cases=left))
    return remaining


def unmeasured(comparison: Comparison, run: Run, rows: list[dict[str, str]] | None = None) -> list[Domain]:
    """The run's domains with only those cases whose row is from before there were the columns `rows.MEASURED`."""
    rows = read_rows(comparison.settings.csv) if rows is None else rows
    old = cases_by_identity(r for r in rows if r["hd95"] == "")
    remaining = []
    for domain in comparison.domains_of(run):
        without = old.get(_identity_of(run, domain), set())
        if left := [c for c in domain.cases if c in without]:
            remaining.append(dataclasses.replace(domain, cases=left))
    return remaining


def execute(comparison: Comparison, run: Run, lock_fd: int, say: Say, bar: bool | None = None) -> None:
    """Bring one run to its end. The caller holds the run's lock.

    Args:
        lock_fd: handed on to the training, so that the lock outlives a killed parent.
        bar: show a progress bar; None if stderr is a terminal.

    Raises:
        KDError: training, export or prediction failed.
        TrainedElsewhere: see there.
    """
    kept = kept_model(comparison, run)
    if kept is None:
        folder = _training_folder(comparison, run)
        if not (folder / f"fold_{run.fold}" / FINAL).is_file():
            _refuse_foreign(run, folder)
            _say_why(comparison, run, say)
            train(comparison, run, folder, lock_fd, say, bar)
        kept = keep_model(comparison, run, folder)
    torch.set_num_threads(comparison.settings.threads)
    for domain in missing(comparison, run):
        append_rows(comparison.settings.csv, measure_run(comparison, run, domain, model_folder(comparison, run), kept))


def remeasure_run(comparison: Comparison, run: Run) -> tuple[int, float]:
    """Predict the cases of `unmeasured` again with the kept model and put the new rows in the old ones' place.

    Returns:
        Rows replaced, and by how much their Dice differs at most (NaN and a number: by that number).
    """
    kept = kept_model(comparison, run)
    torch.set_num_threads(comparison.settings.threads)
    count, most = 0, 0.0
    before = {(*identity(r), r["case"]): float(r["dice"]) for r in read_rows(comparison.settings.csv)}
    for domain in unmeasured(comparison, run):
        rows = measure_run(comparison, run, domain, model_folder(comparison, run), kept)
        replace_rows(comparison.settings.csv, rows)
        count += len(rows)
        for r in rows:
            pair = before[(*_identity_of(run, domain), r["case"])], float(r["dice"])
            most = max(most, abs(np.subtract(*np.nan_to_num(pair))))
    return count, most


def status(comparison: Comparison, run: Run) -> str:
    """done, or in a few words what exists and what is missing."""
    todo = missing(comparison, run)
    if not todo:
        return "done"
    what = ", ".join(f"{d.name} ({len(d.cases)})" for d in todo)
    if kept_model(comparison, run) is not None:
        return f"to predict from the kept model: {what}"
    folder = _training_folder(comparison, run) / f"fold_{run.fold}"
    if (folder / FINAL).is_file():
        return f"trained, to export and predict: {what}"
    done = len(read_record(folder / RECORD)["epochs"])
    return f"to train ({f'{done} epochs done, ' if done else ''}{run.iterations} iterations) and predict: {what}"


def train(comparison: Comparison, run: Run, folder: Path, lock_fd: int, say: Say, bar: bool | None) -> None:
    """Write the run's plans and train in a process of its own, from the latest checkpoint if there is one."""
    s, (trainer, plans_name, _) = comparison.settings, folder.name.split("__")
    fold = folder / f"fold_{run.fold}"
    write_json(run.source.preprocessed / f"{plans_name}.json", _plans(comparison, run, plans_name))
    resume = (fold / "checkpoint_latest.pth").is_file()
    if not resume:
        write_json(fold / RECORD, {"epochs": {}})  # marks the folder as ours from the start
    log = run.source.notes / f"{run.model_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{run.label}: {'training goes on' if resume else 'training'}, log in {log}")
    command = [
        sys.executable,
        "-m",
        "nnunet_kd.comparison.running.train",
        run.source.dataset,
        s.configuration,
        run.fold,
        plans_name,
        trainer,
        s.device,
        s.threads,
        *(["--c"] if resume else []),
    ]
    with log.open("a", encoding="utf-8") as output:
        start_training(
            list(map(str, command)),
            _train_environment(s.threads),
            output,
            lock_fd,
            lambda: len(read_record(fold / RECORD)["epochs"]),
            run,
            bar,
        )
    if not (fold / FINAL).is_file():
        raise KDError(f"training of {run.label} failed: {_last_error(log)} (log in {log})")


def start_training(
    command: list[str],
    environment: dict[str, str],
    output: TextIO,
    lock_fd: int,
    epochs_done: Callable[[], int],
    run: Run,
    bar: bool | None,
) -> None:
    """Wait for the training with a progress bar; end it when this process is ended."""
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock_fd])
    total = run.plans[SECTION]["schedule"]["epochs"]
    try:
        with tqdm(total=total, desc=run.label, unit="epoch", leave=False, disable=None if bar is None else not bar) as shown:
            while process.poll() is None:
                shown.n = epochs_done()
                shown.refresh()
                try:
                    process.wait(2)
                except subprocess.TimeoutExpired:
                    continue
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _identity_of(run: Run, domain: Domain) -> tuple[str, ...]:
    return run.method, str(run.seed), domain.name, str(run.parameters), run.config_hash


def _training_folder(comparison: Comparison, run: Run) -> Path:
    """nnU-Net's folder of the run's training: one that exists with the run's settings, or the one to make.

    A name that holds a training or plans of other settings is left alone.
    """
    for name in run.plans_names:
        folder = run.source.results / f"{run.trainer}__{name}__{comparison.settings.configuration}"
        trained, planned = folder / "plans.json", run.source.preprocessed / f"{name}.json"
        plans = trained if trained.is_file() else planned
        if not plans.is_file() or same_training(run, json.loads(plans.read_text(encoding="utf-8"))):
            return folder
    return folder  # the last name holds the settings' hash: at most the teacher's folder has moved


def _refuse_foreign(run: Run, folder: Path) -> None:
    fold = folder / f"fold_{run.fold}"
    if not fold.is_dir() or (fold / RECORD).is_file():
        return
    newest = max((f.stat().st_mtime for f in fold.iterdir()), default=0)
    if time.time() - newest < FRESH:
        raise TrainedElsewhere(str(fold))
    raise KDError(
        f"{fold} holds an unfinished training that no comparison has begun: finish it with nnUNetv2_train ... --c, or "
        "remove the folder"
    )


def _say_why(comparison: Comparison, run: Run, say: Say) -> None:
    before = read_kept(model_folder(comparison, run))
    if before is not None and before["config_hash"] != run.config_hash:
        changed = difference(run.resolved, before.get("depends_on", {}))
        say(f"{run.label}: settings have changed since the kept model ({changed}), so it is trained anew; old rows stay")


def _plans(comparison: Comparison, run: Run, name: str) -> dict:
    plans = deepcopy(run.plans)
    plans["plans_name"] = name
    if run.teacher is not None:
        plans[SECTION]["teacher"]["folder"] = str(model_folder(comparison, run.teacher).resolve())
    return plans


def _train_environment(threads: int) -> dict[str, str]:
    """One process, one loader: only so does a seed fix every batch."""
    paths = [p for p in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if p]
    return os.environ | {
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONUNBUFFERED": "1",
        "nnUNet_extTrainer": os.pathsep.join(dict.fromkeys([*paths, str(trainers_path())])),
    }


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or ["the training wrote nothing"])[-1].removeprefix("nnunet-kd: error: ")
