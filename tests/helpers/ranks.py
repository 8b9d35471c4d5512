"""Two processes that torch.distributed joins, from one import of torch."""

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing as mp


def on_two_ranks(function: Callable, *args) -> None:
    """Run `function(rank, *args)` in two processes and wait. It must be of a module that imports little: both import it.

    A server that has imported torch forks them: spawned ones would import it each, which takes seconds. Their environment
    is that of the first call.
    """
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed"])
    mp.start_processes(function, args, nprocs=2, start_method="forkserver")
