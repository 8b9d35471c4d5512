"""How the demo's steps run: one after the other, each with a log, and a line that says how long is left."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_kd.cli import data, deploy, plan
from nnunet_kd.utils.environment import command_path
from nnunet_kd.utils.errors import KDError


@dataclass
class Step:
    """One step: a function, or an nnU-Net or nnunet-kd command. ``share`` is its part of the usual running time."""

    name: str
    share: float
    command: list[str] | None = None
    call: Callable[[], None] | None = None


@dataclass
class Display:
    """Says which step of how many is running and how long is left, in one line that renews itself on a terminal."""

    steps: list[Step]
    start: float = field(default_factory=time.time)
    done: float = 0.0

    def line(self, number: int, step: Step, since: float, note: str = "") -> str:
        elapsed = time.time() - self.start
        within = min(0.95 * step.share, time.time() - since)
        part = (self.done + within) / sum(s.share for s in self.steps)
        # the usual times of this demo until enough of it has run to go by its own speed
        usual = sum(s.share for s in self.steps)
        left = (1 - part) * (usual if part < 0.1 else elapsed / part)
        return f"[{number}/{len(self.steps)}] {step.name}{note} - {clock(elapsed)} gone, about {clock(left)} left"

    def show(self, text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\033[K{text}", end="", flush=True)
        elif text:
            print(text, flush=True)


def run_here(step: Step, log: Path) -> None:
    """One of our own commands, in this process: starting another Python and importing nnU-Net again takes seconds."""
    parser = argparse.ArgumentParser(prog="nnunet-kd")
    commands = parser.add_subparsers(required=True)
    for add in (data.add_synth, plan.add_plan, deploy.add_export):
        add(commands)
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        options = parser.parse_args(step.command[1:])
        options.run(options)


def run_command(step: Step, number: int, display: Display, log: Path, environment: dict[str, str]) -> None:
    """A command of nnU-Net's, in a process of its own.

    Raises:
        KDError: it failed; the message has the last line of its log.
    """
    command = [command_path(step.command[0]), *step.command[1:]]
    environment = {**os.environ, **environment}
    if "plan_and_preprocess" in step.command[0]:
        environment["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planning cannot work with 0
    begin = time.time()
    display.show(display.line(number, step, begin))
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                if sys.stdout.isatty():
                    display.show(display.line(number, step, begin, _epoch(log)))
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        tail = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise KDError(f'step "{step.name}" failed ({tail[-1] if tail else "no output"}): see {log}')


def _epoch(log: Path) -> str:
    epochs = [
        line.split()[-1]
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if " Epoch " in line and "time" not in line
    ]
    return f", epoch {int(epochs[-1]) + 1}" if epochs and epochs[-1].isdigit() else ""


def clock(seconds: float) -> str:
    """Minutes and seconds, "2:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
