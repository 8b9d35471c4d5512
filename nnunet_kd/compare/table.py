"""The comparison's CSV as Markdown: mean Dice per method and data set, and paired differences from one method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnunet_kd.compare.rows import read_rows
from nnunet_kd.compare.settings import CompareSettings, cluster_of
from nnunet_kd.compare.statistics import Difference, Scores, paired_difference, smallest_p_value
from nnunet_kd.errors import KDError


@dataclass
class Group:
    """The rows of one method at one size with its latest settings. ``older``: other settings, left out."""

    method: str
    params: int
    scores: dict[str, Scores]
    seeds: list[int]
    cpu_seconds: float | None
    older: list[str]


def table(settings: CompareSettings, against: str | None = None) -> str:
    """Markdown of everything in the CSV, the file's methods and domains first.

    Args:
        against: method whose Dice is taken from every other method's, case by case and seed by seed.

    Raises:
        KDError: no rows, or ``against`` is not among them.
    """
    groups = collect(settings)
    names = list(dict.fromkeys(g.method for g in groups))
    if against is not None and against not in names:
        raise KDError(f"--against {against}: {settings.csv} has rows of {', '.join(names)} only")
    datasets = _in_order(settings.domains, [d for g in groups for d in g.scores])
    text = ["Dice, mean over seeds and cases.", "", *_means(groups, datasets)]
    if against is not None:
        text += ["", *_differences(settings, groups, datasets, against)]
    for g in groups:
        if g.older:
            many = f"{len(g.older)} older settings" if len(g.older) > 1 else "older settings"
            text += ["", f"Left out: rows of {g.method} ({g.params:,} parameters) with {many} ({', '.join(g.older)})."]
    return "\n".join(text)


def collect(settings: CompareSettings) -> list[Group]:
    """One group per method and number of parameters. Where the settings' hash has changed, the latest row's counts."""
    rows = read_rows(settings.csv)
    if not rows:
        raise KDError(f"{settings.csv} has no rows yet: run `nnunet-kd compare {settings.file}` first")
    by_group: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        by_group.setdefault((row["method"], int(row["params"])), []).append(row)
    groups = {}
    for (method, params), own in by_group.items():
        latest = max(own, key=lambda r: r["date"])["config_hash"]
        older = [h for h in dict.fromkeys(r["config_hash"] for r in own) if h != latest]
        own = [r for r in own if r["config_hash"] == latest]
        scores: dict[str, dict] = {}
        for r in own:
            scores.setdefault(r["dataset"], {})[int(r["seed"]), r["case"]] = float(r["dice"])
        spent = {r["seed"]: float(r["cpu_seconds"]) for r in own if r["cpu_seconds"]}
        cpu = sum(spent.values()) / len(spent) if spent else None
        groups[method, params] = Group(method, params, scores, sorted({int(r["seed"]) for r in own}), cpu, older)
    methods = _in_order(settings.methods, [m for m, _ in groups])
    return sorted(groups.values(), key=lambda g: (methods.index(g.method), g.params))


def _means(groups: list[Group], datasets: list[str]) -> list[str]:
    lines = [_line("method", "parameters", "seeds", *datasets, "CPU s per training"), _line(*["---"] * (len(datasets) + 4))]
    for g in groups:
        cells = []
        for dataset in datasets:
            scores = {k: v for k, v in g.scores.get(dataset, {}).items() if not math.isnan(v)}
            seeds = len({s for s, _ in scores})
            part = f" ({seeds} of {len(g.seeds)} seeds)" if seeds < len(g.seeds) else ""
            cells.append(f"{sum(scores.values()) / len(scores):.4f}{part}" if scores else "")
        cpu = "" if g.cpu_seconds is None else f"{g.cpu_seconds:,.0f}"
        lines.append(_line(g.method, f"{g.params:,}", str(len(g.seeds)), *cells, cpu))
    return lines


def _differences(settings: CompareSettings, groups: list[Group], datasets: list[str], against: str) -> list[str]:
    baselines = [g for g in groups if g.method == against]
    lines = [_line("method", "parameters", "seeds", *datasets), _line(*["---"] * (len(datasets) + 3))]
    fewest = []
    for g in groups:
        if g.method == against:
            continue
        # students of one size with each other; a teacher with every size there is
        for base in [b for b in baselines if b.params == g.params] or baselines:
            found = {
                d: paired_difference(g.scores[d], base.scores[d], lambda case, d=d: cluster_of(settings, d, case))
                for d in datasets if d in g.scores and d in base.scores
            }  # fmt: skip
            shared = len(set(g.seeds) & set(base.seeds))
            fewest.append((shared, g, base))
            size = f"{g.params:,}" if g.params == base.params else f"{g.params:,} against {base.params:,}"
            lines.append(_line(g.method, size, str(shared), *(_points(found.get(d)) for d in datasets)))
    note = (
        f"Difference from {against} in Dice points (0.01), paired by case and seed, with a 95% bootstrap interval that draws "
        "whole clusters (children, patients; a case where the file names none) and whole seeds."
    )
    return [note, "", *lines, "", *_p_values(fewest)]


def _p_values(compared: list[tuple[int, Group, Group]]) -> list[str]:
    said = []
    for n in sorted({shared for shared, _, _ in compared if shared}):
        lowest = f"{smallest_p_value(n, n):.2g}"
        one = " The interval then knows nothing of the variation between seeds." if n == 1 else ""
        said.append(f"With {n} against {n} seeds no seed-level p-value can go below {lowest}.{one}")
    return said


def _points(d: Difference | None) -> str:
    if d is None:
        return ""
    interval = "" if math.isnan(d.low) else f" [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return f"{100 * d.mean:+.2f}{interval}"


def _in_order(first: dict, names: list[str]) -> list[str]:
    there = dict.fromkeys(names)
    return [n for n in first if n in there] + [n for n in there if n not in first]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
