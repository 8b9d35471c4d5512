"""`nnunet-kd compare FILE --slurm`: one job per run on a Slurm cluster, by submitit.

A student's job waits for its teacher's. Every job works on a CSV of its own (``CSV.parts/``), because locks between machines
cannot be relied on; the next `nnunet-kd compare` of any kind takes finished parts over (rows.py).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

from nnunet_kd.comparison.checked_settings import read_settings
from nnunet_kd.comparison.planning import Comparison, Run, plan_comparison
from nnunet_kd.comparison.rows import append_rows, part_of, read_rows, take_over_parts
from nnunet_kd.comparison.running.execute import ERROR, status
from nnunet_kd.comparison.running.kept_models import kept_model
from nnunet_kd.comparison.running.loop import left_over, work
from nnunet_kd.comparison.settings import CompareSettings, SlurmSettings
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json


class Job:
    """What a job does: one run of the file. submitit pickles it."""

    def __init__(self, file: Path, run: Run) -> None:
        self.file, self.key, self.config_hash = file, run.key, run.config_hash

    def __call__(self) -> str:
        settings = read_settings(self.file)
        comparison = plan_comparison(settings)
        run = next((r for r in comparison.runs if r.key == self.key), None)
        if run is None or run.config_hash != self.config_hash:
            raise KDError(f"{self.file} has changed since the job was submitted: submit again")
        part = part_of(settings.csv, f"{run.source.name}_{run.model_name}".strip("_"))
        finished_rows = [
            r
            for r in read_rows(settings.csv)
            if (r["method"], r["seed"], r["config_hash"]) == (run.method, str(run.seed), run.config_hash)
        ]
        append_rows(part, finished_rows)  # what is done is not done again
        alone = dataclasses.replace(settings, csv=part, commit=False)
        comparison = dataclasses.replace(comparison, settings=alone, runs=[run])
        if run.teacher is not None and kept_model(comparison, run) is None and kept_model(comparison, run.teacher) is None:
            raise KDError(f"{run.label}: the model of its teacher is missing: submit again")
        failed = work(comparison, bar=False)
        if failed:
            raise KDError("; ".join(failed.values()))
        part.rename(part.with_name(f"{part.stem}.done.csv"))
        return f"{run.label}: done"

    def checkpoint(self) -> Any:
        """At the time limit Slurm queues the job again, and the training goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(settings: CompareSettings, dry_run: bool = False) -> None:
    """Submit a job for every run that is missing and not queued yet, or with ``dry_run`` print them.

    With ``cluster: local`` the jobs run here, one after the other.

    Raises:
        KDError: a mistake in the file, submitit or Slurm missing, a job that Slurm refuses; locally, jobs that failed.
    """
    comparison, slurm = plan_comparison(settings), settings.slurm or SlurmSettings()
    take_over_parts(settings.csv)
    todo = left_over(comparison)
    if dry_run:
        _print(comparison, slurm, todo)
        return
    make_executor = _executor_class()
    queued = _queued(todo) if slurm.cluster == "slurm" else {}
    failed, submitted = [], 0
    for run in todo:
        if run.key in queued:
            print(f"{run.label}: already queued as job {queued[run.key]}", flush=True)
            continue
        teacher = _awaited(comparison, run, todo)
        if teacher is not None and teacher.label in failed:
            failed.append(run.label)
            print(f"{run.label}: its teacher failed", flush=True)
            continue
        job = _submit(make_executor, slurm, settings, run, teacher and queued.get(teacher.key))
        queued[run.key], submitted = job.job_id, submitted + 1
        print(f"{run.label}: job {job.job_id}, log {job.paths.stderr}", flush=True)
        if slurm.cluster == "slurm":
            write_json(_note(run), {"job": job.job_id})
        elif job.exception() is not None:
            failed.append(run.label)
            print(f"{run.label}: failed: {_failure_line(job.exception())}", flush=True)
    if slurm.cluster == "local":
        take_over_parts(settings.csv)
    if failed:
        raise KDError(f"{len(failed)} of {len(todo)} jobs failed (see above): mend the cause and start again, the rest is kept")
    if slurm.cluster == "slurm":
        print(f"{submitted} jobs submitted; `nnunet-kd compare {settings.file} --dry-run` shows what is done")


