"""Metrics of many cases on disk, in parallel, with one case per process in memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from nnunet_kd.evaluation.images import read_map, read_probabilities
from nnunet_kd.evaluation.metrics.overlap import Region, case_metrics, pooled, summarise
from nnunet_kd.evaluation.metrics.roc import Roc
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class CaseFiles:
    """What belongs to one case. ``fov``: field of view, non-zero inside. ``probabilities``: nnU-Net's CASE.npz."""

    case: str
    prediction: Path
    reference: Path
    fov: Path | None = None
    probabilities: Path | None = None


@dataclass(frozen=True)
class Measured:
    """``{case: metrics}`` (see ``metrics.case_metrics``), their mean (``summarise``) and the pooled pixels' (``pooled``)."""

    cases: dict[str, dict]
    summary: dict
    pooled: dict


def measure(
    files: Sequence[CaseFiles],
    labels: Sequence[Region],
    ignore_label: int | None = None,
    tolerance: float = 1.0,
    cldice_3d: bool = False,
    workers: int = 1,
    label: str = "metrics",
) -> Measured:
    """Measure predictions against references.

    Args:
        labels: foreground labels, or regions.
        ignore_label, tolerance, cldice_3d: as in ``metrics.case_metrics``.
        workers: processes; each holds one case at a time, and only counts come back.
        label: of the progress bar.

    Raises:
        KDError: a file is missing, unreadable or of another size than its reference.
    """
    function = partial(_measure_case, tuple(labels), ignore_label, tolerance, cldice_3d)
    cases: dict[str, dict] = {}
    total: dict[str, Roc] = {}
    measured = progress(in_order(function, files, workers), label, total=len(files))
    for item, (values, rocs) in zip(files, measured, strict=True):
        cases[item.case] = values
        total = {name: total[name] + roc if name in total else roc for name, roc in rocs.items()}
    return Measured(cases, summarise(cases), pooled(cases, total or None))


def in_order(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """``map`` over processes that keeps at most two results per process waiting."""
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: a fork of a process that has used torch's threads can hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _measure_case(
    labels: Sequence[Region], ignore_label: int | None, tolerance: float, cldice_3d: bool, files: CaseFiles
) -> tuple[dict, dict[str, Roc]]:
    truth, spacing = read_map(files.reference)
    prediction, _ = read_map(files.prediction)
    fov = None if files.fov is None else read_map(files.fov)[0] > 0
    probabilities = None
    if files.probabilities is not None:
        probabilities = _of_labels(files.probabilities, labels, truth.shape)
    rocs: dict[str, Roc] = {}
    try:
        values = case_metrics(prediction, truth, labels, fov, spacing, ignore_label, probabilities, tolerance, cldice_3d, rocs)
    except ValueError as error:
        raise KDError(f"{files.prediction} does not fit {files.reference}: {error}") from error
    return values, rocs


def _of_labels(file: Path, labels: Sequence[Region], shape: tuple[int, ...]) -> list[np.ndarray]:
    """One map per label: nnU-Net has a head per region, or one per label with the background first."""
    heads = read_probabilities(file)
    if heads.ndim == len(shape) + 2:  # pictures have a first axis of one slice
        heads = heads[:, 0]
    single = [int(label) for label in labels if isinstance(label, int | np.integer)]
    regions = len(single) < len(labels)
    wanted = list(range(len(labels))) if regions else single
    if heads.shape[1:] != shape or len(heads) <= max(wanted) or (regions and len(heads) != len(labels)):
        raise KDError(
            f"{file} holds probabilities of {'x'.join(map(str, heads.shape))}, {len(labels)} label(s) of "
            f"{'x'.join(map(str, shape))} were expected: predict again with --save_probabilities, or remove the file"
        )
    return [heads[i] for i in wanted]
