"""`nnunet-kd compare --slurm`: jobs by submitit's local executor, and what Slurm would be asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from compare_lab import CONTENT, lab, row, write

from nnunet_kd.cli.main import main
from nnunet_kd.comparison.checked_settings import read_settings
from nnunet_kd.comparison.rows import append_rows, part_of, read_rows, take_over_parts
from nnunet_kd.comparison.running import slurm
from nnunet_kd.utils.errors import KDError

__all__ = ["lab"]  # the fixture
DOMAIN = {"domains": {"v": "950:Tr:case_00"}}
SLURM = {
    "partition": "gpu",
    "hours": 1.5,
    "memory_gb": 8,
    "gpus": 1,
    "cpus": 4,
    "setup": ["module load x"],
    "extra": {"mail-type": "FAIL"},
}
SBATCH = """#!/bin/sh
echo "$@" >> {calls}; cat "$1" >> {calls}
n=$(($(cat {count} 2>/dev/null || echo 40) + 1)); echo $n > {count}; echo "Submitted batch job $n"
"""


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"cluster": "pbs"}, '"slurm.cluster" is "pbs"'),
        ({"hours": 0}, '"slurm.hours" is 0'),
        ({"partiton": "gpu"}, 'unknown key "slurm.partiton"; did you mean "partition"'),
        ({"setup": [1]}, '"slurm.setup" is [1]'),
        ({"extra": {"dependency": "x"}}, '"slurm.extra.dependency" is set by this program'),
    ],
)
def test_mistakes_in_the_section(tmp_path, section, says):
    with pytest.raises(KDError) as error:
        read_settings(write(tmp_path, slurm=section))
    assert says in str(error.value)


def test_the_dry_run_prints_the_jobs_without_submitit(lab, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    file = str(write(lab.folder, slurm=SLURM, **DOMAIN))
    assert main(["compare", file, "--slurm", "--dry-run"]) == 0
    teacher, student, total = capsys.readouterr().out.splitlines()
    assert teacher.startswith("kd_teacher_8-16-32_seed0: to train (2 iterations) and predict: v (1); timeout_min 90, ")
    assert "partition gpu" in teacher and "mem_gb 8" in teacher and "gpus_per_node 1" in teacher and "after" not in teacher
    assert student.endswith("; after kd_teacher_8-16-32_seed0") and total == "2 jobs, 0 of 2 runs done"
    assert not lab.results.exists()
    assert main(["compare", file, "--slurm"]) == 2
    assert "--slurm needs submitit: pip install 'nnunet-kd[slurm]'" in capsys.readouterr().err


def test_what_slurm_is_asked(lab, capsys, monkeypatch):
    """A stand-in for sbatch, srun and squeue that writes down what it is told."""
    programs, calls = lab.folder / "bin", lab.folder / "calls"
    programs.mkdir()
    for name, text in {
        "sbatch": SBATCH.format(calls=calls, count=lab.folder / "count"),
        "srun": "#!/bin/sh\n",
        "squeue": "#!/bin/sh\necho 41\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    file = str(write(lab.folder, slurm=SLURM, **DOMAIN))
    usual = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(lab.folder))
    assert main(["compare", file, "--slurm"]) == 2
    assert "no Slurm here (srun is not found)" in capsys.readouterr().err
    monkeypatch.setenv("PATH", f"{programs}:{usual}")
    assert main(["compare", file, "--slurm"]) == 0
    assert "teacher seed 0: job 41" in capsys.readouterr().out
    first, second = calls.read_text().split("#!/bin/bash")[1:]
    for line in (
        "--partition=gpu",
        "--time=90",
        "--mem=8GB",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--mail-type=FAIL",
        "--job-name=kd_teacher_8-16-32_seed0",
    ):
        assert f"#SBATCH {line}\n" in first, first
    assert "module load x" in first and "dependency" not in first
    assert "#SBATCH --dependency=afterok:41\n" in second and "#SBATCH --kill-on-invalid-dep=yes\n" in second
    # job 42 has ended in the meantime without a result: it alone is submitted again, after 41
    assert main(["compare", file, "--slurm"]) == 0
    assert "teacher seed 0: already queued as job 41" in capsys.readouterr().out
    assert "kd_kd+views" in calls.read_text().split("#!/bin/bash")[3] and calls.read_text().count("#!/bin/bash") == 3


def test_finished_parts_are_taken_over_once(tmp_path):
    file = tmp_path / "a.csv"
    append_rows(file, [row(case="a")])
    for name, cases in (("one", "ab"), ("two", "c")):
        append_rows(part_of(file, name), [row(case=c) for c in cases])
    part_of(file, "one").rename(part_of(file, "one.done"))
    take_over_parts(file)
    take_over_parts(file)
    assert [r["case"] for r in read_rows(file)] == ["a", "b"] and not part_of(file, "one.done").exists()
    assert part_of(file, "two").is_file()  # its job goes on


class JobsHere:
    """submitit's executor as far as this program uses it, in this process."""

    def __init__(self, folder, cluster) -> None:
        self.folder = folder

    def update_parameters(self, **given) -> None:
        assert set(given) == {"name", "timeout_min"}  # the rest is Slurm's

    def submit(self, job):
        try:
            job()
            error = None
        except KDError as raised:
            error = RuntimeError(f"Job failed:\nTraceback\nnnunet_kd.utils.errors.KDError: {raised}\n\nlogs:\n  - a.out")
        return SimpleNamespace(job_id="1", paths=SimpleNamespace(stderr="a.err"), exception=lambda: error)


