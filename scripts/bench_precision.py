"""Seconds of a plain training step on a CPU: float32 or bfloat16, contiguous or channels_last, wide or narrow.

    python scripts/bench_precision.py

Random patches, one thread, the fastest of a few steps. `cpu_precision` and the memory format in scheduled.py were chosen by it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

WIDTHS = ([24, 48, 96, 192], [6, 12, 24, 48], [4, 6, 12, 24])


def build(features: list[int]) -> nn.Module:
    stages = len(features)
    return PlainConvUNet(
        1,
        stages,
        features,
        nn.Conv2d,
        3,
        [1] + [2] * (stages - 1),
        2,
        2,
        [2] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True, "eps": 1e-5},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def fastest(step: Callable[[], None], rounds: int) -> float:
    times = []
    for _ in range(rounds + 2):  # two to warm up
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(options.batch, 1, options.patch, options.patch)
    print("| features | memory format | float32 ms | bfloat16 ms |\n| --- | --- | --- | --- |")
    for features in WIDTHS:
        for layout in (torch.contiguous_format, torch.channels_last):
            milliseconds = []
            for half in (False, True):
                network, images = build(features).to(memory_format=layout), x.to(memory_format=layout)

                def step(network=network, images=images, half=half) -> None:
                    with torch.autocast("cpu", torch.bfloat16, enabled=half):
                        loss = sum(output.float().square().mean() for output in network(images))
                    loss.backward()

                milliseconds.append(1e3 * fastest(step, options.rounds))
            name = "/".join(map(str, features))
            print(
                f"| {name} | {str(layout).removeprefix('torch.')} | {milliseconds[0]:.0f} | {milliseconds[1]:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
