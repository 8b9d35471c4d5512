"""What tells the groups of a comparison apart: their names in pictures, the first columns of tables."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_kd.comparison.analysis.groups import Group


class Names:
    """The first columns of every table: what tells the groups at hand apart."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.sources = len({g.source for g in groups}) > 1
        self.lengths = len({g.iterations for g in groups}) > 1
        self.header = ["method", *["source"] * self.sources, "parameters", *["iterations"] * self.lengths, "seeds"]
        self.texts = 1 + self.sources

    def cells(self, g: Group, params: str | None = None, trainings: int | None = None) -> list[str]:
        folds = len({f for _, f in g.trainings})
        seeds = str(len(g.seeds)) + (f" x {folds} folds" if folds > 1 else "") if trainings is None else str(trainings)
        return [g.method, *[g.source] * self.sources, params or f"{g.params:,}", *[f"{g.iterations:,}"] * self.lengths, seeds]


def group_names(groups: Sequence[Group]) -> dict[int, str]:
    """The groups' names by place: the method, and what else it takes to tell them apart."""

    def tagged(g: Group, keys: Sequence[str]) -> str:
        tags = {"source": g.source, "params": f"{g.params:,}", "iterations": f"{g.iterations:,} it."}
        return ", ".join([g.method, *(tags[k] for k in keys)])

    for keys in (
        (),
        ("source",),
        ("params",),
        ("iterations",),
        ("source", "params"),
        ("source", "iterations"),
        ("params", "iterations"),
        ("source", "params", "iterations"),
    ):
        names = [tagged(g, keys) for g in groups]
        if len(set(names)) == len(names):
            break
    return dict(enumerate(names))
