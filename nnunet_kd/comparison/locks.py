"""Locks between processes of one machine, released by the kernel when the last process that holds one ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_kd.utils.errors import KDError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class RunLock:
    """A lock on a file. A child process that inherits ``fd`` holds it too, even if this process is killed."""

    def __init__(self, file: Path) -> None:
        """Raises KDError where there are no such locks."""
        if fcntl is None:
            raise KDError("comparisons need the file locks of Linux or macOS: run `nnunet-kd compare` there, or in WSL")
        file.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, wait: bool = False) -> bool:
        """Whether the lock is ours now. ``wait`` waits until it is."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def locked(file: Path) -> Iterator[int]:
    """Hold the lock of ``file`` (made if missing), waiting for it. Yields the open file's descriptor."""
    lock = RunLock(file)
    try:
        lock.take(wait=True)
        yield lock.fd
    finally:
        lock.close()
