"""Paired differences between two methods, with an interval that respects what belongs together.

The same image predicted by both methods with the same seed (and fold) makes a pair. Images of one child resemble each other,
and so do all images of one training: so the bootstrap draws whole clusters and whole trainings, not pairs. Where there are no
folds, a training is a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Training = tuple[int, int]  # seed, fold
Scores = Mapping[tuple[Training, str], float]  # {(training, case): Dice}


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over all pairs and its bootstrap interval (NaN where one seed and one cluster leave nothing to draw)."""

    mean: float
    low: float
    high: float
    pairs: int
    seeds: int
    clusters: int


def paired_difference(
    a: Scores, b: Scores, cluster: Callable[[str], str] = str, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference | None:
    """Mean paired difference a - b with a percentile interval; None without any pair.

    Seeds and clusters are drawn with replacement, independently of each other (a crossed bootstrap: every seed meets every
    cluster). Pairs with a NaN are left out.

    Args:
        cluster: the cluster of a case's name.
        seed: of the bootstrap; the same seed gives the same interval.
    """
    differences = {k: a[k] - b[k] for k in a if k in b and not math.isnan(a[k] - b[k])}
    if not differences:
        return None
    seeds = sorted({s for s, _ in differences})
    clusters = sorted({cluster(c) for _, c in differences})
    sums, counts = np.zeros((len(seeds), len(clusters))), np.zeros((len(seeds), len(clusters)))
    for (s, case), value in differences.items():
        cell = seeds.index(s), clusters.index(cluster(case))
        sums[cell] += value
        counts[cell] += 1
    low = high = math.nan
    if len(seeds) > 1 or len(clusters) > 1:
        draw = np.random.default_rng(seed).multinomial
        by_seed, by_cluster = (draw(n, [1 / n] * n, size=samples) for n in (len(seeds), len(clusters)))
        pairs = ((by_seed @ counts) * by_cluster).sum(1)
        drawn = ((by_seed @ sums) * by_cluster).sum(1)[pairs > 0] / pairs[pairs > 0]
        low, high = (float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    mean = float(sums.sum() / counts.sum())
    return Difference(mean, low, high, len(differences), len(seeds), len(clusters))


def smallest_p_value(seeds_a: int, seeds_b: int) -> float:
    """The lowest two-sided p-value that a permutation test of so many against so many seeds can give."""
    return min(1.0, 2 / math.comb(seeds_a + seeds_b, seeds_a))
