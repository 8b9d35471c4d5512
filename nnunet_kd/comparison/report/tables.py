"""The comparison's CSV as tables: mean Dice per method and data set, failures, costs, paired differences and their tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_kd.comparison.analysis.costs import NetworkCost, network_costs
from nnunet_kd.comparison.analysis.differences import CLUSTERS, ENOUGH, Comparison, compare_with
from nnunet_kd.comparison.analysis.groups import Group, collect, datasets_of, interval, is_unseen, unseen_mean
from nnunet_kd.comparison.analysis.statistics import Difference, smallest_p_value
from nnunet_kd.comparison.report.measures import measure_columns, measure_tables
from nnunet_kd.comparison.report.names import Names
from nnunet_kd.comparison.report.render import Table, csv_text, latex, markdown
from nnunet_kd.comparison.settings import CompareSettings
from nnunet_kd.utils.errors import KDError

FORMS = ("markdown", "latex", "csv")
NOTHING = Difference(math.nan, math.nan, math.nan, 0, 0, 0)


def table(
    settings: CompareSettings, against: str | None = None, form: str = "markdown", methods: Sequence[str] | None = None
) -> str:
    """Everything in the CSV as text, the file's methods and domains first.

    Args:
        against: method whose Dice is taken from every other method's, case by case and training by training.
        form: "markdown", "latex" (booktabs) or "csv": one row per method and domain, with every number.
        methods: these only.

    Raises:
        KDError: no rows, or ``against`` or one of ``methods`` is not among them.
    """
    groups = collect(settings, methods)
    check_against(settings, groups, against)
    datasets = datasets_of(settings, groups)
    costs = network_costs(settings, groups)
    compared = compare_with(settings, groups, datasets, against) if against is not None else []
    if form == "csv":
        return csv_text(csv_rows(settings, groups, datasets, costs, compared))
    tables = [means(groups, datasets), failures(settings, groups, datasets), *measure_tables(groups, datasets).values()]
    tables.append(cost_table(settings, groups, datasets, costs))
    if against is not None:
        tables += [differences(compared, datasets, against), tests(compared, against)]
    for g in groups:
        if g.older:
            many = f"{len(g.older)} older settings" if len(g.older) > 1 else "older settings"
            note = f"Left out: rows of {g.method} ({g.params:,} parameters) with {many} ({', '.join(g.older)})."
            tables.append(Table(note, []))
    return (latex if form == "latex" else markdown)([t for t in tables if t is not None])


def check_against(settings: CompareSettings, groups: Sequence[Group], against: str | None) -> None:
    """Raise KDError unless the method to compare with has rows."""
    names = list(dict.fromkeys(g.method for g in groups))
    if against is not None and against not in names:
        raise KDError(f"--against {against}: {settings.csv} has rows of {', '.join(names)} only")


def means(groups: Sequence[Group], datasets: Sequence[str]) -> Table:
    """Every group's mean Dice on every dataset."""
    names = Names(groups)
    text = "Dice, mean over seeds and cases"
    if any(len(g.trainings) > 1 for g in groups):
        text += " ± standard deviation of the trainings' means"
    table = Table(f"{text}.", [*names.header, *datasets, "CPU s per training"], texts=names.texts)
    for g in groups:
        cpu = "" if g.cpu_seconds is None else f"{g.cpu_seconds:,.0f}"
        table.rows.append([*names.cells(g), *(_mean_cell(g, d) for d in datasets), cpu])
    return table


def _mean_cell(g: Group, dataset: str) -> str:
    by_training = g.means(dataset)
    if not by_training:
        return ""
    seeds = len({seed for seed, _ in by_training})
    part = f" ({seeds} of {len(g.seeds)} seeds)" if seeds < len(g.seeds) else ""
    spread = deviation(list(by_training.values()))
    return f"{g.mean(dataset):.4f}{'' if math.isnan(spread) else f' ± {spread:.4f}'}{part}"


