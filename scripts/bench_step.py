"""Seconds of one training step of each preset, beside the least that such a step can cost on the same rows.

    python scripts/bench_step.py                                      # every preset, 128x128, batch 8, CPU, one thread
    python scripts/bench_step.py --presets kd default --where         # and where the time goes
    python scripts/bench_step.py --presets default --settings default '{"act": {"share": 0.25}}'   # a variant beside it
    python scripts/bench_step.py --device cuda --patch 512 512 --batch 12 --teacher-features 32 64 128 256 512 512 \\
        --student-features 4 8 16 32 64 64 --rounds 100 --memory

Runs nnunet_kd's own trainers on random data and a teacher with random weights, in a temporary folder, in the middle of the
distil phase, where every term is on. Floor: nnU-Net's plain step of the same student on as many rows as the preset's student
reads, plus one forward of the teacher on as many rows as its teacher reads; neither draws views. All steps and floors take
turns in one process; a ratio is the median over the rounds of step / floor of the same round. The last line on stdout is one
JSON object with the figures of the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from unittest import mock

from nnunet_kd.errors import KDError
from nnunet_kd.presets import PRESETS

DATASET = "Dataset999_Bench"
PEAK_STEPS = 3


@dataclass(frozen=True)
class Row:
    """A line of the table: a preset, with settings merged into it."""

    preset: str
    settings: dict

    @property
    def name(self) -> str:
        return f"{self.preset} + `{json.dumps(self.settings)}`" if self.settings else self.preset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    o = _parser().parse_args(arguments)
    try:
        _check(o)
        rows = [Row(preset, {}) for preset in o.presets] + [_variant(*pair) for pair in o.settings]
        with bench_folders(o) as (plans, dataset_json):
            if o.peak_of is not None:
                print(json.dumps(_own_peak(_Trainers(o, plans, dataset_json), rows[o.peak_of])))
                return 0
            figures = _measure(_Trainers(o, plans, dataset_json), rows)
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
    p.add_argument("--settings", nargs=2, action="append", default=[], metavar=("PRESET", "JSON"),
                   help='one more row: a preset with keys of the plans section "nnunet_kd" merged into it; may be repeated')  # fmt: skip
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
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's CPU time, for a busy machine")
    p.add_argument("--where", action="store_true", help="a second table: views, teacher, every term, ACT")
    p.add_argument("--memory", action="store_true", help="peak memory, of each row in a process of its own")
    p.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    return p


def _check(o: argparse.Namespace) -> None:
    import torch

    for preset in [*o.presets, *(name for name, _ in o.settings)]:
        if preset not in PRESETS:
            raise KDError(f'unknown preset "{preset}": use one of {", ".join(PRESETS)}')
    if len(o.patch) not in (2, 3):
        raise KDError(f"--patch has {len(o.patch)} numbers: give 2 or 3")
    for name in ("batch", "threads", "rounds", "views"):
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


# --- a data set without images, and a teacher with random weights --------------------------------------------------------


@contextlib.contextmanager
def bench_folders(o: argparse.Namespace) -> Iterator[tuple[dict, dict]]:
    """nnU-Net's three folders in a temporary one, for as long as the context lasts. Yields student plans and dataset.json."""
    import torch

    from nnunet_kd.teacher import build_network, describe_teacher, read_model_folder

    with tempfile.TemporaryDirectory() as root, mock.patch.dict(os.environ):
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = f"{root}/{name}"
        for name in ("nnUNet_extTrainer", "nnUNet_compile", "nnUNet_wandb_enabled"):
            os.environ.pop(name, None)
        if o.compile is not None:
            os.environ["nnUNet_compile"] = str(o.compile)
        dataset_json = {
            "channel_names": {"0": "intensity"}, "labels": {"background": 0, "foreground": 1}, "numTraining": 1,
            "file_ending": ".png",
        }  # fmt: skip
        preprocessed = Path(root, "preprocessed", DATASET)
        (preprocessed / "bench").mkdir(parents=True)
        (preprocessed / "bench" / "case.b2nd").touch()  # its ending tells nnU-Net the format
        (preprocessed / "dataset_fingerprint.json").write_text("{}")

        plans = _plans(o, o.teacher_features)
        folder = Path(root, "results", DATASET, f"nnUNetTrainer__nnUNetPlans__{_configuration(o)}")
        (folder / "fold_0").mkdir(parents=True)
        for name, content in (("plans.json", plans), ("dataset.json", dataset_json)):
            (folder / name).write_text(json.dumps(content))
        model = read_model_folder(folder)
        checkpoint = {
            "network_weights": build_network(model).state_dict(), "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": _configuration(o)},
        }  # fmt: skip
        torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
        teacher = asdict(describe_teacher(model, str(folder)))
        section = {"teacher": teacher, "schedule": {"cpu_precision": o.cpu_precision}}
        yield {**_plans(o, o.student_features), "nnunet_kd": section}, dataset_json


