"""What light students save: seconds and memory of whole predictions, and of the network alone.

    python scripts/bench_inference.py --quick             # under four minutes, needs no data; exits 1 below the targets
    python scripts/bench_inference.py --quick --mobile    # and a student of depthwise convolutions beside them, as the paper's
    python scripts/bench_inference.py --volume --no-mirroring --rounds 1   # whole predictions of a 512x512x100 volume
    python scripts/bench_inference.py --volume --steps --threads 1         # where its time goes
    python scripts/bench_inference.py --teacher TRAINED_OR_EXPORTED --student EXPORTED --images IMAGES --labels LABELS

--quick: untrained networks of nnU-Net's usual shape, the teacher in torch (eager), the student of an eighth of its width in
ONNX Runtime and OpenVINO, from files as `nnunet-kd export --openvino` writes them. All take turns; a speed-up is a ratio of
medians. On a machine with other work the threads of a short job wait for each other; --clock cpu leaves that out.

Without it: whole processes, files in to files out, in turn: nnUNetv2_predict_from_modelfolder with teacher and student, and
`nnunet-kd predict` with the student on each backend. "one case" is (time of all cases - time of the first alone) / (cases - 1),
so without the start-up (--volume: the first case is so small that its time is the start-up). --labels adds the mean foreground
Dice of what each wrote.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench.processes import Spent, dice, run_process
from bench.timing import describe_machine, spread

from nnunet_kd.utils.environment import command_path
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.tables import markdown_table

WIDTH = 0.125
FEATURES_3D = (32, 64, 128, 256, 320)
CASES = {  # name -> features of the teacher, patch
    "2-D 32..512 x 6 at 512x512": ((32, 64, 128, 256, 512, 512), (512, 512)),
    "3-D 32..320 x 5 at 64x64x64": (FEATURES_3D, (64, 64, 64)),
}
TARGETS = {"ONNX Runtime": 20.0, "OpenVINO f32": 28.0, "OpenVINO bf16": 40.0}  # times faster than the teacher in torch
SHARE = 0.02  # of the teacher's parameters and file
SECONDS = 60  # for the rounds of one case of --quick


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="untrained networks alone; exits 1 below the targets")
    parser.add_argument("--mobile", action="store_true", help="--quick: also a MobileNetV2-like U-Net, without a target")
    text = "whole predictions by untrained networks of a volume of noise, 512x512x100, after a small one; needs no data"
    parser.add_argument("--volume", action="store_true", help=text)
    text = "--volume: one prediction of the volume by the student, step by step, in CPU seconds, in place of whole processes"
    parser.add_argument("--steps", action="store_true", help=text)
    text = "--quick: files without the rewritings of deploy/onnx_rewrites.py, to see what these save"
    parser.add_argument("--plain", action="store_true", help=text)
    text = "--quick: the time that is held against the targets (default: wall)"
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help=text)
    parser.add_argument("--teacher", type=Path, help="teacher's model folder")
    parser.add_argument("--student", type=Path, help="folder that `nnunet-kd export --openvino` (or --int8) wrote")
    parser.add_argument("--images", type=Path, help="folder of images CASE_0000, ...; at least two cases")
    parser.add_argument("--labels", type=Path, help="their annotations")
    parser.add_argument("--fold", default="0", help="default: 0")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--cases", type=int, help="take the first N cases only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; whole processes get as many cores (default: 2)")
    parser.add_argument(
        "--no-mirroring", action="store_true", help="neither nnU-Net nor the runner averages over mirrored copies"
    )
    o = parser.parse_args(arguments)
    try:
        if o.quick:
            if o.plain:
                _without_rewritings()
            return quick(o.threads, o.mobile, o.clock)
        if o.volume:
            return volume(o)
        if not (o.teacher and o.student and o.images):
            raise KDError("--teacher, --student and --images are needed: name them, or pass --quick or --volume")
        print(whole_processes(o))
    except KDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def volume(o: argparse.Namespace) -> int:
    """Make the volume and its networks, and time whole processes on them: "one case" is the volume, less the start-up."""
    from bench.volume import make_volume

    with tempfile.TemporaryDirectory() as folder:
        o.teacher, o.student, o.images = make_volume(Path(folder), FEATURES_3D, slim(FEATURES_3D))
        print(_step_table(o, Path(folder)) if o.steps else whole_processes(o))
    return 0


def _step_table(o: argparse.Namespace, folder: Path) -> str:
    import torch
    from bench.steps import steps

    torch.set_num_threads(o.threads)
    image = sorted(o.images.iterdir())[-1]
    runs = {"ONNX Runtime f32": ("onnxruntime", "f32")} | {f"OpenVINO {p}": ("openvino", p) for p in ("f32", *_bf16())}
    found = {name: steps(o.student, [image], folder / "out.nii.gz", *how, o.threads) for name, how in runs.items()}
    stock = {step: seconds for step, (_, seconds) in next(iter(found.values())).items()}
    lines = [["CPU s", *found, "nnU-Net"]]
    for step, of_nnunet in stock.items():
        ours = [f"{each[step][0]:.2f}" for each in found.values()]
        lines.append([step, *ours, "" if of_nnunet is None else f"{of_nnunet:.2f}"])
    return f"{markdown_table(lines)}\n\none volume, without mirroring; {describe_machine('cpu', o.threads, 'cpu')}"


def slim(features: Sequence[int]) -> list[int]:
    """The student's features: an eighth of the teacher's."""
    return [max(4, round(f * WIDTH)) for f in features]


def quick(threads: int, mobile: bool = False, clock: str = "wall", seconds: float = SECONDS) -> int:
    """Print one table per case; 1 if a target is missed."""
    import torch

    missed = []
    torch.set_num_threads(threads)
    print(describe_machine("cpu", threads, clock), "\n")
    for name, (features, patch) in CASES.items():
        jobs, rows, notes = _quick_jobs(features, patch, threads, mobile)
        spent = _turns(jobs, seconds)
        lines = [["network", "parameters", "file MB", "ms", "quartiles", "times faster", "CPU ms", "times faster"]]
        for job, clocks in spent.items():
            ms = {c: spread(clocks[c], 1e3) for c in ("wall", "cpu")}
            faster = {c: statistics.median(spent["teacher, torch"][c]) * 1e3 / max(ms[c]["median"], 1e-6) for c in ms}
            parameters, size = rows[job]
            target = TARGETS.get(job.removeprefix("student, "))
            shown = {c: f"{faster[c]:.1f}" + (f" (target {target:g})" if target and c == clock else "") for c in ms}
            quartiles = f"{ms['wall']['low']:.1f} to {ms['wall']['high']:.1f}"
            lines.append(
                [
                    job,
                    f"{parameters:,}",
                    f"{size / 1e6:.2f}",
                    f"{ms['wall']['median']:.1f}",
                    quartiles,
                    shown["wall"],
                    f"{ms['cpu']['median']:.1f}",
                    shown["cpu"],
                ]
            )
            if target and faster[clock] < target:
                missed.append(f"{name}: {job} is {faster[clock]:.1f} times as fast as the teacher, not {target:g}")
            if job.startswith("student, "):
                for what, own, whole in zip(("parameters", "file"), rows[job], rows["teacher, torch"], strict=True):
                    if own > SHARE * whole:
                        missed.append(f"{name}: {job}: {what} {100 * own / whole:.2f}% of the teacher's, not {100 * SHARE:g}%")
        print(f"{name}, {len(spent['teacher, torch']['wall'])} rounds\n\n{markdown_table(lines)}\n")
        print("\n".join(notes) + "\n" * bool(notes))
    print("\n".join(f"MISSED {line}" for line in missed) if missed else "all targets met")
    return int(bool(missed))


def _quick_jobs(features: Sequence[int], patch: Sequence[int], threads: int, mobile: bool) -> tuple[dict, dict, list[str]]:
    """(name -> forward, name -> (parameters, bytes of its file), remarks)."""
    import openvino
    import torch
    from bench.networks import mobile_unet, plain_unet

    from nnunet_kd.deploy.onnx_export import write_onnx
    from nnunet_kd.deploy.openvino_export import write_openvino
    from nnunet_kd.networks.cost import count_parameters
    from nnunet_kd.planning.latency import open_onnxruntime, open_openvino, torch_forward

    networks = {"teacher": plain_unet(len(patch), features), "student": plain_unet(len(patch), slim(features))}
    if mobile:
        networks["MobileNetV2-like"] = mobile_unet(len(patch), slim(features))
    x = np.random.default_rng(0).standard_normal((1, 1, *patch)).astype(np.float32)
    core = openvino.Core()
    precisions = ["f32", "bf16"] if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ["f32"]
    notes = [] if len(precisions) > 1 else ["This CPU has no bf16: that target is not checked."]
    jobs, rows = {}, {}
    for name, network in networks.items():
        checkpoint = io.BytesIO()
        torch.save(network.state_dict(), checkpoint)
        jobs[f"{name}, torch"] = torch_forward(network, x)
        rows[f"{name}, torch"] = (count_parameters(network), checkpoint.tell())
        if name == "teacher":
            continue
        with tempfile.TemporaryDirectory() as folder:
            strides = [2 ** (len(features) - 1)] * len(patch)
            onnx = write_onnx(network, Path(folder) / "network.onnx", 1, strides)
            intermediate = write_openvino(onnx, Path(folder) / "network.xml", 1, strides)
            jobs[f"{name}, ONNX Runtime"] = open_onnxruntime(onnx.read_bytes(), x, threads)
            rows[f"{name}, ONNX Runtime"] = (count_parameters(network), onnx.stat().st_size)
            size = sum(intermediate.with_suffix(s).stat().st_size for s in (".xml", ".bin"))
            for precision in precisions:
                model = core.read_model(intermediate.read_bytes(), intermediate.with_suffix(".bin").read_bytes())
                jobs[f"{name}, OpenVINO {precision}"] = open_openvino(model, x, threads, precision)
                rows[f"{name}, OpenVINO {precision}"] = (count_parameters(network), size)
    return jobs, rows, notes


def _without_rewritings() -> None:
    from nnunet_kd.deploy import onnx_export, openvino_export

    for module in (onnx_export, openvino_export):
        module.fold_rows = lambda model, stride=None: 0
    openvino_export.split_narrow_norms = lambda model: 0


def _turns(jobs: dict, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of every job in every round, after one that is not counted; at least three rounds."""
    import torch

    spent = {name: {"wall": [], "cpu": []} for name in jobs}
    with torch.inference_mode():
        for job in jobs.values():
            job()
        end = time.perf_counter() + seconds
        while len(spent["teacher, torch"]["wall"]) < 3 or time.perf_counter() < end:
            for name, job in jobs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                job()
                spent[name]["wall"].append(time.perf_counter() - wall)
                spent[name]["cpu"].append(time.process_time() - cpu)
    return spent