def failures(settings: CompareSettings, groups: Sequence[Group], datasets: Sequence[str]) -> Table | None:
    """Shares of cases that failed; a sentence where there are none."""
    limit = settings.failed_below
    shares = {(i, d): failed_share(g, d, limit) for i, g in enumerate(groups) for d in datasets if g.valid(d)}
    if not any(failed for failed, _ in shares.values()):
        return Table(f"No case has a Dice below {limit:g}.", [])
    names = Names(groups)
    caption = f"Share of cases with a Dice below {limit:g}, and in brackets with a Dice of 0 (nothing found, or nothing right)."
    table = Table(caption, [*names.header, *datasets], texts=names.texts)
    for i, g in enumerate(groups):
        cells = [f"{failed:.1%} ({zero:.1%})" for failed, zero in (shares.get((i, d), (math.nan, 0)) for d in datasets)]
        table.rows.append([*names.cells(g), *("" if c.startswith("nan") else c for c in cells)])
    return table


def cost_table(
    settings: CompareSettings, groups: Sequence[Group], datasets: Sequence[str], costs: Sequence[NetworkCost]
) -> Table | None:
    """None where no kept model is at hand."""
    timed = any(c.cpu_seconds_per_case for c in costs)
    if not timed and not any(c.flops for c in costs):
        return None
    names = Names(groups)
    header = [*names.header, "MFLOPs per patch", "CPU s per training", "Dice per 1,000 CPU s of training"]
    header += ["CPU s per case", "Dice per CPU s"] if timed else []
    caption = "Cost. FLOPs: one forward of a training patch, a multiply-add is two. Dice: mean of the unseen domains, if any."
    table = Table(caption, header, texts=names.texts)
    for g, c in zip(groups, costs, strict=True):
        dice = unseen_mean(settings, g, datasets)
        row = [_number(c.flops, 1e6, 1), _number(g.cpu_seconds), _ratio(1000 * dice, g.cpu_seconds)]
        row += [_number(c.cpu_seconds_per_case, 1, 2), _ratio(dice, c.cpu_seconds_per_case)] if timed else []
        table.rows.append([*names.cells(g), *row])
    return table


def differences(compared: Sequence[Comparison], datasets: Sequence[str], against: str) -> Table:
    """Every group's difference from the method ``against`` on every dataset, with intervals."""
    note = (
        f"Difference from {against} in Dice points (0.01), paired by case and seed, with a 95% bootstrap interval that draws "
        "whole clusters (children, patients; a case where the file names none) and whole seeds (with folds: trainings)."
    )
    names = Names([c.group for c in compared])
    table = Table(note, [*names.header, *datasets], texts=names.texts)
    for c in compared:
        size = f"{c.group.params:,}" if c.group.params == c.base.params else f"{c.group.params:,} against {c.base.params:,}"
        cells = [points(c.by_dataset[d].difference if d in c.by_dataset else None) for d in datasets]
        table.rows.append([*names.cells(c.group, size, c.shared), *cells])
    unit = "training" if any(fold for c in compared for _, fold in c.group.trainings) else "seed"
    for n in sorted({c.shared for c in compared if c.shared}):
        one = f" The interval then knows nothing of the variation between {unit}s." if n == 1 else ""
        lowest = f"{smallest_p_value(n, n):.2g}"
        table.notes.append(f"With {n} against {n} {unit}s no {unit}-level p-value can go below {lowest}.{one}")
    table.notes = ["\n".join(table.notes)] if table.notes else []
    return table


