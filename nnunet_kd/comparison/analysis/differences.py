"""Every method against one of them, domain by domain: the paired difference with its interval, and the tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_kd.comparison.analysis.groups import Group, bases_of
from nnunet_kd.comparison.analysis.significance import (
    almost_stochastic_order,
    holm,
    permutation_of_trainings,
    wilcoxon_of_clusters,
)
from nnunet_kd.comparison.analysis.statistics import Difference, paired_difference
from nnunet_kd.comparison.settings import CompareSettings, cluster_of

ENOUGH = 5  # trainings on either side for an almost stochastic order
CLUSTERS = 6  # fewer can give no signed-rank p-value below 0.05 (2 / 2^5), and as some of Holm's would only weaken others


@dataclass(frozen=True)
class Tested:
    """One domain's difference and tests. NaN: not enough to test."""

    difference: Difference
    clusters: int
    wilcoxon: float
    permutation: float
    aso: float
    holm: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """A group less the group it is compared with. ``shared``: trainings (seeds, folds) that both have."""

    group: Group
    base: Group
    shared: int
    by_dataset: dict[str, Tested]


def compare_with(settings: CompareSettings, groups: Sequence[Group], datasets: Sequence[str], against: str) -> list[Comparison]:
    """Every other group against those of method ``against``. Holm's correction is for all differences in the result."""
    comparisons = [
        Comparison(g, base, len(set(g.trainings) & set(base.trainings)), _tested(settings, g, base, datasets))
        for g in groups
        if g.method != against
        for base in bases_of(g, groups, against)
    ]
    corrected = iter(holm([d.wilcoxon for c in comparisons for d in c.by_dataset.values()]))
    return [
        dataclasses.replace(c, by_dataset={k: dataclasses.replace(d, holm=next(corrected)) for k, d in c.by_dataset.items()})
        for c in comparisons
    ]


def _tested(settings: CompareSettings, group: Group, base: Group, datasets: Sequence[str]) -> dict[str, Tested]:
    tested = {}
    for dataset in datasets:
        a, b = group.scores.get(dataset, {}), base.scores.get(dataset, {})

        def cluster(case: str, dataset: str = dataset) -> str:
            return cluster_of(settings, dataset, case)

        difference = paired_difference(a, b, cluster)
        if difference is None:
            continue
        p, clusters = wilcoxon_of_clusters(a, b, cluster)
        p = p if clusters >= CLUSTERS else math.nan
        means = [list(g.means(dataset).values()) for g in (group, base)]
        aso = almost_stochastic_order(*means) if min(map(len, means)) >= ENOUGH else math.nan
        tested[dataset] = Tested(difference, clusters, p, permutation_of_trainings(*means), aso)
    return tested