def parameters(settings: CompareSettings, slurm: SlurmSettings, run: Run, after: str | None = None) -> dict[str, Any]:
    """The job's parameters for submitit's AutoExecutor. ``after``: the job that must have ended well before."""
    given = {
        "name": f"kd_{run.model_name}",
        "timeout_min": max(1, round(60 * slurm.hours)),
        "cpus_per_task": slurm.cpus or settings.threads,
        "mem_gb": slurm.memory_gb,
        "gpus_per_node": slurm.gpus,
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "slurm_qos": slurm.qos,
        "slurm_constraint": slurm.constraint,
        "slurm_setup": slurm.setup or None,
        "slurm_dependency": after and f"afterok:{after}",
        # a student whose teacher failed would wait for ever
        "slurm_additional_parameters": slurm.extra | ({"kill-on-invalid-dep": "yes"} if after else {}) or None,
    }
    return {k: v for k, v in given.items() if v is not None}


def _print(comparison: Comparison, slurm: SlurmSettings, todo: list[Run]) -> None:
    for run in todo:
        wanted = parameters(comparison.settings, slurm, run)
        name, wait = wanted.pop("name"), _awaited(comparison, run, todo)
        asked = ", ".join(f"{k.removeprefix('slurm_')} {v}" for k, v in wanted.items())
        print(f"{name}: {status(comparison, run)}; {asked}{f'; after kd_{wait.model_name}' if wait else ''}")
    print(f"{len(todo)} jobs, {len(comparison.runs) - len(todo)} of {len(comparison.runs)} runs done")


def _awaited(comparison: Comparison, run: Run, todo: list[Run]) -> Run | None:
    """The teacher that has to be trained before the run can be."""
    if run.teacher is None or kept_model(comparison, run) is not None or kept_model(comparison, run.teacher) is not None:
        return None
    return next(r for r in todo if r.key == run.teacher.key)


def _executor_class() -> type:
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise KDError("--slurm needs submitit: pip install 'nnunet-kd[slurm]'") from None
    return AutoExecutor


def _submit(make_executor: type, slurm: SlurmSettings, settings: CompareSettings, run: Run, after: str | None) -> Any:
    folder = (run.source.notes / "jobs").absolute()
    wanted = parameters(settings, slurm, run, after)
    try:
        executor = make_executor(folder=folder, cluster=slurm.cluster)
        if slurm.cluster == "local":
            wanted = {k: v for k, v in wanted.items() if k in ("name", "timeout_min")}
        executor.update_parameters(**wanted)
        return executor.submit(Job(settings.file.absolute(), run))
    except Exception as error:  # submitit's own kinds have no base class but Exception
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if 'detect "srun"' in str(error):
            raise KDError(
                "no Slurm here (srun is not found): submit from a login node, or set slurm.cluster to local"
            ) from None
        raise KDError(
            f"{run.label}: Slurm refuses the job ({lines[-1] if lines else error}): change section slurm of {settings.file}"
        ) from None


def _failure_line(error: Exception) -> str:
    """The line that counts of submitit's message, which holds the job's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or [type(error).__name__])[-1].removeprefix("nnunet_kd.utils.errors.KDError: ")


def _note(run: Run) -> Path:
    return run.source.notes / f"{run.model_name}.job.json"


def _queued(todo: list[Run]) -> dict[tuple, str]:
    """Jobs of an earlier submission that still wait or run, by the runs' keys."""
    noted = {}
    for run in todo:
        try:
            noted[run.key] = str(json.loads(_note(run).read_text(encoding="utf-8"))["job"])
        except (OSError, ValueError, KeyError):
            continue
    if not noted:
        return {}
    try:
        listed = subprocess.run(["squeue", "--noheader", "--me", "--format=%A"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise KDError(f"squeue does not answer ({error}), so jobs could be submitted twice: try again later") from None
    live = set(listed.stdout.split())
    return {key: job for key, job in noted.items() if job in live}
