"""The work loop of a comparison. Several workers, started together or not, share the runs by a lock for each."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from nnunet_kd.comparison import git
from nnunet_kd.comparison.locks import RunLock
from nnunet_kd.comparison.planning import Comparison, Run, plan_comparison
from nnunet_kd.comparison.rows import read_rows, take_over_parts
from nnunet_kd.comparison.running.execute import TrainedElsewhere, execute, missing, remeasure_run, status, unmeasured
from nnunet_kd.comparison.running.kept_models import kept_model, model_folder
from nnunet_kd.comparison.settings import CompareSettings
from nnunet_kd.utils.bfloat16 import bfloat16_warning
from nnunet_kd.utils.errors import KDError

PAUSE = 5.0  # seconds between looks at what other workers have finished


def compare(settings: CompareSettings, dry_run: bool = False, jobs: int = 1, worker: bool = False) -> None:
    """Do what is missing, or with ``dry_run`` list it.

    Args:
        jobs: workers to start. ``worker`` is one that was started so: no progress bar.

    Raises:
        KDError: a mistake in the file, found before anything trains; or at the end, runs that failed.
    """
    comparison = plan_comparison(settings)
    take_over_parts(settings.csv)
    read_rows(settings.csv)  # a foreign file must not be noticed after the first training
    if dry_run:
        _list(comparison)
        return
    if settings.cpu_precision == "bfloat16" and not worker and (warning := bfloat16_warning()):
        _say(f"WARNING: {warning}")  # trainings write it to their own logs, where nobody looks while they run
    with _sigterm_as_interrupt():
        if jobs > 1:
            _start_workers(settings.file, jobs)
            return
        failed = work(comparison, bar=False if worker else None)
    if failed:
        total = len(comparison.runs)
        raise KDError(f"{len(failed)} of {total} runs failed (see above): mend the cause and start again, the rest is kept")


def remeasure(settings: CompareSettings, dry_run: bool = False) -> None:
    """Predict again, with the kept models, the cases whose rows are from before the CSV's newer columns. Nothing trains.

    Raises:
        KDError: a mistake in the file.
    """
    comparison = plan_comparison(settings)
    take_over_parts(settings.csv)
    committing = not dry_run and settings.commit and _can_commit(comparison)
    todo = [(run, domains) for run in comparison.runs if (domains := unmeasured(comparison, run))]
    if not todo:
        _say(f"every row of {settings.csv} that this file is about has all columns")
    with _sigterm_as_interrupt():
        for run, domains in todo:
            cases = ", ".join(f"{d.name} ({len(d.cases)})" for d in domains)
            if kept_model(comparison, run) is None:
                _say(f"{run.label}: no kept model in {model_folder(comparison, run)}, its rows stay: {cases}")
                continue
            if dry_run:
                _say(f"{run.label}: to measure again: {cases}")
                continue
            lock = RunLock(run.source.notes / f"{run.model_name}.lock")
            try:
                if not lock.take():
                    _say(f"{run.label}: another worker has it, start again later: {cases}")
                    continue
                count, most = remeasure_run(comparison, run)
                _say(f"{run.label}: {count} rows measured again: {cases}; Dice differs by at most {most:.6f}")
                if committing:
                    _commit(comparison, run)
            finally:
                lock.close()


def work(comparison: Comparison, bar: bool | None = None) -> dict[tuple, str]:
    """Do every run that is missing and that nobody else does. Returns ``{run.key: why}`` of those that failed."""
    committing = comparison.settings.commit and _can_commit(comparison)
    failed: dict[tuple, str] = {}
    announced_waits: set[str] = set()
    while True:
        state = _do_next(comparison, failed, committing, bar, announced_waits)
        if state == "finished":
            return failed
        if state == "waiting":
            time.sleep(PAUSE)


def _do_next(comparison: Comparison, failed: dict, committing: bool, bar: bool | None, announced_waits: set[str]) -> str:
    """Do the first run that can be done: "did one", "waiting" (the rest is others' work or waits for it) or "finished"."""
    waiting = False
    for run in left_over(comparison):
        if run.key in failed:
            continue
        if run.teacher is not None and kept_model(comparison, run) is None and kept_model(comparison, run.teacher) is None:
            if run.teacher.key in failed:
                _fail(failed, run, f"{run.label}: its teacher failed")
            else:
                waiting = True
            continue
        lock = RunLock(run.source.notes / f"{run.model_name}.lock")
        try:
            if not lock.take():
                waiting = True
                continue
            if run.key not in {r.key for r in left_over(comparison)}:
                continue  # another worker has just finished it
            try:
                execute(comparison, run, lock.fd, _say, bar)
            except TrainedElsewhere as elsewhere:
                waiting = True
                if run.label not in announced_waits:
                    _say(f"{run.label}: {elsewhere} is being trained by another program, waiting for it")
                    announced_waits.add(run.label)
                continue
            except KDError as error:
                _fail(failed, run, str(error))
            except Exception as error:  # whatever nnU-Net raises in one run must not end the others
                log = run.source.notes / f"{run.model_name}.log"
                with log.open("a") as file:
                    traceback.print_exc(file=file)
                _fail(failed, run, f"{run.label}: {type(error).__name__}: {error} (traceback in {log})")
            else:
                _report(comparison, run)
                if committing:
                    _commit(comparison, run)
            return "did one"
        finally:
            lock.close()
    return "waiting" if waiting else "finished"


def left_over(comparison: Comparison) -> list[Run]:
    """Runs with missing rows, and teachers without a kept model whose students still have to train. In order."""
    rows = read_rows(comparison.settings.csv)
    todo = [run for run in comparison.runs if missing(comparison, run, rows)]
    untrained = [run for run in todo if kept_model(comparison, run) is None]
    needed = {run.teacher.key for run in untrained if run.teacher is not None and kept_model(comparison, run.teacher) is None}
    keys = {run.key for run in todo} | needed
    return [run for run in comparison.runs if run.key in keys]


def _list(comparison: Comparison) -> None:
    status_by_label = {run.label: status(comparison, run) for run in comparison.runs}
    for label, text in status_by_label.items():
        print(f"{label}: {text}")
    done = sum(text == "done" for text in status_by_label.values())
    print(f"{done} of {len(status_by_label)} runs done")


def _report(comparison: Comparison, run: Run) -> None:
    rows = [
        r
        for r in read_rows(comparison.settings.csv)
        if r["config_hash"] == run.config_hash
        and (r["method"], r["seed"], r["params"]) == (run.method, str(run.seed), str(run.parameters))
    ]
    shown = []
    for domain in comparison.domains_of(run):
        values = [
            float(r["dice"]) for r in rows if r["dataset"] == domain.name and r["dice"] != "nan" and r["truth_empty"] != "1"
        ]
        shown.append(f"{domain.name} {sum(values) / len(values):.4f}" if values else f"{domain.name} no Dice")
    cpu = (kept_model(comparison, run) or {}).get("cpu_seconds")
    time_text = "" if cpu is None else f", trained in {cpu:,.0f} CPU s"
    _say(f"{run.label}: {', '.join(shown) or 'no domain'}{time_text}; {_runs_left(comparison)}")


def _runs_left(comparison: Comparison) -> str:
    left = len(left_over(comparison))
    return f"{left} of {len(comparison.runs)} runs left"


def _fail(failed: dict, run: Run, why: str) -> None:
    failed[run.key] = why
    print(f"nnunet-kd: failed: {why}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _can_commit(comparison: Comparison) -> bool:
    if git.in_work_tree(comparison.settings.csv.parent):
        return True
    folder = comparison.settings.csv.absolute().parent
    _say(f'"commit" is true, but {folder} is in no git work tree (or git is missing): going on without commits')
    return False


def _commit(comparison: Comparison, run: Run) -> None:
    paths = [comparison.settings.csv, model_folder(comparison, run)]
    why_not = git.commit([p for p in paths if p.exists()], f"compare: {run.label}")
    if why_not:
        _say(f"{run.label}: not committed: {why_not}")


def _start_workers(file: Path, jobs: int) -> None:
    command = [sys.executable, "-m", "nnunet_kd.cli.main", "compare", str(file), "--worker"]
    workers = [subprocess.Popen(command) for _ in range(jobs)]
    try:
        codes = [w.wait() for w in workers]
    except BaseException:
        for w in workers:
            w.terminate()
        for w in workers:
            w.wait()
        raise
    if any(codes):
        raise KDError(f"{sum(map(bool, codes))} of {jobs} workers report failures: see the lines above")


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """`kill` ends trainings as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
