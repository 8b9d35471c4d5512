"""A process timed from outside, and the Dice of what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.utils.errors import KDError

# A small process in between: what a process grows to counts from its parent's size on, and this one may have loaded torch
_LAUNCHER = """
import json, os, resource, subprocess, sys, time
os.sched_setaffinity(0, json.loads(sys.argv[2]))
start = time.perf_counter()
code = subprocess.run(sys.argv[3:]).returncode
wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3], open(sys.argv[1], "w"))
sys.exit(code)
"""


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock and of CPU (children included), and the peak memory of its largest process in MB."""

    wall: float
    cpu: float
    peak: float


def run_process(command: Sequence[str], threads: int) -> Spent:
    """Run a command with so many threads on as many cores.

    Raises:
        KDError: it fails; the message has the last line that it wrote.
    """
    numbers = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **{name: str(threads) for name in numbers}}
    environment.pop("nnUNet_extTrainer", None)  # exported folders need none
    cores = json.dumps(sorted(os.sched_getaffinity(0))[:threads])
    with tempfile.NamedTemporaryFile("r") as result, tempfile.TemporaryFile() as output:
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, result.name, cores]
        code = subprocess.run([*launcher, *command], stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise KDError(f"`{' '.join(command)}` failed with exit code {code}: {last[0]}")
        return Spent(*json.load(result))


def dice(labels: Path, predictions: Path, model: Path) -> float:
    """Mean foreground Dice of a folder of segmentations, by nnU-Net's own evaluation."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2

    summary = predictions / "summary.json"
    compute_metrics_on_folder2(
        str(labels), str(predictions), str(model / "dataset.json"), str(model / "plans.json"), str(summary), 1, chill=True
    )
    return float(json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"]["Dice"])
