"""Whether two checkpoints hold the same, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Paths at which two nested states differ: types, keys, lengths and every bit of the numbers; times are left out."""
    if "timestamps" in where:
        return
    if type(a) is not type(b):
        yield where
    elif isinstance(a, dict):
        if a.keys() != b.keys():
            yield f"{where} (keys)"
        for key in (k for k in a if k in b):
            yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{where} (length)"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.numpy().tobytes() != b.numpy().tobytes():
            yield where
    elif isinstance(a, np.ndarray | np.generic):
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            yield where
    elif a != b and not (a != a and b != b):  # NaN is the same as NaN
        yield where
