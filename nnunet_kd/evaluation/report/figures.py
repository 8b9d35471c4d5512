"""Pictures of the report, by matplotlib: Dice per case, training curves, semantic distances. Cases: contours.py.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; models also differ by marker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

TEACHER = "#333333"
STUDENTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
TITLES = {
    "seg_loss": "segmentation loss (training)",
    "val_losses": "segmentation loss (validation)",
    "mean_fg_dice": "pseudo Dice (validation)",
    "kd": "logit distillation (KD)",
    "intra": "DCGD, intra graph",
    "inter": "DCGD, inter graph",
    "cross_ts": "DICD, teacher's vector in the student",
    "cross_st": "DICD, student's vector in the teacher",
}


def model_styles(models: Sequence[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """``{name: (colour, marker)}`` for (name, role) pairs: one for each model, the same in every picture."""
    styles, students = {}, 0
    for name, role in models:
        if role == "teacher":
            styles[name] = (TEACHER, "*")
        else:
            again = students // len(STUDENTS)  # the seventh has the first one's colour and another marker
            styles[name] = (STUDENTS[students % len(STUDENTS)], MARKERS[(students + again) % len(MARKERS)])
            students += 1
    return styles


def dice_dots(dice: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, tuple[str, str]], file: Path) -> Path:
    """Dice of every case (small) and its mean (large) by domain and model. ``dice[model][domain]`` lists the cases."""
    domains = list(dict.fromkeys(d for by_domain in dice.values() for d in by_domain))
    figure = new_figure(max(6.0, 1.2 + 2.2 * len(domains)), 3.6)
    axis = figure.subplots()
    width = 0.8 / len(dice)
    for i, (name, by_domain) in enumerate(dice.items()):
        colour, marker = styles[name]
        for x, domain in enumerate(domains):
            values = np.asarray([v for v in by_domain.get(domain, ()) if not math.isnan(v)])
            if not len(values):
                continue
            centre = x + (i - (len(dice) - 1) / 2) * width
            # spread sideways in the order of the cases: the same picture on every run
            spread = centre + np.linspace(-0.3, 0.3, len(values)) * width
            axis.scatter(spread, values, s=9, color=colour, alpha=0.45, linewidths=0)
            axis.scatter(
                centre, values.mean(), s=150 if marker == "*" else 75, color=colour, marker=marker, edgecolors="white", zorder=3
            )
        axis.scatter([], [], s=110 if marker == "*" else 55, color=colour, marker=marker, label=name)
    axis.set_xticks(range(len(domains)), domains)
    for x in range(1, len(domains)):
        axis.axvline(x - 0.5, color="#dddddd", linewidth=0.8)
    axis.set_xlim(-0.5, len(domains) - 0.5)
    axis.set_ylabel("Dice")
    tidy(axis)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(6, len(dice)), frameon=False, fontsize=9)
    return save_figure(figure, file)


def training_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, tuple[str, str]], file: Path
) -> Path | None:
    """One panel per logged value, one line per model; None where nothing was logged.

    ``curves[model][key]`` holds one value per epoch (None or NaN where it was off). Keys are nnU-Net's (``val_losses``,
    ``mean_fg_dice``, ...) and ``kd/...`` of the distillation. Shaded: alignment training (ACT) before distillation.
    """
    panels = _panels(curves)
    if not panels:
        return None
    first = [k for k in TITLES if k in panels]
    order = first + [k for k in panels if k not in TITLES]
    columns = min(3, len(order))
    lines = math.ceil(len(order) / columns)
    figure = new_figure(3.6 * columns, 2.3 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False)
    phases = {name: _alignment_phase(logged) for name, logged in curves.items()}
    for axis in axes.flat[len(order) :]:
        axis.set_axis_off()
    for axis, key in zip(axes.flat, order, strict=False):
        for name, network, series in panels[key]:
            epochs = 1 + np.flatnonzero(np.isfinite(series))
            line = "--" if network == "teacher" else "-"
            marker = "." if len(epochs) < 3 else None
            axis.plot(epochs, series[epochs - 1], color=styles[name][0], linewidth=1.6, linestyle=line, marker=marker)
        for name in {n for n, _, _ in panels[key]}:
            if phases[name] is not None and key not in ("seg_loss", "val_losses", "mean_fg_dice"):
                axis.axvspan(*phases[name], color="#eeeeee", zorder=0)
        axis.set_xlim(0.5, 0.5 + max(len(s) for _, _, s in panels[key]))
        axis.set_title(TITLES.get(key, key.replace("_", " ").replace("act ", "ACT, ")), fontsize=9)
        tidy(axis)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[max(0, len(order) - columns) : len(order)]:
        axis.set_xlabel("epoch", fontsize=9)
    handles = [Line2D([], [], color=styles[n][0], linewidth=2, label=n) for n in curves]
    if any(network for panel in panels.values() for _, network, _ in panel):
        handles.append(Line2D([], [], color="#555555", linestyle="--", label="teacher's alignment network"))
    if any(phases.values()):
        handles.append(Patch(color="#eeeeee", label="alignment training"))
    figure.legend(handles=handles, loc="upper left", ncols=6, frameon=False, fontsize=9)
    return save_figure(figure, file, top=1 - (0.2 + 0.2 * math.ceil(len(handles) / 6)) / figure.get_figheight())


def fsd_bars(results: Sequence[Mapping], file: Path) -> Path:
    """Relative FSD of every comparison: what chance gives (bar), raw (diamond), bias-corrected with interval (dot).

    ``results`` are the report's ``fsd`` entries (see ``fsd.compare``), of which those between domains are drawn; values that
    are None or NaN are left out.
    """
    results = [r for r in results if r.get("comparison", "domains") == "domains"]
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for r in results:
        groups.setdefault((r["model"], r["network"]), []).append(r)
    figure = new_figure(8.6, 0.36 * (len(results) + len(groups)) + 1.25)
    axis = figure.subplots()
    y, ticks, labels, heads = 0, [], [], []
    for (model, network), rows in groups.items():
        colour = TEACHER if network == "teacher" else STUDENTS[0]
        ticks.append(y)
        heads.append(len(labels))
        labels.append(model if rows[0].get("msan") == "post hoc" else f"{model}: {network}")
        for r in rows:
            y += 1
            ticks.append(y)
            labels.append(r["target"])
            chance, raw, corrected = (_number(r.get(k)) for k in ("relative_null95", "relative", "relative_extrapolated"))
            low, high = (_number(v) for v in r.get("relative_interval") or (None, None))
            if math.isfinite(chance):
                axis.barh(y, chance, height=0.62, color="#d9d9d9")
            if math.isfinite(low) and math.isfinite(high):
                axis.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            axis.plot(corrected, y, "o", color=colour, markersize=6)
            axis.plot(raw, y, "D", markerfacecolor="white", markeredgecolor=colour, markersize=5.5)
        y += 1
    axis.set_yticks(ticks, labels, fontsize=9)
    for head in heads:
        axis.get_yticklabels()[head].set_fontweight("bold")
    axis.set_ylim(y - 0.3, -0.6)
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_xlabel("FSD divided by the source's total variance (lower = closer to the source)", fontsize=9)
    tidy(axis, "x")
    axis.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=STUDENTS[0], marker="o", label="bias-corrected, 95% interval"),
        Line2D([], [], color=STUDENTS[0], marker="D", markerfacecolor="white", linestyle="", label="raw FSD"),
        Patch(color="#d9d9d9", label="raw FSD that chance gives (up to, 95%)"),
    ]
    figure.legend(handles=handles, loc="upper left", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, file, top=1 - 0.4 / figure.get_figheight())


def new_figure(width: float, height: float) -> Figure:
    """A figure outside pyplot, which would keep it for ever and ask for a display."""
    figure = Figure(figsize=(width, height), layout="tight")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, file: Path, top: float = 1.0) -> Path:
    """Write a figure and make its folder. ``top``: the share of the height below the legend."""
    figure.get_layout_engine().set(rect=(0, 0, 1, top))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return file


def tidy(axis: Axes, grid: str = "y") -> None:
    """A light grid behind the data ("x", "y" or "both") and no frame above and on the right."""
    axis.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _panels(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """``{panel: [(model, "teacher" or "student" for the alignment networks, else "", values)]}``."""
    panels: dict[str, list[tuple[str, str, np.ndarray]]] = {}
    for name, logged in curves.items():
        for key, values in logged.items():
            if key in ("train_losses", "ema_fg_dice"):
                # only a plain training's total loss is its segmentation loss; distilled ones log that on its own
                if key == "ema_fg_dice" or "kd/seg_loss" in logged:
                    continue
                key = "seg_loss"
            key, network = key.removeprefix("kd/"), ""
            if key.startswith("act_") and key.endswith(("_teacher", "_student")):
                key, _, network = key.rpartition("_")
            series = np.asarray([math.nan if v is None else v for v in values], dtype=float)
            if np.isfinite(series).any():
                panels.setdefault(key, []).append((name, network, series))
    return panels


def _alignment_phase(logged: Mapping[str, Sequence[float]]) -> tuple[float, float] | None:
    """First and last epoch of alignment training before any distillation term was on."""

    def on(prefixes: tuple[str, ...]) -> np.ndarray:
        lists = [v for k, v in logged.items() if k.startswith(prefixes)]
        values = [np.asarray([math.nan if x is None else x for x in v], dtype=float) for v in lists]
        return np.flatnonzero(np.any([np.isfinite(v) for v in values], axis=0)) if values else np.array([], int)

    aligned, distilled = on(("kd/act_",)), on(("kd/intra", "kd/inter", "kd/cross"))
    if not len(aligned):
        return None
    end = distilled[0] if len(distilled) else aligned[-1] + 1
    return (aligned[0] + 0.5, end + 0.5) if end > aligned[0] else None
