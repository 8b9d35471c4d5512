"""A picture of every logged distillation value over the epochs, beside nnU-Net's progress.png."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np


def plot_terms(values: dict[str, list[float]], file: Path) -> None:
    """One small panel per value; epochs in which a value was off (NaN) are left out."""
    shown = {k: np.asarray(v, dtype=float) for k, v in values.items() if np.isfinite(v).any()}
    if not shown:
        return
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, series) in zip(axes.flat, shown.items(), strict=False):
        axis.axis("on")
        axis.plot(series, color="#1f4e79", linewidth=1.5, marker="." if np.isfinite(series).sum() < 3 else None)
        axis.set_title(name, fontsize=10)
        axis.set_xlim(-0.5, len(series) - 0.5)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("epoch", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    plt.close(figure)
