"""Tables of what the CSV's rows hold beside the Dice: HD95, the Dice at the best offset, marks where nothing is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnunet_kd.comparison.analysis.groups import Group
from nnunet_kd.comparison.report.names import Names
from nnunet_kd.comparison.report.render import Table


@dataclass(frozen=True)
class Measures:
    """Means of a group on one dataset over its trainings and cases, NaN without any. ``gain``: of the best Dice over the Dice
    of the same cases. ``marked`` of ``empty`` (training, case) pairs without an annotation were marked."""

    hd95: float
    best_dice: float
    gain: float
    best_offset: float
    marked: int
    empty: int

    @property
    def marked_share(self) -> float:
        return self.marked / self.empty if self.empty else math.nan


def measures(group: Group, dataset: str) -> Measures:
    """What a group's rows say of one dataset beside the Dice."""
    by_column = {column: by_dataset.get(dataset, {}) for column, by_dataset in group.measured.items()}
    best, dice = by_column.get("best_dice", {}), group.valid(dataset)
    marked = group.marked.get(dataset, {})
    gain = _mean([value - dice[key] for key, value in best.items()])
    hd95, best_dice, offset = (_mean(list(by_column.get(c, {}).values())) for c in ("hd95", "best_dice", "best_offset"))
    return Measures(hd95, best_dice, gain, offset, sum(marked.values()), len(marked))


def measure_tables(groups: Sequence[Group], datasets: Sequence[str]) -> dict[str, Table]:
    """Those that any row has, by title."""
    hd95 = (
        "HD95, mean over seeds and cases with an annotation, in mm (pixels where files have no spacing); lower is better. "
        "Where nothing was predicted it is the image's diagonal."
    )
    best = (
        "Dice at the offset of the logits that is best for each case, which nobody knows in practice; in brackets what that "
        "gains over the Dice, and the mean offset (above 0: too little is marked). A lead in Dice that is gone here was a "
        "readier foreground, not a better segmentation."
    )
    empty = (
        "Marked although empty: images without any annotated pixel in which something was predicted, over all seeds. They are "
        "in no Dice and no HD95."
    )
    tables = {
        "Distance of the surfaces": _table(hd95, groups, datasets, lambda m: "" if math.isnan(m.hd95) else f"{m.hd95:.2f}"),
        "Dice at the best offset": _table(best, groups, datasets, _best_cell),
        "Marked although empty": _table(empty, groups, datasets, _marked_cell),
    }
    return {title: t for title, t in tables.items() if t is not None}


def measure_columns(group: Group, dataset: str) -> dict[str, object]:
    """For `--table --csv`: only what there is."""
    m = measures(group, dataset)
    columns: dict[str, object] = {}
    if not math.isnan(m.hd95):
        columns["hd95"] = m.hd95
    if not math.isnan(m.best_dice):
        columns |= {"best_dice": m.best_dice, "best_dice_gain": m.gain, "best_offset": m.best_offset}
    if m.empty:
        columns |= {"empty": m.empty, "marked_although_empty": m.marked, "marked_share": m.marked_share}
    return columns


def _best_cell(m: Measures) -> str:
    return "" if math.isnan(m.best_dice) else f"{m.best_dice:.4f} ({m.gain:+.4f} at {m.best_offset:+.2f})"


def _marked_cell(m: Measures) -> str:
    return f"{m.marked} of {m.empty} ({m.marked_share:.1%})" if m.empty else ""


def _table(caption: str, groups: Sequence[Group], datasets: Sequence[str], cell: Callable[[Measures], str]) -> Table | None:
    names = Names(groups)
    cells = [[cell(measures(g, d)) for d in datasets] for g in groups]
    filled_columns = [i for i in range(len(datasets)) if any(line[i] for line in cells)]
    if not filled_columns:
        return None
    rows = [[*names.cells(g), *(line[i] for i in filled_columns)] for g, line in zip(groups, cells, strict=True) if any(line)]
    return Table(caption, [*names.header, *(datasets[i] for i in filled_columns)], rows, texts=names.texts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
