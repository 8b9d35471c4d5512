"""The CSV's rows as groups: one per method, number of parameters, length of training and source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from nnunet_kd.comparison.analysis.statistics import Difference, Scores, Training, paired_difference
from nnunet_kd.comparison.rows import read_rows, take_over_parts
from nnunet_kd.comparison.settings import CompareSettings, cluster_of
from nnunet_kd.evaluation.domains import DATASET_SPEC
from nnunet_kd.utils.errors import KDError


@dataclass
class Group:
    """The rows of one method at one size, length and source with its latest settings.

    ``scores[dataset][training, case]`` is a Dice, a training is (seed, fold); NaN where the annotation is empty. ``hashes``: of
    its settings, one per fold; ``older``: of other settings, left out. ``marked[dataset]`` says of the cases with an empty
    annotation whether anything was predicted. ``measured[column][dataset]``: further numbers of the cases with a Dice, where
    the rows have them.
    """

    method: str
    params: int
    iterations: int
    source: str
    scores: dict[str, Scores]
    trainings: list[Training]
    cpu_seconds: float | None
    hashes: set[str]
    older: list[str]
    marked: dict[str, dict[tuple[Training, str], bool]] = field(default_factory=dict)
    measured: dict[str, dict[str, Scores]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for seed, _ in self.trainings})

    def valid(self, dataset: str) -> Scores:
        """The dataset's scores without those of empty annotations (NaN)."""
        return {k: v for k, v in self.scores.get(dataset, {}).items() if not math.isnan(v)}

    def means(self, dataset: str) -> dict[Training, float]:
        """Mean Dice over the cases of each training."""
        by_training: dict[Training, list[float]] = {}
        for (training, _), value in self.valid(dataset).items():
            by_training.setdefault(training, []).append(value)
        return {t: sum(v) / len(v) for t, v in sorted(by_training.items())}

    def mean(self, dataset: str) -> float:
        """Mean over all trainings and cases; NaN without any."""
        values = list(self.valid(dataset).values())
        return sum(values) / len(values) if values else math.nan

    def only_empty(self, dataset: str) -> bool:
        """Whether the dataset has rows, but no case with an annotation."""
        return bool(self.marked.get(dataset)) and not self.valid(dataset)


def collect(settings: CompareSettings, methods: Sequence[str] | None = None) -> list[Group]:
    """The groups, the file's methods first. Where a training's hash has changed, the latest row's counts.

    Args:
        methods: these only.

    Raises:
        KDError: no rows, or a method without any.
    """
    take_over_parts(settings.csv)
    rows = read_rows(settings.csv)
    if not rows:
        raise KDError(f"{settings.csv} has no rows yet: run `nnunet-kd compare {settings.file}` first")
    known = list(dict.fromkeys(r["method"] for r in rows))
    for name in methods or []:
        if name not in known:
            raise KDError(f"--methods {name}: {settings.csv} has rows of {', '.join(known)} only")
    # an empty annotation is empty for every method: rows from before the column need not say so
    empty = {(r["dataset"], r["case"]) for r in rows if r["truth_empty"] == "1"}
    by_group: dict[tuple[str, int, int, str], list[dict]] = {}
    for row in rows:
        if methods and row["method"] not in methods:
            continue
        # rows from before the file had names are of its first source and fold
        row["source"] = row["source"] or next(iter(settings.all_sources))
        row["fold"] = int(row["fold"] or settings.all_folds[0])
        key = row["method"], int(row["params"]), int(row["iterations"]), row["source"]
        by_group.setdefault(key, []).append(row)
    order, sources = in_order(settings.methods, known), in_order(settings.all_sources, [k[3] for k in by_group])
    groups = [_group(*key, group_rows, empty) for key, group_rows in by_group.items()]
    return sorted(groups, key=lambda g: (order.index(g.method), sources.index(g.source), g.params, g.iterations))


def _group(method: str, params: int, iterations: int, source: str, rows: list[dict], empty: set[tuple]) -> Group:
    latest = {}
    for r in sorted(rows, key=lambda r: r["date"]):
        latest[r["fold"]] = r["config_hash"]  # the fold is part of the hash
    older = [h for h in dict.fromkeys(r["config_hash"] for r in rows) if h not in latest.values()]
    latest_rows = [r for r in rows if r["config_hash"] in latest.values()]
    scores: dict[str, dict] = {}
    marked: dict[str, dict] = {}
    measured: dict[str, dict[str, dict]] = {c: {} for c in ("hd95", "best_dice", "best_offset")}
    for r in latest_rows:
        dataset, key, dice = r["dataset"], ((int(r["seed"]), r["fold"]), r["case"]), float(r["dice"])
        if (dataset, r["case"]) in empty:
            marked.setdefault(dataset, {})[key] = not math.isnan(dice)  # 0, of several labels their mean
            dice = math.nan
        scores.setdefault(dataset, {})[key] = dice
        for column, by_dataset in measured.items():
            if r[column] and not math.isnan(dice):
                by_dataset.setdefault(dataset, {})[key] = float(r[column])
    spent = {(r["seed"], r["fold"]): float(r["cpu_seconds"]) for r in latest_rows if r["cpu_seconds"]}
    cpu = sum(spent.values()) / len(spent) if spent else None
    trainings = sorted({(int(r["seed"]), r["fold"]) for r in latest_rows})
    return Group(method, params, iterations, source, scores, trainings, cpu, set(latest.values()), older, marked, measured)


def datasets_of(settings: CompareSettings, groups: Sequence[Group]) -> list[str]:
    """The domains that have rows, those of the file first and in its order."""
    return in_order(settings.domains, [d for g in groups for d in g.scores])


def is_unseen(settings: CompareSettings, source: str, dataset: str) -> bool:
    """Whether a domain is another data set than the source (what is not in the file counts as unseen)."""
    domain = settings.domains.get(dataset)
    if domain is None or domain.unseen is not None:
        return domain is None or domain.unseen
    match, trained = DATASET_SPEC.fullmatch(domain.domain), settings.all_sources.get(source)
    return match is None or trained is None or int(match[1]) != trained.dataset


def unseen_mean(settings: CompareSettings, group: Group, datasets: Sequence[str]) -> float:
    """Mean of the unseen domains' mean Dice, of all domains where none is unseen; NaN unless the group has them all."""
    datasets = [d for d in datasets if not group.only_empty(d)]
    unseen = [d for d in datasets if is_unseen(settings, group.source, d)] or datasets
    if not unseen:
        return math.nan
    return sum(group.mean(d) for d in unseen) / len(unseen)


def interval(settings: CompareSettings, group: Group, dataset: str) -> Difference | None:
    """The mean with its interval: the difference from 0."""
    scores = group.valid(dataset)
    return paired_difference(scores, dict.fromkeys(scores, 0.0), lambda c: cluster_of(settings, dataset, c))


def bases_of(group: Group, groups: Sequence[Group], against: str) -> list[Group]:
    """The groups of method ``against`` that a group is compared with: of its source, and of its size and length where there
    are such (students of one size with each other, a teacher with every size there is)."""
    bases = [g for g in groups if g.method == against and g.source == group.source]
    bases = [g for g in bases if g.params == group.params] or bases
    return [g for g in bases if g.iterations == group.iterations] or bases


def in_order(first: dict, names: Sequence[str]) -> list[str]:
    """The distinct names, those of ``first`` in its order before the others."""
    distinct = dict.fromkeys(names)
    return [n for n in first if n in distinct] + [n for n in distinct if n not in first]
