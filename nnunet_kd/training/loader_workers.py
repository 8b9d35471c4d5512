"""Loader processes that end with their training, however it ends.

nnU-Net's forked loader workers stop when the training tells them to. After `kill -9` nobody does: they go on for ever, hold
the terminal and the memory. Spawned pool workers (final validation) need no help: their queue breaks and they end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_installed = False
_parent = 0


def end_with_parent() -> None:
    """Have the kernel kill what this process forks from now on as soon as this process dies. Linux only, elsewhere nothing.

    The kernel goes by the thread that forked, so fork from one that lives on, as nnU-Net does. Processes started by
    `subprocess` or the "spawn" method are left alone.
    """
    global _installed
    if _installed or not sys.platform.startswith("linux"):
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork: a child should do as little as possible

    def remember() -> None:
        global _parent
        _parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != _parent:  # it died before the kernel was asked
            os._exit(1)

    os.register_at_fork(before=remember, after_in_child=ask_kernel)
    _installed = True