def _configuration(o: argparse.Namespace) -> str:
    return "2d" if len(o.patch) == 2 else "3d_fullres"


def _plans(o: argparse.Namespace, features: list[int]) -> dict:
    """Plans of a PlainConvUNet; an axis is halved from stage to stage while 4 pixels remain."""
    axes, stages = len(o.patch), len(features)
    size, strides = list(o.patch), [[1] * axes]
    for _ in range(stages - 1):
        strides.append([2 if n >= 8 else 1 for n in size])
        if any(n % s for n, s in zip(size, strides[-1], strict=True)):
            raise KDError(
                f"--patch {o.patch}: {size} cannot be halved for {stages} stages; use multiples of {2 ** (stages - 1)}"
            )
        size = [n // s for n, s in zip(size, strides[-1], strict=True)]
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": features, "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * stages, "strides": strides, "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    configuration = {
        "data_identifier": "bench", "preprocessor_name": "DefaultPreprocessor", "batch_size": o.batch,
        "patch_size": o.patch, "spacing": [1.0] * axes, "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [o.field_of_view], "batch_dice": True, "architecture": network,
    }  # fmt: skip
    return {
        "dataset_name": DATASET, "plans_name": "nnUNetKDPlans", "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": list(range(3)), "transpose_backward": list(range(3)), "label_manager": "LabelManager",
        "configurations": {_configuration(o): configuration},
    }  # fmt: skip


