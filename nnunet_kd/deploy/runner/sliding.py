"""Sliding-window prediction as nnU-Net does it: half-overlapping tiles, a Gaussian weight, mirrored copies averaged.

nnU-Net sums tiles in float16. So does this, tile by tile in the same order: rounding decides near ties between labels. NumPy
is slow at float16, and a student's network fast: a thread of its own adds a tile while the network computes the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .errors import RunnerError
from .memory import Memory
from .model import Model

Network = Callable[[np.ndarray], np.ndarray]  # (1, C, *patch) float32 to (1, K, *patch) float32


def predict_logits(
    data: np.ndarray,
    networks: Sequence[Network],
    model: Model,
    mirror: bool,
    memory: Memory,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Logits (K, *S) float16 of the network's input (C, *S), the mean of all folds.

    2-D models take 3-D data slice by slice. `progress(done, all)` is called after every tile.
    """
    patch = model.patch_size
    padding = [(0, 0)] * data.ndim
    for axis, size in enumerate(patch, start=data.ndim - len(patch)):
        missing = max(0, size - data.shape[axis])
        padding[axis] = (missing // 2, missing - missing // 2)
    unpadded = (slice(None), *(slice(low, low + n) for (low, _), n in zip(padding[1:], data.shape[1:], strict=True)))
    if any(padding[axis] != (0, 0) for axis in range(data.ndim)):
        data = np.pad(data, padding)
    tiles = tile_slices(data.shape[1:], patch, model.tile_step)
    axes = model.mirror_axes if mirror else []
    mirrored = [tuple(a + 2 for a in c) for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]

    total = None
    for fold, network in enumerate(networks):

        def step(done: int, fold: int = fold) -> None:
            progress(fold * len(tiles) + done, len(networks) * len(tiles))

        logits = _one_fold(data, tiles, network, model, mirrored, memory, step)
        if total is None:
            total = logits
        else:
            total += logits
    if len(networks) > 1:
        total /= len(networks)
    return total[unpadded]


def tile_slices(shape: Sequence[int], patch: Sequence[int], step: float) -> list[tuple]:
    """Where the tiles lie, in nnU-Net's order: evenly spread, at most `step` of a patch apart."""
    starts = []
    for n, size in zip(shape[-len(patch) :], patch, strict=True):
        count = math.ceil((n - size) / (size * step)) + 1
        distance = (n - size) / (count - 1) if count > 1 else 0
        starts.append([int(np.round(distance * i)) for i in range(count)])
    if len(patch) < len(shape):
        starts = [range(shape[0]), *starts]
        patch = (1, *patch)
    return [tuple(slice(s, s + n) for s, n in zip(start, patch, strict=True)) for start in itertools.product(*starts)]


def gaussian(patch: Sequence[int]) -> np.ndarray:
    """Weight of a tile's voxels, float16: 10 in the middle, sigma an eighth of the patch, never 0."""
    from scipy.ndimage import gaussian_filter

    weight = np.zeros(patch)
    weight[tuple(n // 2 for n in patch)] = 1
    weight = gaussian_filter(weight, [n / 8 for n in patch], mode="constant")
    weight = (weight / (weight.max() / 10)).astype(np.float16)
    weight[weight == 0] = weight[weight > 0].min()
    return weight


def _one_fold(
    data: np.ndarray,
    tiles: list[tuple],
    network: Network,
    model: Model,
    mirrored: list[tuple[int, ...]],
    memory: Memory,
    step: Callable[[int], None],
) -> np.ndarray:
    logits = memory.zeros((model.outputs, *data.shape[1:]), np.float16)
    # all slices of a 2-D model are covered alike
    flat = len(model.patch_size) < data.ndim - 1
    covered = memory.zeros((1, *data.shape[2:]) if flat else data.shape[1:], np.float16)
    weight = gaussian(model.patch_size)
    weight32 = weight.astype(np.float32)

    def take_in(tile: tuple, prediction: np.ndarray) -> None:
        _add(logits[(slice(None), *tile)], prediction[:, None] if flat else prediction)
        if not flat or tile[0].start == 0:
            _add(covered[tile], weight32[None] if flat else weight32)

    with ThreadPoolExecutor(1) as adding:
        waiting = None
        for done, tile in enumerate(tiles, start=1):
            patch = data[(slice(None), *tile)]
            x = np.ascontiguousarray(patch[:, 0] if flat else patch)[None]
            prediction = _mirrored(network, x, mirrored)[0] * weight32
            if waiting is not None:
                waiting.result()  # one tile waits at most; what went wrong is raised here
            waiting = adding.submit(take_in, tile, prediction)
            step(done)
        waiting.result()
    for channel in logits:
        for part, by in zip(channel, itertools.repeat(covered[0]) if flat else covered, strict=False):
            part[...] = part.astype(np.float32) / by.astype(np.float32)
            if not np.isfinite(part).all():
                raise RunnerError("the network's output is not finite: check the image's intensities, or use --precision f32")
    return logits


def _mirrored(network: Network, x: np.ndarray, combinations: list[tuple[int, ...]]) -> np.ndarray:
    """Mean over mirrored copies; the first combination is none. May be the network's own array, of its next call too."""
    logits = network(x)
    if len(combinations) == 1:
        return logits
    total = np.array(logits, dtype=np.float32)
    for axes in combinations[1:]:
        total += np.flip(network(np.ascontiguousarray(np.flip(x, axes))), axes)
    total /= len(combinations)
    return total


def _add(total: np.ndarray, values: np.ndarray) -> None:
    """float16 += float32, rounded once."""
    total[...] = total.astype(np.float32) + values
