"""Pictures of a comparison's report: Dice per case, differences with intervals, cost against Dice, FSD against Dice drop.

Colours, markers and saving are those of the evaluation's figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nnunet_kd.comparison.analysis.differences import Comparison
from nnunet_kd.evaluation.report.figures import STUDENTS, TEACHER, new_figure, save_figure, tidy
from nnunet_kd.planning.pareto import pareto_front

BETTER, WORSE, EVEN = STUDENTS[2], STUDENTS[1], "#777777"
WIDE = 4  # panels side by side


def case_figure(values: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> Path:
    """Dice of every case as dots, with quartiles and mean: a panel per domain, a line per method.

    ``values[domain][method]``: one number per case.
    """
    methods = list(dict.fromkeys(m for by_method in values.values() for m in by_method))
    figure, panels = _panels(list(values), methods)
    for domain, axis in panels.items():
        for y, method in enumerate(methods):
            dice = np.asarray(values[domain].get(method, ()), float)
            if not len(dice):
                continue
            # spread upwards and downwards in the order of the cases: the same picture on every run
            spread = y + (np.linspace(-0.22, 0.22, len(dice)) if len(dice) > 1 else 0)
            axis.scatter(dice, spread, s=8, color=STUDENTS[0], alpha=0.45, linewidths=0)
            low, middle, high = np.quantile(dice, (0.25, 0.5, 0.75))
            axis.plot([low, high], [y, y], color=TEACHER, linewidth=4, alpha=0.35, solid_capstyle="butt")
            axis.plot([middle, middle], [y - 0.3, y + 0.3], color=TEACHER, linewidth=1.2)
            axis.plot(dice.mean(), y, "D", color=STUDENTS[1], markersize=4.5, markeredgecolor="white", markeredgewidth=0.6)
        axis.set_xlabel("Dice", fontsize=8)
    handles = [
        Line2D([], [], color=STUDENTS[0], marker="o", markersize=3.5, linestyle="", label="a case (mean over seeds)"),
        Line2D([], [], color=STUDENTS[1], marker="D", markersize=5, linestyle="", label="mean"),
        Line2D([], [], color=TEACHER, linewidth=4, alpha=0.35, label="middle half of the cases; bar: median"),
    ]
    return _finish(figure, handles, file)


def forest_figure(compared: Sequence[Comparison], names: Mapping[int, str], domains: Sequence[str], file: Path) -> Path:
    """Difference from the reference in Dice points with its interval: a panel per domain, a line per method.

    ``names``: of every comparison, by its place in ``compared``.
    """
    figure, panels = _panels([d for d in domains if any(d in c.by_dataset for c in compared)], list(names.values()))
    for domain, axis in panels.items():
        axis.axvline(0, color="#555555", linewidth=0.9)
        for y, c in enumerate(compared):
            if domain not in c.by_dataset:
                continue
            d = c.by_dataset[domain].difference
            known = not math.isnan(d.low)
            colour = BETTER if known and d.low > 0 else WORSE if known and d.high < 0 else EVEN
            if known:
                axis.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
            face = colour if c.by_dataset[domain].holm < 0.05 else "white"
            axis.plot(100 * d.mean, y, "o", markersize=6, markerfacecolor=face, markeredgecolor=colour)
        axis.set_xlabel("Dice points", fontsize=8)
    handles = [
        Line2D([], [], color=BETTER, linewidth=2, label="95% interval above 0"),
        Line2D([], [], color=WORSE, linewidth=2, label="below 0"),
        Line2D([], [], color=EVEN, linewidth=2, label="holds 0"),
        Line2D([], [], color=TEACHER, marker="o", linestyle="", label="filled: Wilcoxon p below 0.05 after Holm"),
    ]
    return _finish(figure, handles, file)


def pareto_figure(
    dice: Mapping[str, Mapping[str, float]],
    costs: Mapping[str, Mapping[str, float]],
    styles: Mapping[str, tuple[str, str]],
    file: Path,
) -> Path | None:
    """Dice against cost: a row per domain, a column per kind of cost; the line joins what nothing beats in both.

    ``dice[domain][method]``, ``costs[label of the axis][method]``. None without any cost.
    """
    costs = {k: v for k, v in costs.items() if v}
    if not costs or not dice:
        return None
    figure = new_figure(4.8 * len(costs), 2.9 * len(dice) + 0.9)
    axes = figure.subplots(len(dice), len(costs), squeeze=False)
    shown = [m for m in styles if any(m in v for v in dice.values())]
    for line, (domain, by_method) in zip(axes, dice.items(), strict=True):
        for axis, (label, cost) in zip(line, costs.items(), strict=True):
            points = {m: (cost[m], by_method[m]) for m in shown if m in cost and m in by_method}
            front = pareto_front(points.values(), gain=lambda p: p[1], cost=lambda p: p[0])
            axis.plot(*zip(*front, strict=True), color="#bbbbbb", linewidth=1.2, drawstyle="steps-post")
            for m, (x, y) in points.items():
                colour, marker = styles[m]
                axis.scatter(x, y, s=110 if marker == "*" else 48, color=colour, marker=marker, edgecolors="white", zorder=3)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_title(domain, fontsize=9)
            axis.set_xlabel(label, fontsize=8)
            axis.set_ylabel("Dice", fontsize=8)
            tidy(axis, "both")
            axis.tick_params(labelsize=8, which="both")
    handles = [Line2D([], [], color=styles[m][0], marker=styles[m][1], linestyle="", label=m) for m in shown]
    return _finish(figure, handles, file)


def fsd_figure(points: Sequence[tuple[str, str, float, float]], styles: Mapping[str, tuple[str, str]], file: Path) -> Path:
    """FSD against the loss of Dice from home to target. ``points``: (method, target, FSD, Dice points lost)."""
    figure = new_figure(8.2, 4.6)
    axis = figure.subplots()
    for method, target, x, y in points:
        colour, marker = styles[method]
        axis.scatter(x, y, s=130 if marker == "*" else 55, color=colour, marker=marker, edgecolors="white", zorder=3)
        axis.annotate(target, (x, y), (5, 4), textcoords="offset points", fontsize=8, color="#444444")
    axis.set_xlabel("FSD from the source, divided by the source's total variance", fontsize=9)
    axis.set_ylabel("Dice points lost from home to the target", fontsize=9)
    axis.margins(0.12)
    tidy(axis, "both")
    names = list(dict.fromkeys(p[0] for p in points))
    handles = [Line2D([], [], color=styles[m][0], marker=styles[m][1], linestyle="", label=m) for m in names]
    return _finish(figure, handles, file)


def _panels(domains: Sequence[str], methods: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """A panel per domain, the methods' names on the left of every row of panels."""
    columns = min(WIDE, len(domains))
    rows = math.ceil(len(domains) / columns)
    figure = new_figure(1.9 + 2.5 * columns, rows * (0.26 * max(3, len(methods)) + 0.85) + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(domains) :]:
        axis.set_axis_off()
    for axis, domain in zip(axes.flat, domains, strict=False):
        axis.set_title(domain, fontsize=9)
        axis.set_yticks(range(len(methods)), methods, fontsize=9)
        axis.set_ylim(len(methods) - 0.4, -0.6)
        tidy(axis, "x")
        axis.tick_params(axis="x", labelsize=8)
        axis.tick_params(axis="y", length=0)
        for y in range(len(methods)):
            axis.axhline(y + 0.5, color="#f0f0f0", linewidth=0.7, zorder=0)
    return figure, dict(zip(domains, axes.flat, strict=False))


def _finish(figure: Figure, handles: list[Line2D], file: Path) -> Path:
    """The legend above the panels, in as many lines as it needs."""
    columns = max(2, int(figure.get_figwidth() // 1.75)) if len(handles) > 4 else len(handles)
    columns = min(columns, int(figure.get_figwidth() // 2.2)) if len(handles) <= 4 else columns
    lines = math.ceil(len(handles) / max(1, columns))
    figure.legend(handles=handles, loc="upper left", ncols=max(1, columns), frameon=False, fontsize=8.5)
    return save_figure(figure, file, top=1 - (0.2 + 0.21 * lines) / figure.get_figheight())
