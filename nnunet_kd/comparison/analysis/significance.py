"""Tests of the difference between two methods: over clusters of cases, over trainings, and the correction for many of them.

None of them replaces the interval: with few clusters or trainings no test can give a small p-value, whatever the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from nnunet_kd.comparison.analysis.statistics import Scores


def wilcoxon_of_clusters(a: Scores, b: Scores, cluster: Callable[[str], str] = str) -> tuple[float, int]:
    """Two-sided p-value of Wilcoxon's signed-rank test on the clusters' mean paired differences a - b, and their number.

    The mean over trainings and over the cases of one cluster comes first: values of one child are no independent evidence.
    p is NaN without pairs, and 1 where all differences are 0.
    """
    by_cluster: dict[str, list[float]] = {}
    for key, value in a.items():
        if key in b and not math.isnan(value - b[key]):
            by_cluster.setdefault(cluster(key[1]), []).append(value - b[key])
    means = np.array([np.mean(v) for v in by_cluster.values()])
    if not len(means):
        return math.nan, 0
    return (float(stats.wilcoxon(means).pvalue) if np.any(means) else 1.0), len(means)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for their number; NaN stays NaN and is not counted.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def permutation_of_trainings(a: Sequence[float], b: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of the difference of two methods' mean Dice per training, the labels dealt in all possible ways (in
    10,000 random ones where there are more). NaN with fewer than two trainings on either side."""
    if min(len(a), len(b)) < 2:
        return math.nan
    result = stats.permutation_test(
        (np.asarray(a), np.asarray(b)),
        lambda x, y, axis: np.mean(x, axis) - np.mean(y, axis),
        vectorized=True,
        n_resamples=10_000,
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def almost_stochastic_order(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, samples: int = 1000, seed: int = 0
) -> float:
    """Upper confidence bound of how far ``a`` is from being stochastically larger than ``b``: 0 it is, below 0.5 almost.

    The violation ratio is the share of the squared distance between the two quantile functions in which a's lies below b's.
    The bound is the ratio less sqrt((n + m) / (n m)) sigma z(1 - confidence), sigma by bootstrap. Below about five scores a
    side the bootstrap has hardly anything to draw.

    Source: Dror, Shlomov, Reichart, Deep dominance, ACL 2019, after del Barrio, Cuesta-Albertos, Matran 2018.
    """
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    n, m = len(a), len(b)
    ratio = _violation(a, b)
    rng = np.random.default_rng(seed)
    drawn = [_violation(np.sort(rng.choice(a, n)), np.sort(rng.choice(b, m))) for _ in range(samples)]
    scale = math.sqrt(n * m / (n + m))
    sigma = float(np.std([scale * (d - ratio) for d in drawn]))
    bound = ratio - sigma / scale * float(stats.norm.ppf(1 - confidence))
    return min(1.0, max(0.0, bound))


def _violation(a: np.ndarray, b: np.ndarray) -> float:
    """The violation ratio of sorted samples; their quantile functions are steps, so the integrals are sums. 0.5 if equal."""
    n, m = len(a), len(b)
    ends = np.unique(np.concatenate([np.arange(1, n + 1) / n, np.arange(1, m + 1) / m]).round(12))
    widths = np.diff(ends, prepend=0)
    middle = ends - widths / 2
    difference = a[(middle * n).astype(int)] - b[(middle * m).astype(int)]
    total = float((widths * difference**2).sum())
    return float((widths * difference**2)[difference < 0].sum()) / total if total else 0.5
