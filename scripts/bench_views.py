"""Milliseconds per view and patch: every view preset, and every operation on its own.

    python scripts/bench_views.py                                       # 2-D and 3-D, CPU, one thread
    python scripts/bench_views.py --shapes 12x3x512x512 --device cuda   # batch x channels x patch

A preset draws anew which operations a patch goes through; an operation on its own is applied to every patch. Both include
what every view needs (standardising the patch and going back), which the row "nothing" shows. All rows take turns in one
process. The last line on stdout is one JSON object with the medians.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from unittest import mock

from bench.timing import describe_machine, spread, take_turns

from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.tables import markdown_table

SHAPES = ("8x1x128x128", "2x3x256x256", "2x1x64x128x128")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxCxS", help=f"of the images ({' '.join(SHAPES)})")
    p.add_argument("--field-of-view", action="store_true", help="pixels of 0 around the image, which the views have to keep")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=1, help="of torch on the CPU (1)")
    p.add_argument("--rounds", type=int, default=50, help="views measured per row (50)")
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's CPU time, for a busy machine")
    o = p.parse_args(arguments)
    try:
        medians = {text: _measure(_shape(text), o) for text in o.shapes}
    except KDError as error:
        print(f"bench_views: error: {error}", file=sys.stderr)
        return 2
    lines = [["ms per view and patch (quartiles)", *o.shapes]]
    for name in next(iter(medians.values())):
        found = [medians[text][name] for text in o.shapes]
        lines.append([name, *(f"{f['median']:.2f} ({f['low']:.2f}-{f['high']:.2f})" for f in found)])
    print(markdown_table(lines))
    print(f"\n{describe_machine(o.device, o.threads, o.clock)} {o.rounds} rounds{', field of view' * o.field_of_view}.")
    print(json.dumps({text: {name: f["median"] for name, f in rows.items()} for text, rows in medians.items()}))
    return 0


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) not in (4, 5) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise KDError(f'--shapes "{text}" must read BATCHxCHANNELSxHEIGHTxWIDTH or BATCHxCHANNELSxDEPTHxHEIGHTxWIDTH')
    return tuple(map(int, parts))


def _measure(shape: tuple[int, ...], o: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds per patch of every row at one shape."""
    import torch

    from nnunet_kd.augmentation.views import VIEW_PRESETS, Views

    if o.device == "cuda" and not torch.cuda.is_available():
        raise KDError("--device cuda, but torch finds no GPU here: use --device cpu")
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    images = torch.randn(shape)
    if o.field_of_view:
        edge = math.ceil(shape[-1] / 8)
        images[..., :edge], images[..., -edge:] = 0, 0
    images = images.to(o.device)
    generator = torch.Generator(o.device).manual_seed(0)
    keep_zero = [o.field_of_view] * shape[1]
    rows = {"nothing": (), **VIEW_PRESETS, **_operations(VIEW_PRESETS)}
    jobs = {}
    with mock.patch.dict(VIEW_PRESETS, rows):
        for name in rows:
            jobs[name] = partial(Views(name, keep_zero), images, generator)
        spent = take_turns(jobs, o.rounds, 3, o.device, o.clock)
    return {name: spread(seconds, 1e3 / shape[0]) for name, seconds in spent.items()}


def _operations(presets: dict) -> dict[str, tuple]:
    """Every operation that is no preset of its own, always applied; its ranges are those of "strong" where that has it."""
    found, there = {}, {steps[0].function for steps in presets.values() if len(steps) == 1}
    for name in ("strong", *presets):
        for step in presets[name]:
            if step.function not in there:
                found.setdefault(f"{step.function.__name__} alone", (replace(step, probability=1.0),))
    return found


if __name__ == "__main__":
    sys.exit(main())
