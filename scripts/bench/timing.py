"""Clocks, quartiles, and a line that says where something was measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path


def seconds(function: Callable[[], object], device: str = "cpu", clock: str = "wall") -> float:
    """Seconds of one call; waits for the GPU before and after."""
    import torch

    now = time.process_time if clock == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = now()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def take_turns(
    jobs: dict, rounds: int, warm_up: int, device: str = "cpu", clock: str = "wall", times: int = 1
) -> dict[object, list[float]]:
    """Seconds of every job in every round, the mean of ``times`` calls; the first ``warm_up`` rounds are not counted."""
    spent = {name: [] for name in jobs}
    for i in range(warm_up + rounds):
        for name, job in jobs.items():
            second = seconds(lambda job=job: [job() for _ in range(times)], device, clock) / times
            if i >= warm_up:
                spent[name].append(second)
    return spent


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": scale * median, "low": scale * low, "high": scale * high}


def describe_machine(device: str, threads: int, clock: str = "wall") -> str:
    """Machine, threads, versions, commit and date in a sentence."""
    from importlib.metadata import version

    import torch

    from nnunet_kd.comparison.git import code_version

    if device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        machine = f"{name}, {os.cpu_count()} cores"
        machine += f", {threads} thread{'s' * (threads > 1)}{load}, {clock} time"
    versions = f"torch {torch.__version__}, nnunetv2 {version('nnunetv2')}"
    return f"{machine}; {versions}; commit {code_version()}; {date.today()}."
