"""Change of spacing as nnU-Net defines it: skimage's resize on voxel edges, per slice and nearest across slices if thick.

A spline resize is separable and linear: one matrix per axis. The matrices are what scipy.ndimage.zoom, which skimage calls,
does to unit vectors; they are banded, so that products with blocks of rows cost a fraction of the 64 taps per voxel of a
3-D spline, give the same numbers, and any range of output slices can be computed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .model import Resampling

_ROWS = 64  # rows of a matrix that are multiplied at once, over the columns they need
_NEGLIGIBLE = 1e-9  # of a matrix entry: a cubic spline's weights fall by 0.27 per voxel and reach this at 16


def new_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Size at another spacing, rounded as nnU-Net does."""
    return tuple(int(round(old / new * n)) for old, new, n in zip(spacing, new_spacing, shape, strict=True))


def separate_axis(spacing: Sequence[float], new_spacing: Sequence[float], how: Resampling) -> int | None:
    """The axis of thick slices, which gets its own interpolation order; None if the voxels are not that anisotropic.

    nnU-Net looks at the current spacing first, then at the new one. Two equally thick axes count as none.
    """
    if how.force_separate_z is False:
        return None
    for candidate in (spacing,) if how.force_separate_z else (spacing, new_spacing):
        candidate = np.asarray(candidate, dtype=float)
        if how.force_separate_z or candidate.max() / candidate.min() > how.anisotropy_threshold:
            axes = np.flatnonzero(candidate.max() / candidate == 1)
            return int(axes[0]) if len(axes) == 1 else None
    return None


class Resampler:
    """Resizes arrays (Z, Y, X) from `shape` to `target`, all at once or a range of output slices."""

    def __init__(self, shape: Sequence[int], target: Sequence[int], axis: int | None, how: Resampling) -> None:
        self.shape, self.target = tuple(shape), tuple(target)
        self.nothing_to_do = how.order is None or self.shape == self.target
        if self.nothing_to_do:
            self.target = self.shape
            return
        self.clip = how.order > 1  # lower orders cannot leave the range of their input
        self.separate = axis
        orders = [0 if i == axis else how.order for i in range(3)]
        self.maps = [_map(n, m, order) for n, m, order in zip(self.shape, self.target, orders, strict=True)]

    def bounds(self, source: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Smallest and largest value that slices may have: skimage clips to the range of what it is given."""
        if self.nothing_to_do or not self.clip:
            return None
        axes = tuple(i for i in range(3) if i != self.separate)
        return source.min(axis=axes, keepdims=True), source.max(axis=axes, keepdims=True)

    def slices(self, source: np.ndarray, start: int, stop: int, bounds: tuple | None) -> np.ndarray:
        """Output slices start to stop of `source` (Z, Y, X), float32; its bounds from `bounds(source)`."""
        if self.nothing_to_do:
            return source[start:stop].astype(np.float32, copy=False)
        back = None
        if self.separate == 0:  # each slice for itself, and each only once
            needed, back = np.unique(self._pick(0)[start:stop], return_inverse=True)
            resized = source[needed].astype(np.float32)
            if bounds is not None:
                bounds = tuple(b[needed] for b in bounds)
        elif self.maps[0] is None:
            resized = source[start:stop].astype(np.float32)
        else:
            rows = self.maps[0][start:stop]
            low, high = _support(rows)
            resized = _product(source[low:high].astype(np.float32), rows[:, low:high], 0)
        for axis in (1, 2):
            if axis != self.separate and self.maps[axis] is not None:
                resized = _product(resized, self.maps[axis], axis)
        if bounds is not None:
            np.clip(resized, *bounds, out=resized)
        if back is not None:
            return resized[back] if len(needed) < stop - start else resized
        if self.separate is not None and self.maps[self.separate] is not None:
            resized = np.take(resized, self._pick(self.separate), axis=self.separate)
        return resized

    def __call__(self, source: np.ndarray, out: np.ndarray) -> None:
        """Resize `source` into `out`, a few slices at a time."""
        bounds = self.bounds(source)
        for start, stop in ranges(self.target):
            out[start:stop] = self.slices(source, start, stop, bounds)

    def _pick(self, axis: int) -> np.ndarray:
        """For each output slice the input slice it is taken from (order 0)."""
        matrix = self.maps[axis]
        return np.arange(self.shape[axis]) if matrix is None else matrix.argmax(axis=1)


def ranges(shape: Sequence[int], voxels: int = 1 << 22) -> list[tuple[int, int]]:
    """Ranges of slices with about `voxels` voxels each."""
    step = max(1, voxels // max(1, int(np.prod(shape[1:]))))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


@lru_cache(maxsize=16)
def _map(n: int, m: int, order: int) -> np.ndarray | None:
    """Matrix (m, n), float32, that resizes n values to m with a spline of that order. None: nothing changes."""
    if n == m:
        return None
    from scipy.ndimage import map_coordinates, zoom

    if order == 0:
        picked = map_coordinates(np.arange(n, dtype=float), [n / m * (np.arange(m) + 0.5) - 0.5], order=0, mode="nearest")
        return np.eye(n, dtype=np.float32)[picked.astype(int)]
    columns = [zoom(unit, 1 / (n / m), order=order, mode="nearest", grid_mode=True) for unit in np.eye(n)]
    matrix = np.stack(columns, axis=1)
    matrix[abs(matrix) < _NEGLIGIBLE] = 0
    return matrix.astype(np.float32)


def _support(rows: np.ndarray) -> tuple[int, int]:
    columns = np.flatnonzero(rows.any(axis=0))
    return int(columns[0]), int(columns[-1]) + 1


def _product(array: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Apply `matrix` (m, n) along one axis of `array`, block by block of its rows."""
    shape = [*array.shape]
    shape[axis] = len(matrix)
    out = np.empty(shape, np.float32)
    for start in range(0, len(matrix), _ROWS):
        rows = matrix[start : start + _ROWS]
        low, high = _support(rows)
        rows, stop = rows[:, low:high], start + len(rows)
        if axis == 0:
            out[start:stop] = (rows @ array[low:high].reshape(high - low, -1)).reshape(len(rows), *shape[1:])
        elif axis == 1:
            out[:, start:stop] = rows @ array[:, low:high]
        else:
            out[:, :, start:stop] = array[:, :, low:high] @ rows.T
    return out
