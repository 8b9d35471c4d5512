"""torch.distributed, where it may not be running: one process counts as one rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    return dist.get_world_size() if _running() else 1


def own_seed(seed: int) -> int:
    """A run's seed as this rank's own, and another than the one that batches and networks are drawn with."""
    return seed + 1_000_003 * (rank() + 1)


def average(tensor: torch.Tensor) -> None:
    """Replace the tensor by its mean over all ranks, in place. Every rank must call this."""
    if _running():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def of_all_ranks(value: Any) -> list:
    """The value of every rank, on every rank; in one process its own alone."""
    if not _running():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
