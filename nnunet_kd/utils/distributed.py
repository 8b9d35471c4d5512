"""torch.distributed, where it may not be running: one process counts as one rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """How many ranks there are."""
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


def gather_with_gradient(vectors: torch.Tensor) -> torch.Tensor:
    """The vectors of all ranks, concatenated along the sample axis, in rank order.

    Every rank then computes the loss of the whole batch. The gradients of all ranks' losses are summed for the local
    vectors, so that after DDP's averaging the parameters get the gradient of one process with the whole batch.
    Ranks may hold different numbers of samples (nnU-Net splits a batch unevenly). Without an initialised process group
    this is the identity.

    Args:
        vectors: `(K+1, B_rank, d)`.

    Returns:
        `(K+1, sum of B_rank, d)`.
    """
    if world_size() == 1:
        return vectors
    return _Gather.apply(vectors)


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Gather(torch.autograd.Function):
    # torch.distributed.nn's all_gather asks for equal shapes on all ranks
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        rank, world = dist.get_rank(), dist.get_world_size()
        count = torch.tensor([local.shape[1]], device=local.device)
        counts = [torch.zeros_like(count) for _ in range(world)]
        dist.all_gather(counts, count)
        counts = [int(c) for c in counts]
        padded = F.pad(local, (0, 0, 0, max(counts) - local.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.count = sum(counts[:rank]), counts[rank]
        return torch.cat([part[:, :c] for part, c in zip(parts, counts, strict=True)], 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[:, ctx.start : ctx.start + ctx.count]