def tests(compared: Sequence[Comparison], against: str) -> Table:
    """The tests of these differences, a row per group and dataset."""
    names = Names([c.group for c in compared])
    header = [*names.header[:-1], "domain", "difference", "clusters", "Wilcoxon p", "Holm", "permutation p", "ASO"]
    caption = (
        f"Tests of the difference from {against}. Wilcoxon: signed ranks of the clusters' mean differences, from {CLUSTERS} "
        "clusters, for these trainings as they are; Holm: the same, corrected for all rows of this table; permutation: of the "
        f"trainings' mean Dice; ASO: almost stochastic order of them (below 0.5: better), from {ENOUGH} trainings a side."
    )
    table = Table(caption, header, texts=names.texts)
    for c in compared:
        for dataset, d in c.by_dataset.items():
            if math.isnan(d.wilcoxon) and math.isnan(d.permutation):
                continue
            table.rows.append(
                [
                    *names.cells(c.group)[:-1],
                    dataset,
                    points(d.difference),
                    str(d.clusters),
                    p_value(d.wilcoxon),
                    p_value(d.holm),
                    p_value(d.permutation),
                    "" if math.isnan(d.aso) else f"{d.aso:.2f}",
                ]
            )
    return table if table.rows else Table("Too few clusters and trainings for any test of the differences.", [])


def csv_rows(
    settings: CompareSettings,
    groups: Sequence[Group],
    datasets: Sequence[str],
    costs: Sequence[NetworkCost],
    compared: Sequence[Comparison] = (),
) -> list[dict[str, object]]:
    """One row per group and domain, and for every method it is compared with once more."""
    rows = []
    for g, cost in zip(groups, costs, strict=True):
        for dataset in datasets:
            if not g.valid(dataset) and not g.only_empty(dataset):
                continue
            dice_interval, by_training = interval(settings, g, dataset) or NOTHING, g.means(dataset)
            failed, zero = failed_share(g, dataset, settings.failed_below)
            common = {
                "method": g.method,
                "source": g.source,
                "parameters": g.params,
                "iterations": g.iterations,
                "domain": dataset,
                "unseen": is_unseen(settings, g.source, dataset),
                "seeds": len(g.seeds),
                "trainings": len(by_training),
                "cases": len({case for _, case in g.valid(dataset)}),
                "clusters": dice_interval.clusters,
                "dice": dice_interval.mean,
                "sd_of_trainings": deviation(list(by_training.values())),
                "low": dice_interval.low,
                "high": dice_interval.high,
                f"below_{settings.failed_below:g}": failed,
                "dice_0": zero,
                "cpu_seconds_per_training": g.cpu_seconds,
                "flops_per_patch": cost.flops,
                "cpu_seconds_per_case": cost.cpu_seconds_per_case,
                "dice_per_cpu_second": cost.cpu_seconds_per_case and dice_interval.mean / cost.cpu_seconds_per_case,
            } | measure_columns(g, dataset)
            pairs = [(c.base, c.by_dataset[dataset]) for c in compared if c.group is g and dataset in c.by_dataset]
            rows += [
                common
                | {
                    "against": base.method,
                    "against_parameters": base.params,
                    "difference": d.difference.mean,
                    "difference_low": d.difference.low,
                    "difference_high": d.difference.high,
                    "pairs": d.difference.pairs,
                    "p_wilcoxon": d.wilcoxon,
                    "p_holm": d.holm,
                    "p_permutation": d.permutation,
                    "aso": d.aso,
                }
                for base, d in pairs
            ] or [common]
    return [
        {
            k: "" if v is None or (isinstance(v, float) and math.isnan(v)) else f"{v:.6g}" if isinstance(v, float) else v
            for k, v in r.items()
        }
        for r in rows
    ]


def failed_share(group: Group, dataset: str, below: float) -> tuple[float, float]:
    """Share of (training, case) with a Dice below a limit, and with a Dice of 0."""
    values = list(group.valid(dataset).values())
    if not values:
        return math.nan, math.nan
    return sum(v < below for v in values) / len(values), sum(v == 0 for v in values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN of fewer than two."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def points(d: Difference | None) -> str:
    """A difference in Dice points with its interval."""
    if d is None:
        return ""
    limits = "" if math.isnan(d.low) else f" [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return f"{100 * d.mean:+.2f}{limits}"


def p_value(p: float) -> str:
    """A p-value with two digits; empty for NaN."""
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.2g}"


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _ratio(dice: float, seconds: float | None) -> str:
    return "" if not seconds or math.isnan(dice) else f"{dice / seconds:.3f}"
