"""Milliseconds of every rival loss, forward and backward, beside its textbook form.

    python scripts/bench_losses.py                                  # 2-D and 3-D, CPU, one thread
    python scripts/bench_losses.py --losses kd ifvd cirkd --rounds 50 --clock cpu
    python scripts/bench_losses.py --device cuda --rounds 100

The textbook forms (bench/textbook.py) are what a reader of the papers writes first. Both forms get the same random tensors,
the student's with a gradient, and take turns in one process; the ratio is the median over the rounds of textbook / ours of
the same round: above 1 ours is the faster one. Before anything is timed, values and gradients of both are compared on two
samples in float64; a difference above 1e-6 of the largest number ends the run. The last line on stdout is one JSON list.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench import textbook
from bench.timing import describe_machine, spread, take_turns
from torch import Tensor, nn

from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.tables import markdown_table

LOGITS = ("8x4x256x256", "2x4x96x96x96")
FEATURES = ("8x64x64x64", "2x64x24x24x24")
TARGETS = {"kd": 1.5, "ifvd": 3.0, "cirkd": 2.0}  # the others: 1
TOLERANCE = 1e-6
STRIDE = 4  # of the features' stage


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: of the loss in the registry.
        textbook: its textbook form, or a class of it if it remembers something.
        settings: of our module.
        take: what the textbook form gets from our module.
        pair: it reads two stages at once.
        undrawn: settings with which nothing is drawn at random, for comparing the two forms, on small grids then.
        fill: samples that it has to see before it runs as it does later on; it is shown small grids until then.
    """

    name: str
    textbook: Callable
    settings: dict = field(default_factory=dict)
    take: Callable[[nn.Module], dict] = lambda module: {}
    pair: bool = False
    undrawn: dict = field(default_factory=dict)
    fill: int = 0

    @property
    def title(self) -> str:
        return ", ".join([self.name, *(key if value is True else f"{key} {value}" for key, value in self.settings.items())])


def _memory(m: nn.Module) -> dict:
    sizes = {"pixel": m.pixel_memory.shape[1], "region": m.region_memory.shape[1]}
    names = ("classes", "temperature", "contrasts", "pixels_per_class", "max_anchors")
    return {"sizes": sizes, **{name: getattr(m, name) for name in names}}


