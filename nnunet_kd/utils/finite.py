"""Steps with NaN or Inf in them: named, skipped and counted; a run that keeps failing is stopped with the reason.

A step is checked wherever its numbers are about to change something: the teacher's outputs before anything remembers them,
losses before the backward pass, gradients before an optimizer steps. What finds a number that is not finite raises
:class:`SkipStep`, on all ranks or on none, and up to there nothing has changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from nnunet_kd.utils.distributed import of_all_ranks, world_size
from nnunet_kd.utils.errors import KDError

LIMIT = 20  # more than a gradient scaler takes to find its scale from its start at 2^16


class SkipStep(Exception):
    """NaN or Inf in a step. The message says in what; it is empty on ranks that only follow another one."""


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no number in ``tensors`` (any shapes, one device) is NaN or Inf. One pass over them, one synchronisation."""
    # a sum is NaN or Inf if one number is; in float32, since sums of half-precision numbers overflow
    sums = [t.detach().sum(dtype=torch.float32) for t in tensors]
    return not sums or bool(torch.stack(sums).isfinite().all())


def require_finite(values: dict[str, torch.Tensor | float], device: torch.device) -> None:
    """Raise SkipStep, on all ranks, if one of the named scalars is NaN or Inf on any of them."""
    numbers = {name: float(v.detach() if isinstance(v, torch.Tensor) else v) for name, v in values.items()}
    not_finite = [f"{name} is {number}" for name, number in numbers.items() if not math.isfinite(number)]
    skip_if(", ".join(not_finite), device)


def skip_if(reason: str, device: torch.device) -> None:
    """Raise SkipStep on all ranks if one of them has a reason (a text that is not empty). Every rank must call this."""
    skip = bool(reason)
    if world_size() > 1:
        flag = torch.tensor(float(skip), device=device)
        dist.all_reduce(flag)
        skip = flag.item() > 0
    if skip:
        raise SkipStep(reason)


class StepGuard:
    """Counts the steps of a training that were skipped.

    Args:
        say: takes a line for the log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.in_a_row = self.in_epoch = 0
        self._last, self._failed = "", False

    def skipped(self, reason: str, batch: dict, quiet: bool = False) -> None:
        """Name and count a skipped step. All ranks skip together, and all must call this.

        Args:
            reason: what is not finite; empty on ranks that only follow another one.
            batch: nnU-Net's batch, for the names of its cases.
            quiet: no line of its own, only the epoch's.

        Raises:
            KDError: it was the 20th in a row.
        """
        reason = _of_all_ranks(f"{reason}{_cases(batch)}" if reason else "")
        self.in_a_row, self.in_epoch = self.in_a_row + 1, self.in_epoch + 1
        self._last, self._failed = reason, True
        if not quiet:
            self._say(f"WARNING: step skipped: {reason}")
        if self.in_a_row >= LIMIT:
            raise KDError(
                f"{LIMIT} training steps in a row had NaN or Inf in them, the last one: {reason}. Mend that case, term, "
                "teacher or learning rate and continue with --c; what was trained and saved before is intact"
            )

    def end_step(self) -> None:
        """A step is over: without a skip in it, the row is broken."""
        if not self._failed:
            self.in_a_row = 0
        self._failed = False

    def end_epoch(self, steps: int) -> None:
        """Log how many of the epoch's ``steps`` were skipped, if any were."""
        if self.in_epoch:
            self._say(f"{self.in_epoch} of {steps} steps skipped, the last one: {self._last}")
        self.in_epoch = 0


def _cases(batch: dict) -> str:
    """The batch's cases, or only those whose images themselves are not finite."""
    keys = batch.get("keys")
    if keys is None:
        return ""
    damaged_cases = [str(key) for key, image in zip(keys, batch["data"], strict=False) if not all_finite([image])]
    if damaged_cases:
        return f" (NaN or Inf in the images of {', '.join(dict.fromkeys(damaged_cases))})"
    return f" (cases {', '.join(dict.fromkeys(map(str, keys)))})"


def _of_all_ranks(reason: str) -> str:
    if world_size() == 1:
        return reason
    return "; ".join(f"rank {rank}: {rank_reason}" for rank, rank_reason in enumerate(of_all_ranks(reason)) if rank_reason)
