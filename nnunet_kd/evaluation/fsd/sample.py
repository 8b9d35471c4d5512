"""A sample of semantic vectors: what the distances compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Sample:
    """Vectors ``(n, d)`` of one domain, and the case ``(n,)`` of each of them. Without cases each vector is one of its own.

    Raises:
        ValueError: not two-dimensional, fewer than two vectors, values that are not finite, or another number of cases.
    """

    vectors: np.ndarray
    cases: np.ndarray | Sequence[str] | None = None

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2:
            raise ValueError(f"a sample must be vectors (n, d), got shape {vectors.shape}")
        if len(vectors) < 2:
            raise ValueError(f"a sample of {len(vectors)} vector(s): a covariance needs at least two")
        if not np.isfinite(vectors).all():
            raise ValueError("a sample holds values that are not finite")
        object.__setattr__(self, "vectors", vectors)
        if self.cases is not None:
            cases = np.asarray(self.cases)
            if cases.shape != (len(vectors),):
                raise ValueError(f"{len(vectors)} vectors need as many case names, got shape {cases.shape}")
            object.__setattr__(self, "cases", cases)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def doubles(self) -> np.ndarray:
        """The vectors in double precision, in which distances are computed."""
        return self.vectors.astype(np.float64, copy=False)

    @cached_property
    def rows_of_cases(self) -> list[np.ndarray]:
        """The row numbers of every case; without cases, of every vector."""
        if self.cases is None:
            return list(np.arange(len(self))[:, None])
        return [np.flatnonzero(self.cases == case) for case in np.unique(self.cases)]

    def part(self, rows: np.ndarray) -> Sample:
        """The chosen rows alone."""
        return Sample(self.vectors[rows], None if self.cases is None else self.cases[rows])
