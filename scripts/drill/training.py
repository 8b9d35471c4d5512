"""nnUNetv2_train as a process that can be watched, killed and searched for what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from nnunet_kd.utils.environment import command_path

PATIENCE = 900.0  # seconds that a step of a run may take on a busy machine
_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_started: list[Training] = []

# Loaded by the training's Python through PYTHONPATH. It watches which files are opened and renamed, and changes nothing; in
# the process that is to die inside a checkpoint's writing, it sends the SIGKILL.
OBSERVER = """
import os, signal, sys, threading, time

if "FAULT_DRILL_EVENTS" in os.environ:
    events = os.open(os.environ["FAULT_DRILL_EVENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    which, delay = map(float, os.environ.get("FAULT_DRILL_KILL", "0 0").split())
    begun = 0

    def die(after):
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(event, args):
        global begun
        if event not in ("open", "os.rename"):
            return
        name = os.path.basename(str(args[0]))
        if not (name.startswith(".checkpoint_") and name.endswith(".pth.tmp")) or "probe" in name:
            return
        if event == "open" and "w" in args[1]:
            begun += 1
            os.write(events, f"begin {name} {time.monotonic()}\\n".encode())
            if begun == which:
                threading.Thread(target=die, args=(delay,), daemon=True).start()
        elif event == "os.rename":
            os.write(events, f"end {name} {time.monotonic()}\\n".encode())
            if begun == which > 0:
                die(0)  # all is written, and not yet in its place

    sys.addaudithook(watch)
"""


class Training:
    """One start of nnUNetv2_train in a process session of its own.

    ``marks`` are the times at which it said "Epoch k" ("0", "1", ...) or "Training done." ("end"), after its start ("start").
    """

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path, kill_inside: str = "") -> None:
        self.log, self.events = log, log.with_suffix(".events")
        self.events.unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, [str(_observer(log.parent)), variables.get("PYTHONPATH")]))
        watched = {"FAULT_DRILL_EVENTS": str(self.events), "PYTHONPATH": path}
        if kill_inside:
            watched["FAULT_DRILL_KILL"] = kill_inside
        command = [command_path("nnUNetv2_train"), *arguments, "-device", "cpu"]
        self.marks, self._news = {"start": time.monotonic()}, threading.Condition()
        self.process = subprocess.Popen(
            command,
            env={**variables, **watched},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        _started.append(self)

    def _read(self) -> None:
        with self.log.open("w") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                epoch = _EPOCH.search(line)
                mark = epoch.group(1) if epoch else "end" if "Training done." in line else None
                if mark is not None:
                    with self._news:
                        self.marks.setdefault(mark, time.monotonic())
                        self._news.notify_all()

    def wait_for(self, mark: str) -> bool:
        """Wait until it said so. False if it ended before."""
        until = time.monotonic() + PATIENCE
        with self._news:
            while mark not in self.marks and time.monotonic() < until and self._reader.is_alive():
                self._news.wait(0.2)
        return mark in self.marks

    def run(self, until: str = "") -> int:
        """Run to the end, or until this mark and be killed there. Returns the exit code, 0 if it got as far as the mark."""
        if until and self.wait_for(until):
            self.kill()
            return 0
        return self.process.wait(PATIENCE)

    def kill(self) -> bool:
        """kill -9, as the user does it: the process alone. False if it had ended."""
        alive = self.process.poll() is None
        if alive:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return alive

    def survivors(self, seconds: float = 30.0) -> str:
        """What still runs of its session, or holds its terminal, this long after its death; empty if nothing does."""
        until = time.monotonic() + seconds
        while True:
            left = [p for p in Path("/proc").glob("[0-9]*") if _session(p) == self.process.pid]
            if not left and not self._reader.is_alive():
                return ""
            if time.monotonic() > until:
                return f"{len(left)} processes live on" if left else "the terminal is still held"
            time.sleep(0.05)

    def writings(self) -> list[tuple[str, float]]:
        """Name and duration in seconds of every checkpoint it wrote, in order."""
        lines = [line.split() for line in self.events.read_text(encoding="utf-8").splitlines()]
        pairs = zip(lines[::2], lines[1::2], strict=True)
        return [(begin[1].removesuffix(".tmp")[1:], float(end[2]) - float(begin[2])) for begin, end in pairs]


def end_all() -> None:
    """Leave no training behind when the drill itself is stopped."""
    for training in _started:
        training.kill()


def _session(process: Path) -> int:
    """The session that a process of /proc belongs to; 0 for those that have ended."""
    try:
        state, _, _, session = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return 0
    return 0 if state in "ZX" else int(session)


def _observer(folder: Path) -> Path:
    module = folder / "observer" / "sitecustomize.py"
    if not module.is_file():
        module.parent.mkdir(exist_ok=True)
        module.write_text(OBSERVER)
    return module.parent


def newest(fold: Path) -> Path | None:
    """The checkpoint that nnUNetv2_train --c would continue from."""
    files = (fold / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    return next((file for file in files if os.path.isfile(file)), None)
