"""Arrays that go to a temporary file when they are large."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np


class Memory:
    """Hands out arrays: in memory up to `limit` bytes each, beyond that in a file that vanishes with the array."""

    def __init__(self, limit: float = 2e9, folder: str | None = None) -> None:
        self.limit, self.folder = limit, folder

    def zeros(self, shape: Sequence[int], dtype: type) -> np.ndarray:
        """Filled with zeros (a new file reads as zeros)."""
        if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize <= self.limit:
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:  # the mapping keeps the file's content alive
            return np.memmap(file, dtype, "w+", shape=tuple(shape))

    empty = zeros  # np.zeros takes its pages from the system when they are written to, so this costs nothing