CASES = (
    Case("kd", textbook.kd),
    Case("kd", textbook.kd_regions, {"regions": True}),
    Case("skd-pixelwise", textbook.skd_pixelwise),
    Case("cwd-logits", textbook.cwd),
    Case("dist", textbook.dist),
    Case("dml", textbook.dml),
    Case("at", textbook.attention),
    Case("fitnets", textbook.fitnets, take=lambda m: {"regressor": m.regressor}),
    Case("fsp", textbook.fsp, pair=True),
    Case("skd-pairwise", textbook.skd_pairwise),
    Case("skd-2x2", textbook.skd_2x2),
    Case("ifvd", textbook.ifvd, take=lambda m: {"classes": m.classes}),
    Case("cwd-features", textbook.cwd),
    Case("imd", textbook.imd),
    Case("rad", textbook.rad, take=lambda m: {"classes": m.classes}),
    Case("cirkd", textbook.cirkd, take=lambda m: {"max_nodes": m.max_nodes}),
    # of four classes, 257 regions each are drawn
    Case(
        "cirkd-memory",
        textbook.CIRKDMemory,
        take=_memory,
        fill=257,
        undrawn={"pixels_per_class": 10**4, "pixel_contrast": 10**5, "max_anchors": 10**5},
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    o = _parser().parse_args(arguments)
    try:
        figures = _measure(o)
    except KDError as error:
        print(f"bench_losses: error: {error}", file=sys.stderr)
        return 2
    print(_table(figures))
    machine = describe_machine(o.device, o.threads, o.clock)
    print(f"\n{machine} {o.classes} classes, float32, {o.rounds} rounds.")
    print(json.dumps(figures))
    return 0


def build(case: Case, shape: Sequence[int], classes: int, **settings: Any) -> tuple[nn.Module, Callable]:
    """Our module and the textbook form of a row, for inputs of this shape."""
    from nnunet_kd.losses.registry import LOSSES

    channels = (shape[1], shape[1]) if case.pair else shape[1]
    geometry = {"student_channels": channels, "teacher_channels": channels, "dims": len(shape) - 2, "classes": classes}
    ours = LOSSES[case.name].build({**case.settings, **settings}, **geometry)
    theirs = partial(case.textbook, **case.take(ours))
    return ours, theirs() if isinstance(case.textbook, type) else theirs


def inputs(
    case: Case, shape: Sequence[int], classes: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Any, Any, Tensor | None]:
    """Student, with a gradient, and teacher of a row, and labels if it reads them. Student and teacher are correlated."""
    from nnunet_kd.losses.registry import LOSSES

    g = torch.Generator().manual_seed(0)
    # drawn in float64, so that all precisions see the same numbers
    teacher = [2 * torch.randn(tuple(shape), generator=g, dtype=torch.float64) for _ in range(1 + case.pair)]
    student = [t + torch.randn(t.shape, generator=g, dtype=torch.float64) for t in teacher]
    teacher = [t.to(device, dtype) for t in teacher]
    student = [s.to(device, dtype).requires_grad_() for s in student]
    labels = None
    if LOSSES[case.name].needs_target:
        labels = _blobs(shape[0], [STRIDE * n for n in shape[2:]], classes, g).to(device)
    return (student, teacher, labels) if case.pair else (student[0], teacher[0], labels)


def _blobs(batch: int, size: list[int], classes: int, generator: torch.Generator) -> Tensor:
    # smooth noise cut into as many equally frequent classes
    coarse = torch.rand(batch, 1, *(max(2, n // 16) for n in size), generator=generator)
    smooth = F.interpolate(coarse, size, mode="bilinear" if len(size) == 2 else "trilinear")[:, 0]
    return torch.bucketize(smooth, smooth.quantile(torch.linspace(0, 1, classes + 1)[1:-1]))


def difference(case: Case, shape: Sequence[int], classes: int, device: str = "cpu") -> float:
    """Largest difference of our value and gradients from the textbook's, in parts of the largest number. float64."""
    if case.undrawn:
        shape = (*shape[:2], *(min(n, 12) for n in shape[2:]))
    ours, theirs = build(case, shape, classes, **case.undrawn)
    ours.to(device, torch.float64)
    found = []
    for form in (ours, theirs):
        student, teacher, labels = inputs(case, shape, classes, torch.float64, device)
        value = form(student, teacher, labels)
        sources = [*(student if case.pair else [student]), *ours.parameters()]
        found.append([value.detach(), *torch.autograd.grad(value, sources)])
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in zip(*found, strict=True))


def _parser() -> argparse.ArgumentParser:
    names = list(dict.fromkeys(case.name for case in CASES))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--losses", nargs="+", default=names, metavar="NAME", help="default: all of them")
    p.add_argument("--logits", nargs="+", default=LOGITS, metavar="BxCxS", help=f"of logits ({' '.join(LOGITS)})")
    p.add_argument("--features", nargs="+", default=FEATURES, metavar="BxKxS", help=f"of features ({' '.join(FEATURES)})")
    p.add_argument("--classes", type=int, default=4, help="of the labels that some losses on features read (4)")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=1, help="of torch on the CPU (1)")
    p.add_argument("--rounds", type=int, default=20, help="steps measured per row (20)")
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's CPU time, for a busy machine")
    return p


def _shape(option: str, text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) not in (4, 5) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise KDError(f'{option} "{text}" must read BATCHxCHANNELSxHEIGHTxWIDTH or BATCHxCHANNELSxDEPTHxHEIGHTxWIDTH')
    return tuple(map(int, parts))


def _measure(o: argparse.Namespace) -> list[dict]:
    from nnunet_kd.losses.registry import LOSSES

    names = [case.name for case in CASES]
    for name in o.losses:
        if name not in names:
            raise KDError(f'--losses: unknown loss "{name}": use one of {", ".join(dict.fromkeys(names))}')
    for name, least in (("classes", 2), ("rounds", 1), ("threads", 1)):
        if getattr(o, name) < least:
            raise KDError(f"--{name} {getattr(o, name)} must be at least {least}")
    if o.device == "cuda" and not torch.cuda.is_available():
        raise KDError("--device cuda, but torch finds no GPU here: use --device cpu")
    shapes = {reads: [_shape(f"--{reads}", text) for text in getattr(o, reads)] for reads in ("logits", "features")}
    torch.set_num_threads(o.threads)
    shapes["pairs"] = shapes["features"]
    rows = [(case, shape) for case in CASES if case.name in o.losses for shape in shapes[LOSSES[case.name].reads]]
    return [_row(case, shape, o) for case, shape in rows]


def _row(case: Case, shape: tuple[int, ...], o: argparse.Namespace) -> dict:
    apart = difference(case, (2, *shape[1:]), o.classes, o.device)
    if not apart <= TOLERANCE:
        raise KDError(f"{case.title}, {'x'.join(map(str, shape))}: ours and the textbook form differ by {apart:.1e}; mend one")
    ours, theirs = build(case, shape, o.classes)
    ours.to(o.device)
    student, teacher, labels = inputs(case, shape, o.classes, torch.float32, o.device)
    leaves = [*(student if case.pair else [student]), *ours.parameters()]

    def step(form: Callable) -> None:
        torch.autograd.grad(form(student, teacher, labels), leaves)

    for _ in range(math.ceil(case.fill / shape[0])):
        small = [maps.detach()[(..., *[slice(8)] * (len(shape) - 2))] for maps in (student, teacher)]
        for form in (theirs, ours):
            form(*small, labels)
    jobs = {"textbook": partial(step, theirs), "ours": partial(step, ours)}
    spent = take_turns(jobs, o.rounds, 2 if o.device == "cpu" else 10, o.device, o.clock)
    return {
        "loss": case.title,
        "shape": list(shape),
        "difference": apart,
        "target": TARGETS.get(case.name, 1.0),
        "textbook_ms": spread(spent["textbook"], 1e3),
        "ours_ms": spread(spent["ours"], 1e3),
        "ratio": spread([t / m for t, m in zip(spent["textbook"], spent["ours"], strict=True)]),
    }


def _table(figures: list[dict]) -> str:
    lines = [["loss", "input", "textbook ms", "ours ms", "textbook / ours (quartiles)", "at least", "difference"]]
    for f in figures:
        ratio = f["ratio"]
        lines.append(
            [
                f["loss"],
                "x".join(map(str, f["shape"])),
                f"{f['textbook_ms']['median']:.1f}",
                f"{f['ours_ms']['median']:.1f}",
                f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
                f"{f['target']:g}",
                f"{f['difference']:.0e}",
            ]
        )
    return markdown_table(lines)


if __name__ == "__main__":
    sys.exit(main())
