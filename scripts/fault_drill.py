"""Kill a training with kill -9 again and again; each time --c must go on from an intact file to the same result.

    python scripts/fault_drill.py            50 kills, a third of them inside the writing of a checkpoint
    python scripts/fault_drill.py --quick    3 kills

A tiny student learns with MSANs, P-SAE, views and a memory queue, through nnUNetv2_train, without loader workers. First
undisturbed; then, for every kill, from the beginning, killed at a random moment, and taken up again with --c. "The same" is
every bit of checkpoint_final.pth and checkpoint_best.pth (weights, MSANs, every optimizer, random states, logs), times
left out; for kills in the final validation also its Dice. After every kill no process may live on, and no terminal be
held; once more with loader workers. Exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from drill.prepare import EPOCHS, command, environment, prepare
from drill.same import differences
from drill.training import Training, end_all, newest

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.utils.errors import KDError

RESULTS = ("checkpoint_final.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Moment:
    """When to kill: ``seconds`` after a mark of the log, or after the ``writing``-th checkpoint is begun."""

    seconds: float
    mark: str = ""
    writing: int = 0
    name: str = ""

    def __str__(self) -> str:
        if self.writing:
            return f"writing {self.name} (no. {self.writing}) + {1000 * self.seconds:.1f} ms"
        where = {"start": "start", "end": "validation"}.get(self.mark, f"epoch {self.mark}")
        return f"{where} + {self.seconds:.2f} s"


@dataclass
class Reference:
    """The undisturbed run: what it ended with, and how long its parts took."""

    checkpoints: dict[str, dict]
    dice: float
    spans: dict[str, float]  # seconds from a mark to the next
    writings: list[tuple[str, float]]


class Drill:
    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.variables = environment(work)
        self.fold = prepare(work, self.variables)
        self.reference = self._undisturbed()

    def _undisturbed(self) -> Reference:
        training = Training(command(), self.variables, self.work / "undisturbed.log")
        if training.run() != 0:
            raise SystemExit(f"fault_drill: error: the undisturbed training failed, see {training.log}")
        times = [*training.marks.items(), ("", time.monotonic())]
        spans = {mark: until - since for (mark, since), (_, until) in zip(times, times[1:], strict=False)}
        writings = training.writings()
        if list(spans) != ["start", *map(str, range(EPOCHS)), "end"] or len(writings) < EPOCHS:
            raise SystemExit(f"fault_drill: error: the log of a training reads otherwise than expected, see {training.log}")
        return Reference(self._results(), self._dice(), spans, writings)

    def _results(self) -> dict[str, dict]:
        return {name: load_checkpoint(self.fold / name) for name in RESULTS}

    def _dice(self) -> float:
        return json.loads((self.fold / "validation" / "summary.json").read_text(encoding="utf-8"))["foreground_mean"]["Dice"]

    def moment(self, inside: bool) -> Moment:
        """A random moment: of any part of the run, or inside the writing of a random checkpoint."""
        if inside:
            number = self.random.randrange(len(self.reference.writings))
            name, seconds = self.reference.writings[number]
            return Moment(self.random.uniform(0, seconds), writing=number + 1, name=name)
        mark = self.random.choice(list(self.reference.spans))
        return Moment(self.random.uniform(0, self.reference.spans[mark]), mark)

    def kill(self, number: int, inside: bool) -> tuple[Moment, str, str]:
        """One kill and its continuation: the moment, what was found then, and what was lost (nothing: an empty text)."""
        while True:
            moment = self.moment(inside)
            shutil.rmtree(self.fold, ignore_errors=True)
            exact = f"{moment.writing} {moment.seconds}" if inside else ""
            training = Training(command(), self.variables, self.work / f"kill_{number}.log", exact)
            if inside:
                training.process.wait()
                break
            if training.wait_for(moment.mark):
                time.sleep(moment.seconds)
                if training.kill():
                    break  # otherwise it had ended before: another moment
        alive = training.survivors()
        if alive:
            return moment, "-", alive
        half = list(self.fold.glob(".checkpoint_*.tmp"))
        if inside and not half:
            return moment, "-", "was not killed inside the writing"
        try:
            found = self._found(half)
            return moment, found, self._continued(number, validated=moment.mark == "end")
        except KDError as error:
            return moment, "-", str(error)

    def _found(self, half: list[Path]) -> str:
        """What a killed training left. Every checkpoint must be whole."""
        epochs = {f: load_checkpoint(f)["current_epoch"] for f in self.fold.glob("checkpoint_*.pth")}
        file = newest(self.fold)
        text = f"{file.stem.removeprefix('checkpoint_')}, {epochs[file]} epochs" if file else "no checkpoint yet"
        return text + (f", {half[0].stat().st_size} bytes of another" if half else "")

    def _continued(self, number: int, validated: bool) -> str:
        training = Training(command("--c"), self.variables, self.work / f"continued_{number}.log")
        code = training.run(until="" if validated else "end")
        alive = training.survivors()
        if code != 0 or alive:
            return alive or f"--c ended with exit code {code}, see {training.log}"
        lost = [f"{n}{path}" for n, c in self._results().items() for path in differences(self.reference.checkpoints[n], c)]
        if validated and self._dice() != self.reference.dice:
            lost.append("validation Dice")
        half = [f.name for f in self.fold.glob(".checkpoint_*.tmp")]
        return ", ".join([*(lost[:3] + ["..."] * (len(lost) > 3)), *half])

    def with_workers(self) -> str:
        """Kill a training that has loader workers: what lives on."""
        shutil.rmtree(self.fold, ignore_errors=True)
        training = Training(command(), {**self.variables, "nnUNet_n_proc_DA": "2"}, self.work / "workers.log")
        if not training.wait_for("1") or not training.kill():
            return f"did not get to its second epoch, see {training.log}"
        return training.survivors()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="3 kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("-o", "--output", type=Path, help="keep data and logs in this new folder (default: none kept)")
    options = parser.parse_args(arguments)
    kills = 3 if options.quick else options.kills
    if kills < 1 or (options.output and options.output.exists()):
        parser.error("--kills must be at least 1" if kills < 1 else f"{options.output} exists: name a new folder")
    work = (options.output or Path(tempfile.mkdtemp(prefix="fault_drill_"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it leaves nothing running, either
    try:
        losses = _drill(work, kills, options.seed)
    finally:
        end_all()
        if options.output is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{kills} kills and one with loader workers, {losses} losses, {(time.monotonic() - begin) / 60:.1f} minutes")
    return 1 if losses else 0


def _drill(work: Path, kills: int, seed: int) -> int:
    row = "{:<8} {:<44} {:<38} {:>8}  {}"
    begin = time.monotonic()
    drill = Drill(work, seed)
    print(f"data, teacher and the undisturbed training: {time.monotonic() - begin:.0f} s", flush=True)
    print(row.format("kill", "moment", "found then", "seconds", "after --c"), flush=True)
    losses = 0
    for number in range(1, kills + 1):
        begin = time.monotonic()
        moment, found, lost = drill.kill(number, inside=number % 3 == 1)
        losses += bool(lost)
        taken = f"{time.monotonic() - begin:.0f}"
        print(row.format(number, str(moment), found, taken, f"LOST: {lost}" if lost else "the same"), flush=True)
    begin = time.monotonic()
    alive = drill.with_workers()
    taken = f"{time.monotonic() - begin:.0f}"
    print(row.format("workers", "epoch 1", "-", taken, f"LOST: {alive}" if alive else "(nothing lives on)"), flush=True)
    return losses + bool(alive)


if __name__ == "__main__":
    sys.exit(main())
