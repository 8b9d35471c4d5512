"""What a network costs: parameters, floating point operations, CPU time per patch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_kd.utils.tables import aligned_table


@dataclass(frozen=True)
class Cost:
    """Cost of one forward of one patch. ``milliseconds`` is the fastest of several runs on ``threads`` CPU threads."""

    parameters: int
    flops: int
    milliseconds: float | None
    threads: int


def count_parameters(network: nn.Module) -> int:
    """Numbers in all parameters of a network."""
    return sum(p.numel() for p in network.parameters())


def input_channels(network: nn.Module) -> int:
    """Input channels of a network: those of its first convolution."""
    return next(m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)).in_channels


@torch.no_grad()
def count_flops(network: nn.Module, patch_size: Sequence[int]) -> int:
    """FLOPs of one forward of one patch, by torch's own counter: a multiply-add is two. Works on the meta device too."""
    x = torch.zeros(1, input_channels(network), *patch_size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        network.eval()(x)
    return counter.get_total_flops()


@torch.no_grad()
def measure_cost(network: nn.Module, patch_size: Sequence[int], repeats: int = 5) -> Cost:
    """Count parameters and FLOPs and time the forward on the CPU."""
    flops = count_flops(network.eval(), patch_size)
    x = torch.zeros(1, input_channels(network), *patch_size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        network(x)
        best = min(best, time.perf_counter() - start)
    return Cost(count_parameters(network), flops, 1e3 * best, torch.get_num_threads())


def cost_table(costs: dict[str, Cost]) -> str:
    """A text table of named costs; percentages and speed-ups are relative to the first row."""
    first = next(iter(costs.values()))
    rows = [("network", "parameters", "", "MFLOPs/patch", "", "CPU ms/patch", "")]
    for name, cost in costs.items():
        faster = f"{first.milliseconds / cost.milliseconds:.1f}x" if cost.milliseconds and first.milliseconds else ""
        rows.append(
            (
                name,
                f"{cost.parameters:,}",
                f"{100 * cost.parameters / first.parameters:.2f}%",
                f"{cost.flops / 1e6:,.0f}",
                f"{100 * cost.flops / first.flops:.2f}%",
                f"{cost.milliseconds:.1f}",
                faster,
            )
        )
    return f"{aligned_table(rows)}\n(fastest of several forwards of one patch, {first.threads} CPU threads)"