def whole_processes(o: argparse.Namespace) -> str:
    """Run every command on one case and on all, round by round; returns the table."""
    from tqdm import tqdm

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        count = _link_cases(o.images, root, o.cases)
        commands = _commands(o)
        spent: dict[str, dict[str, list[Spent]]] = {name: {"first": [], "all": []} for name in commands}
        with tqdm(total=o.rounds * 2 * len(commands)) as bar:
            for _ in range(o.rounds):
                for name, command in commands.items():
                    for part in ("first", "all"):
                        bar.set_description(name)
                        out = root / f"out_{list(commands).index(name)}_{part}"
                        shutil.rmtree(out, ignore_errors=True)
                        spent[name][part].append(run_process([*command, "-i", str(root / part), "-o", str(out)], o.threads))
                        bar.update()
        scores = {}
        if o.labels:
            scores = {n: dice(o.labels, root / f"out_{i}_all", o.student) for i, n in enumerate(commands)}
        return (
            _table(spent, count, scores, not o.volume)
            + f"\n\n{count} cases, {o.rounds} rounds; {describe_machine('cpu', o.threads)}"
        )


def _commands(o: argparse.Namespace) -> dict[str, list[str]]:
    import json

    mirror = ["--disable_tta"] if o.no_mirroring else []
    program = command_path("nnUNetv2_predict_from_modelfolder")
    stock = [program, "-f", o.fold, "-device", "cpu", "-npp", "1", "-nps", "1", *mirror, "-m"]
    runner = [sys.executable, "-m", "nnunet_kd.cli.main", "predict", "-m", str(o.student), "--threads", str(o.threads)]
    runner += ["--no-mirroring"] if o.no_mirroring else []
    try:
        have = json.loads((o.student / "model.json").read_text(encoding="utf-8"))["networks"]
    except FileNotFoundError:
        raise KDError(f"{o.student / 'model.json'} is missing: export the student with `nnunet-kd export --openvino`") from None
    commands = {
        "teacher, nnU-Net": [*stock, str(o.teacher)],
        "student, nnU-Net": [*stock, str(o.student)],
        "student, ONNX Runtime": [*runner, "--backend", "onnxruntime"],
    }
    if "openvino" in have:
        for precision in ("f32", *_bf16(), *(["int8"] if "openvino_int8" in have else [])):
            commands[f"student, OpenVINO {precision}"] = [*runner, "--backend", "openvino", "--precision", precision]
    return commands