def test_a_job_that_breaks_is_one_line_and_the_next_start_does_what_is_left(lab, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "_executor_class", lambda: JobsHere)
    methods = {**CONTENT["methods"], "student": {"preset": "student"}}
    file = str(write(lab.folder, slurm={"cluster": "local"}, methods=methods, **DOMAIN))

    def break_teacher(run):
        if run.method == "teacher":
            raise RuntimeError("no space left")

    lab.before_training = break_teacher
    assert main(["compare", file, "--slurm"]) == 2
    said = capsys.readouterr()
    assert "teacher seed 0: failed: training of teacher seed 0 failed: RuntimeError: no space left (log in " in said.out
    assert "kd+views seed 0: its teacher failed" in said.out and "2 of 3 jobs failed" in said.err
    assert [r["method"] for r in read_rows(Path("results/tiny.csv"))] == ["student"]
    lab.before_training = lambda run: None
    assert main(["compare", file, "--slurm"]) == 0
    assert [r["method"] for r in read_rows(Path("results/tiny.csv"))] == ["student", "kd+views", "teacher"]
    assert not list(part_of(Path("results/tiny.csv"), "x").parent.glob("*.done.csv"))
    changed = slurm.Job(Path(file), lab.plan(methods=methods, **DOMAIN).runs[0])
    write(lab.folder, methods=methods, teacher={**CONTENT["teacher"], "iterations": 3}, **DOMAIN)
    with pytest.raises(KDError, match="has changed since the job was submitted"):
        changed()


@pytest.mark.slow
def test_a_job_of_the_local_executor(lab, capfd):
    """In a process of its own, as on a cluster."""
    file = str(write(lab.folder, slurm={"cluster": "local"}, methods={"student": {"preset": "student"}}, **DOMAIN))
    assert main(["compare", file, "--slurm"]) == 0
    assert [(r["method"], r["case"]) for r in read_rows(Path("results/tiny.csv"))] == [("student", "case_00")]
    assert not list(Path("results/tiny.csv.parts").iterdir())
    assert main(["compare", file, "--slurm", "--dry-run"]) == 0
    assert "0 jobs, 1 of 1 runs done" in capfd.readouterr().out