class _Trainers:
    """Makes trainers that are ready for a step, and batches for them."""

    def __init__(self, o: argparse.Namespace, plans: dict, dataset_json: dict) -> None:
        import torch

        self.o, self.plans, self.dataset_json, self.device = o, plans, dataset_json, torch.device(o.device)
        torch.set_num_threads(o.threads)
        torch.manual_seed(0)
        if o.device == "cuda":
            torch.backends.cudnn.benchmark = True  # as nnU-Net's run_training does
            # every row has compiled networks of its own, each for its own number of rows
            torch._dynamo.config.recompile_limit = 1000
            torch._dynamo.config.automatic_dynamic_shapes = False

    def make(self, row: Row):
        """The trainer of a row, in the middle of the distil phase."""
        from nnunet_kd.trainer import nnUNetTrainerDistillation, nnUNetTrainerScheduled

        settings = dict(row.settings)
        if self.o.views is not None and ("views" in settings or "views" in PRESETS[row.preset]):
            settings["views"] = {**settings.get("views", {}), "count": self.o.views}
        plans = json.loads(json.dumps(self.plans))
        plans["nnunet_kd"] |= {"preset": row.preset, **settings}
        plans["continue_training"] = False
        kind = nnUNetTrainerScheduled if row.preset == "student" else nnUNetTrainerDistillation
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = kind(plans, _configuration(self.o), 0, self.dataset_json, self.device)
            trainer.get_dataloaders = lambda: (None, None)
            trainer.on_train_start()
            kd = trainer.kd
            late = kd.ramp + (kd.act.end if kd.terms.need_msan else 0)
            trainer.current_epoch = int(trainer.num_epochs * (min(late, 0.99) + 1) / 2)
            trainer.on_train_epoch_start()
        return trainer

    def batch(self, trainer, rows: int) -> dict:
        """Noise, and smooth blobs as its annotation, at every resolution of deep supervision."""
        import torch
        import torch.nn.functional as F

        patch = tuple(self.o.patch)
        data = torch.randn(rows, 1, *patch)
        if self.o.field_of_view:
            edge = patch[-1] // 8
            data[..., :edge], data[..., -edge:] = 0, 0
        coarse = torch.randn(rows, 1, *(max(2, n // 8) for n in patch))
        labels = (F.interpolate(coarse, patch, mode="bilinear" if len(patch) == 2 else "trilinear") > 0.5).float()
        scales = trainer._get_deep_supervision_scales()
        targets = [F.interpolate(labels, [round(n * s) for n, s in zip(patch, scale, strict=True)]) for scale in scales]
        return {"data": data.to(self.device), "target": [t.short().to(self.device) for t in targets]}


# --- measuring --------------------------------------------------------------------------------------------------------------


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


def take_turns(jobs: dict, rounds: int, warm_up: int, device: str = "cpu", clock: str = "wall") -> dict[object, list[float]]:
    """Seconds of every job in every round; the first ``warm_up`` rounds are not counted."""
    spent = {name: [] for name in jobs}
    for i in range(warm_up + rounds):
        for name, job in jobs.items():
            second = seconds(job, device, clock)
            if i >= warm_up:
                spent[name].append(second)
    return spent


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": scale * median, "low": scale * low, "high": scale * high}


def _measure(trainers: _Trainers, rows: list[Row]) -> list[dict]:
    o = trainers.o
    jobs, made, figures = {}, [], []
    for row in rows:
        trainer = trainers.make(row)
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
    spent = take_turns(jobs, o.rounds, 2 if o.device == "cpu" else 10, o.device, o.clock)
    nothing = [0.0] * o.rounds
    for i, (row, (trainer, batch, student, teacher, logits)) in enumerate(zip(rows, made, strict=True)):
        plain = spent["plain", student]
        floor = [p + f for p, f in zip(plain, spent.get((teacher, teacher), nothing), strict=True)]
        strict = [p + f for p, f in zip(plain, spent.get((teacher, logits), nothing), strict=True)]
        figure = {
            "row": row.name, "views": trainer.kd.views.count if trainer.kd.views else 0,
            "student_rows": student, "teacher_rows": teacher, "teacher_rows_decoded": logits,
            "step_ms": spread(spent[i], 1e3), "floor_ms": spread(floor, 1e3), "strict_floor_ms": spread(strict, 1e3),
            "ratio": spread([s / f for s, f in zip(spent[i], floor, strict=True)]),
            "strict_ratio": spread([s / f for s, f in zip(spent[i], strict, strict=True)]),
        }  # fmt: skip
        if o.where and row.preset != "student":
            figure["where_ms"] = _where(trainer, batch, o)
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

    from nnunet_kd.stages import decode, encode

    with torch.no_grad(), trainer._autocast:
        if decoded == len(data):
            trainer.teacher(data)
        else:
            decode(trainer.teacher.network, [f[:decoded] for f in encode(trainer.teacher.network, data)])


def _where(trainer, batch: dict, o: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a step's parts.

    A term's are its forward and its backward to the student's logits and features (and to the parameters of the student's
    decoder, where the term runs it), on its own: what two terms share counts in both. "rest" is what remains of the step:
    the student's forward and backward, nnU-Net's loss, the optimizer.
    """
    import torch

    distiller, config, device = trainer.distiller, trainer.distiller.config, o.device
    rounds: list[dict[str, float]] = []

    def timed(name: str, function: Callable) -> Callable:
        def inner(*arguments):
            results = []
            second = seconds(lambda: results.append(function(*arguments)), device, o.clock)
            rounds[-1][name] = rounds[-1].get(name, 0.0) + second
            return results[0]

        return inner

    steps = []
    align = timed("ACT", distiller.align)
    parts = {
        "prepare": timed("prepare", distiller.prepare),
        "views": distiller.views and timed("views", distiller.views),
        "align": lambda step: steps.append(step) or align(step),
    }
    for _ in range(o.rounds):
        rounds.append({})
        with mock.patch.multiple(distiller, **parts):
            total = seconds(lambda: trainer.train_step(batch), device, o.clock)
        step = steps.pop()
        leaves = [step.student_logits.detach().requires_grad_()]
        cut = replace(step, student_logits=leaves[0])
        if step.student_features is not None:
            cut.student_features = [f.detach().requires_grad_() for f in step.student_features]
            leaves += cut.student_features
        inputs = [*leaves, *trainer.network.parameters()]

        def alone(cut=cut, inputs=inputs) -> None:
            with trainer._autocast:
                weighted = [weight * value for weight, value in distiller.terms(cut).values()]
            torch.autograd.grad(sum(weighted), inputs, allow_unused=True)

        for name, terms in _single_terms(config.terms):
            with mock.patch.object(distiller, "config", replace(config, terms=terms)):
                timed(name, alone)()
        if config.terms.active:
            timed("terms", alone)()  # all of them: what they share is done once, as in the step
        rounds[-1]["teacher"] = rounds[-1].pop("prepare") - rounds[-1].get("views", 0.0)
        rounds[-1]["rest"] = total - sum(rounds[-1].get(k, 0.0) for k in ("views", "teacher", "terms", "ACT"))
    return {name: 1e3 * statistics.median(r[name] for r in rounds) for name in rounds[0]}


def _single_terms(terms) -> Iterator[tuple[str, object]]:
    """Every term without the others; the two ways of ``cross`` apart."""
    for name in terms.active:
        term = getattr(terms, name)
        if name == "cross":
            for way, other in (("ts", "st"), ("st", "ts")):
                if getattr(term, way):
                    yield f"cross_{way}", type(terms)(cross=replace(term, **{other: 0.0}))
        else:
            yield name, type(terms)(**{name: term})


def _own_peak(trainers: _Trainers, row: Row) -> float:
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
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10


def _peak_in_a_process_of_its_own(arguments: Sequence[str] | None, row: int) -> float:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--peak-of", str(row)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise KDError(f"measuring the memory of row {row + 1} failed: {last}")
    return float(child.stdout.splitlines()[-1])


# --- reporting --------------------------------------------------------------------------------------------------------------


def _table(figures: list[dict], memory: bool) -> str:
    head = ["preset", "K", "rows: student / teacher / decoded", "step ms (quartiles)", "floor ms", "ratio (quartiles)",
            "strict floor ms", "ratio"]  # fmt: skip
    lines = [head + ["peak MiB"] * memory]
    for f in figures:
        step, ratio = f["step_ms"], f["ratio"]
        lines.append([
            f["row"], str(f["views"]), f"{f['student_rows']} / {f['teacher_rows']} / {f['teacher_rows_decoded']}",
            f"{step['median']:.1f} ({step['low']:.1f}-{step['high']:.1f})", f"{f['floor_ms']['median']:.1f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{f['strict_floor_ms']['median']:.1f}", f"{f['strict_ratio']['median']:.2f}",
            *([f"{f['peak_mib']:.0f}"] if memory else []),
        ])  # fmt: skip
    return markdown(lines)


def _where_table(figures: list[dict]) -> str:
    found = [f for f in figures if "where_ms" in f]
    order = ["views", "teacher", "kd", "intra", "inter", "cross_ts", "cross_st", "terms", "ACT", "rest"]
    names = sorted({name for f in found for name in f["where_ms"]}, key=order.index)
    titles = {"terms": "all terms", "rest": "student and rest"}
    lines = [["preset, ms", *(titles.get(n, n) for n in names)]]
    lines += [[f["row"], *(f"{f['where_ms'][n]:.1f}" if n in f["where_ms"] else "" for n in names)] for f in found]
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is the head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe_machine(device: str, threads: int, clock: str = "wall") -> str:
    """Machine, threads, versions, commit and date in a sentence."""
    from importlib.metadata import version

    import torch

    from nnunet_kd.compare.git import code_version

    if device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        names = (
            [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
            if info.is_file()
            else []
        )
        machine = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        machine += f", {threads} thread{'s' * (threads > 1)}{load}, {clock} time"
    versions = f"torch {torch.__version__}, nnunetv2 {version('nnunetv2')}"
    return f"{machine}; {versions}; commit {code_version()}; {date.today()}."


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