def _bf16() -> list[str]:
    import openvino

    return ["bf16"] if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else []


def _link_cases(images: Path, root: Path, limit: int | None) -> int:
    files = sorted(f for f in images.iterdir() if f.is_file())
    names = sorted({f.name.rsplit("_", 1)[0] for f in files})[:limit]
    if len(names) < 2:
        raise KDError(f"{images} holds {len(names)} cases CASE_0000...: two are needed to tell start-up from work")
    for part, chosen in (("first", names[:1]), ("all", names)):
        (root / part).mkdir()
        for file in files:
            if file.name.rsplit("_", 1)[0] in chosen:
                (root / part / file.name).symlink_to(file.resolve())
    return len(names)


def _table(spent: dict, count: int, scores: dict[str, float], alike: bool) -> str:
    # alike: the cases are of one size; else the first is next to nothing
    lines = [
        [
            "",
            "all cases s",
            "range",
            "times faster",
            "CPU s",
            "one case s",
            "times faster",
            "start-up s",
            "peak MB",
            *["Dice"] * bool(scores),
        ]
    ]
    base: dict[str, float] = {}
    for name, parts in spent.items():
        walls = [s.wall for s in parts["all"]]
        whole = statistics.median(walls)
        each = [(a.wall - b.wall) / (count - 1) for a, b in zip(parts["all"], parts["first"], strict=True)]
        case = statistics.median(each)
        start = statistics.median(s.wall for s in parts["first"]) - (case if alike else 0)
        per_case = [f"{case:.2f}", f"{base.get('case', case) / case:.1f}"] if case > 0 else ["-", "-"]  # lost in noise
        base = base or {"whole": whole, "case": case}
        lines.append(
            [
                name,
                f"{whole:.1f}",
                f"{min(walls):.1f} to {max(walls):.1f}",
                f"{base['whole'] / whole:.1f}",
                f"{statistics.median(s.cpu for s in parts['all']):.1f}",
                *per_case,
                f"{start:.1f}",
                f"{max(s.peak for s in parts['all']):.0f}",
                *([f"{scores[name]:.4f}"] if scores else []),
            ]
        )
    return markdown_table(lines)


if __name__ == "__main__":
    sys.exit(main())
