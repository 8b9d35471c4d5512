"""Seconds of one training step of each preset, beside the least that such a step can cost on the same rows.

    python scripts/bench_step.py                                      # every preset, 128x128, batch 8, CPU, one thread
    python scripts/bench_step.py --presets kd gkd --where             # and where the time goes
    python scripts/bench_step.py --presets gkd --settings gkd '{"act": {"share": 0.25}}'   # a variant beside it
    python scripts/bench_step.py --device cuda --patch 512 512 --batch 12 --teacher-features 32 64 128 256 512 512 \\
        --student-features 4 8 16 32 64 64 --rounds 100 --memory

Runs nnunet_kd's own trainers on random data and a teacher with random weights, in a temporary folder, in the middle of the
distil phase, where every term is on. Floor: nnU-Net's plain step of the same student on as many rows as the preset's student
reads, plus one forward of the teacher on as many rows as its teacher reads; neither draws views. The strict floor runs the
teacher's decoder only on the rows whose logits the preset reads. All steps and floors take turns in one process; a ratio is
the median over the rounds of step / floor of the same round. The last line on stdout is one JSON list with the figures of the
tables.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

from bench.folders import Row, Trainers, bench_folders
from bench.parts import time_of_parts
from bench.timing import describe_machine, spread, take_turns

from nnunet_kd.config.presets import NAMES, PRESETS
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.tables import markdown_table

PEAK_STEPS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    o = _parser().parse_args(arguments)
    try:
        _check(o)
        rows = [Row(preset, {}) for preset in o.presets] + [_variant(*pair) for pair in o.settings]
        with bench_folders(o) as (plans, dataset_json):
            if o.peak_of is not None:
                print(json.dumps(_own_peak(Trainers(o, plans, dataset_json), rows[o.peak_of])))
                return 0
            figures = _measure(Trainers(o, plans, dataset_json), rows)
        if o.memory:
            for i, figure in enumerate(figures):
                figure["peak_mib"] = _peak_in_a_process_of_its_own(arguments, i)
    except KDError as error:
        print(f"bench_step: error: {error}", file=sys.stderr)
        return 2
    print(_table(figures, o.memory))
    if o.where:
        print(f"\n{_where_table(figures)}")
    print(f"\n{describe_machine(o.device, o.threads, o.clock)} {_describe_task(o)}")
    print(json.dumps(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--presets", nargs="+", default=list(PRESETS), metavar="NAME", help="default: all of them")
    p.add_argument(
        "--settings",
        nargs=2,
        action="append",
        default=[],
        metavar=("PRESET", "JSON"),
        help='one more row: a preset with keys of the plans section "nnunet_kd" merged in; repeatable',
    )
    p.add_argument("--views", type=int, metavar="K", help="views per patch where a preset has views (default: the preset's)")
    p.add_argument("--teacher-features", type=int, nargs="+", default=[24, 48, 96, 192], metavar="N", help="24 48 96 192")
    p.add_argument("--student-features", type=int, nargs="+", default=[4, 7, 14, 26], metavar="N", help="4 7 14 26")
    p.add_argument("--patch", type=int, nargs="+", default=[128, 128], metavar="N", help="2 or 3 numbers (128 128)")
    p.add_argument("--batch", type=int, default=8, help="patches (8)")
    p.add_argument("--field-of-view", action="store_true", help="pixels of 0 around the image, which the views have to keep")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: with nnU-Net's mixed precision")
    p.add_argument("--cpu-precision", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; cuda only, where it is the default")
    p.add_argument("--threads", type=int, default=1, help="of torch on the CPU (1)")
    p.add_argument("--rounds", type=int, default=20, help="steps measured per row (20)")
    p.add_argument(
        "--steps",
        type=int,
        default=1,
        help='steps in a row of which a round takes the mean (1); as many as the "every" of a term that leaves steps out',
    )
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's CPU time, for a busy machine")
    p.add_argument("--where", action="store_true", help="a second table: views, teacher, every term, ACT")
    p.add_argument("--memory", action="store_true", help="peak memory, of each row in a process of its own")
    p.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    return p


def _check(o: argparse.Namespace) -> None:
    import torch

    for preset in [*o.presets, *(name for name, _ in o.settings)]:
        if preset not in NAMES:
            raise KDError(f'unknown preset "{preset}": use one of {", ".join(NAMES)}')
    if len(o.patch) not in (2, 3):
        raise KDError(f"--patch has {len(o.patch)} numbers: give 2 or 3")
    for name in ("batch", "threads", "rounds", "steps", "views"):
        if getattr(o, name) is not None and getattr(o, name) < 1:
            raise KDError(f"--{name} {getattr(o, name)} must be at least 1")
    for name in ("teacher", "student"):
        if len(getattr(o, f"{name}_features")) < 3:
            raise KDError(f"--{name}-features needs at least 3 numbers, one per stage (nnU-Net's deep supervision)")
    if o.device == "cuda" and not torch.cuda.is_available():
        raise KDError("--device cuda, but torch finds no GPU here: use --device cpu")
    if o.compile and o.device == "cpu":
        raise KDError("--compile is for --device cuda: nnU-Net never compiles on a CPU")
    if o.device == "cuda" and o.clock == "cpu":
        raise KDError("--clock cpu does not see a GPU's time: use --clock wall")


def _variant(preset: str, text: str) -> Row:
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise KDError(f"--settings {preset}: not valid JSON ({error}): {text}") from None
    if not isinstance(settings, dict) or not settings:
        raise KDError(f'--settings {preset}: give an object like {{"act": {{"share": 0.25}}}}, not {text}')
    return Row(preset, settings)


def _check_every(row: Row, trainer, o: argparse.Namespace) -> None:
    cross = trainer.kd.terms.cross
    if cross is None or cross.every is None:
        return
    if cross.every > 1 and o.where:
        raise KDError(f"--where looks at single steps, and {row.name} leaves some out: measure it without --where")
    if o.steps % cross.every:
        raise KDError(f"--steps {o.steps} is not a multiple of {row.name}'s every: give --steps {cross.every}")


def _measure(trainers: Trainers, rows: list[Row]) -> list[dict]:
    o = trainers.o
    jobs, made, figures = {}, [], []
    for row in rows:
        trainer = trainers.make(row)
        _check_every(row, trainer, o)
        batch = trainers.batch(trainer, o.batch)
        student, features, logits = _rows_read(trainer, batch)
        teacher = max(features, logits)
        made.append((trainer, batch, student, teacher, logits))
        jobs[len(made) - 1] = partial(trainer.train_step, batch)
        if ("plain", student) not in jobs:
            plain = trainers.make(Row("student", {}))
            jobs["plain", student] = partial(plain.train_step, trainers.batch(plain, student))
        for decoded in {teacher, logits} - {0}:
            if (teacher, decoded) not in jobs:
                data = trainers.batch(trainer, teacher)["data"]
                jobs[teacher, decoded] = partial(_teacher_forward, trainer, data, decoded)
    spent = take_turns(jobs, o.rounds, 2 if o.device == "cpu" else 10, o.device, o.clock, o.steps)
    nothing = [0.0] * o.rounds
    for i, (row, (trainer, batch, student, teacher, logits)) in enumerate(zip(rows, made, strict=True)):
        plain = spent["plain", student]
        floor = [p + f for p, f in zip(plain, spent.get((teacher, teacher), nothing), strict=True)]
        strict = [p + f for p, f in zip(plain, spent.get((teacher, logits), nothing), strict=True)]
        figure = {
            "row": row.name,
            "views": trainer.kd.views.count if trainer.kd.views else 0,
            "student_rows": student,
            "teacher_rows": teacher,
            "teacher_rows_decoded": logits,
            "step_ms": spread(spent[i], 1e3),
            "floor_ms": spread(floor, 1e3),
            "strict_floor_ms": spread(strict, 1e3),
            "ratio": spread([s / f for s, f in zip(spent[i], floor, strict=True)]),
            "strict_ratio": spread([s / f for s, f in zip(spent[i], strict, strict=True)]),
        }
        if o.where and row.preset != "student":
            figure["where_ms"] = time_of_parts(trainer, batch, o)
        figures.append(figure)
    return figures


def _rows_read(trainer, batch: dict) -> tuple[int, int, int]:
    """Rows of a step: the student's, those of the teacher's features, and of its logits. One step is run and looked at."""
    distiller = getattr(trainer, "distiller", None)
    if distiller is None:
        return batch["data"].shape[0], 0, 0
    steps = []
    with mock.patch.object(distiller, "align", lambda step: steps.append(step) or {}):
        trainer.train_step(batch)
    (step,) = steps
    features = 0 if step.teacher_features is None else step.teacher_features[0].shape[0]
    logits = 0 if step.teacher_logits is None else step.teacher_logits.shape[0]
    return step.student_logits.shape[0], features, logits


def _teacher_forward(trainer, data, decoded: int) -> None:
    """The teacher on all rows of ``data``; its decoder on the first ``decoded`` of them."""
    import torch

    from nnunet_kd.networks.stages import decode, encode

    with torch.no_grad(), trainer._autocast:
        if decoded == len(data):
            trainer.teacher(data)
        else:
            decode(trainer.teacher.network, [f[:decoded] for f in encode(trainer.teacher.network, data)])


def _own_peak(trainers: Trainers, row: Row) -> float:
    """MiB that this process (or its tensors on the GPU) took at most, with a few steps of one row."""
    import torch

    trainer = trainers.make(row)
    batch = trainers.batch(trainer, trainers.o.batch)
    for _ in range(PEAK_STEPS):
        trainer.train_step(batch)
    if trainers.o.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.is_file():
        return math.nan
    # not getrusage's: that one remembers the size of the process this one was started from
    return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 2**10


def _peak_in_a_process_of_its_own(arguments: Sequence[str] | None, row: int) -> float:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--peak-of", str(row)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise KDError(f"measuring the memory of row {row + 1} failed: {last}")
    return float(child.stdout.splitlines()[-1])


def _table(figures: list[dict], memory: bool) -> str:
    head = [
        "preset",
        "K",
        "rows: student / teacher / decoded",
        "step ms (quartiles)",
        "floor ms",
        "ratio (quartiles)",
        "strict floor ms",
        "ratio",
    ]
    lines = [head + ["peak MiB"] * memory]
    for f in figures:
        step, ratio = f["step_ms"], f["ratio"]
        lines.append(
            [
                f["row"],
                str(f["views"]),
                f"{f['student_rows']} / {f['teacher_rows']} / {f['teacher_rows_decoded']}",
                f"{step['median']:.1f} ({step['low']:.1f}-{step['high']:.1f})",
                f"{f['floor_ms']['median']:.1f}",
                f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
                f"{f['strict_floor_ms']['median']:.1f}",
                f"{f['strict_ratio']['median']:.2f}",
                *([f"{f['peak_mib']:.0f}"] if memory else []),
            ]
        )
    return markdown_table(lines)


def _where_table(figures: list[dict]) -> str:
    found = [f for f in figures if "where_ms" in f]
    order = ["views", "teacher", "kd", "intra", "inter", "cross_ts", "cross_st", "terms", "ACT", "rest"]
    names = sorted({name for f in found for name in f["where_ms"]}, key=order.index)
    titles = {"terms": "all terms", "rest": "student and rest"}
    lines = [["preset, ms", *(titles.get(n, n) for n in names)]]
    lines += [[f["row"], *(f"{f['where_ms'][n]:.1f}" if n in f["where_ms"] else "" for n in names)] for f in found]
    return markdown_table(lines)


def _describe_task(o: argparse.Namespace) -> str:
    compiled = "without torch.compile" if o.compile is False else "torch.compile"
    precision = o.cpu_precision if o.device == "cpu" else f"mixed precision, {compiled}"
    teacher, student = ("/".join(map(str, f)) for f in (o.teacher_features, o.student_features))
    return (
        f"Patch {'x'.join(map(str, o.patch))}, batch {o.batch}, teacher {teacher}, student {student}, {precision}, "
        f"{o.rounds} rounds{', field of view' * o.field_of_view}."
    )


if __name__ == "__main__":
    sys.exit(main())
