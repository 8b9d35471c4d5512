"""How far a long step is: a bar on a terminal, and in a log file a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY = 30.0  # seconds between two lines in a file
_last_line_at = time.monotonic()  # when this process wrote the last one, or began its command


def restart() -> None:
    """A command begins: its first line comes 30 seconds from now."""
    global _last_line_at
    _last_line_at = time.monotonic()


def progress(items: Iterable[T], step: str, total: int | None = None, unit: str = "case", leave: bool = False) -> Iterable[T]:
    """The items again, with a report on standard error while they are taken.

    On a terminal tqdm's bar; elsewhere (a log file, a queue's output) a line with step, count and time left at most every 30
    seconds of this command, over all its steps: quick ones say nothing, many quick ones something.

    Args:
        total: how many; by default the items' length.
        leave: keep the bar on the terminal.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        return tqdm(items, desc=step, total=total, unit=unit, leave=leave)
    return _lines(items, step, total, unit)


def _lines(items: Iterable[T], step: str, total: int | None, unit: str) -> Iterator[T]:
    global _last_line_at
    start = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - _last_line_at >= EVERY:
            _last_line_at = now
            left = f", about {_clock((now - start) / done * (total - done))} left" if total and done else ""
            of = f" of {total}" if total else ""
            print(f"{step}: {done}{of} {unit}s done{left}", file=sys.stderr, flush=True)
        yield item


def _clock(seconds: float) -> str:
    """Such as "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
