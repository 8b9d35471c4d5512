"""The Pareto front: those that no other beats in gain and cost at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], gain: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """Those that no other beats: none has as much gain at a lower cost, or more at the same. By cost."""
    front: list[T] = []
    for item in sorted(items, key=lambda i: (cost(i), -gain(i))):
        if not front or gain(item) > gain(front[-1]):
            front.append(item)
    return front
