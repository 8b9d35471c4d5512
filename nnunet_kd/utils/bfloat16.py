"""Is bfloat16 fast on this CPU? Where it lacks the instructions, torch computes the same some forty times more slowly."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

_ROUNDS = 10
_SLOW = 1.5  # times float32's time: what is slower than this is no matter of a busy machine


def bfloat16_slowdown() -> float:
    """Time of a small convolution in bfloat16, in units of its time in float32; below 1, bfloat16 is faster.

    A measurement of some 100 ms, since no call tells it for every processor: x86 needs AVX-512 or AMX for it, ARM its own
    extension. Draws no random numbers.
    """
    x, weight = torch.ones(1, 8, 64, 64), torch.ones(8, 8, 3, 3)
    times, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine waiting for each other would drown the difference
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            args = x.to(dtype), weight.to(dtype)
            rounds = []
            for _ in range(_ROUNDS):
                start = time.perf_counter()
                F.conv2d(*args, padding=1)
                rounds.append(time.perf_counter() - start)
            times[dtype] = min(rounds)
    torch.set_num_threads(threads)
    return times[torch.bfloat16] / times[torch.float32]


def bfloat16_warning() -> str | None:
    """One line for who trains in bfloat16 on a CPU without it, with the way out; None where it is fast enough."""
    slowdown = bfloat16_slowdown()
    if slowdown < _SLOW:
        return None
    return (
        f"bfloat16 takes {slowdown:.0f} times as long as float32 on this CPU, which has no instructions for it: "
        'set "cpu_precision" to "float32"'
    )
