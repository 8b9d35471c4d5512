"""A comparison's result in words: the best student of every domain against the reference."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_kd.comparison.analysis.differences import Comparison
from nnunet_kd.comparison.analysis.groups import Group, is_unseen
from nnunet_kd.comparison.report.tables import p_value
from nnunet_kd.comparison.settings import CompareSettings


def is_teacher(settings: CompareSettings, group: Group) -> bool:
    """Whether the file says that this group's method is a teacher."""
    method = settings.methods.get(group.method)
    return method is not None and method.role == "teacher"


def finding(
    settings: CompareSettings, groups: Sequence[Group], datasets: Sequence[str], compared: Sequence[Comparison], against: str
) -> list[str]:
    """A sentence per unseen domain (per domain where none is unseen) and source: the best student against the reference."""
    sentences = []
    for source in dict.fromkeys(g.source for g in groups):
        here = [d for d in datasets if any(g.source == source and g.valid(d) for g in groups)]
        for d in [d for d in here if is_unseen(settings, source, d)] or here:
            sentences += _sentence(settings, groups, compared, against, source, d)
    return sentences


def _sentence(
    settings: CompareSettings,
    groups: Sequence[Group],
    compared: Sequence[Comparison],
    against: str,
    source: str,
    dataset: str,
) -> list[str]:
    students = [g for g in groups if g.source == source and g.valid(dataset) and not is_teacher(settings, g)]
    most = max((len(g.means(dataset)) for g in students), default=0)
    students = [g for g in students if len(g.means(dataset)) == most]
    if not students:
        return []
    best = max(students, key=lambda g: g.mean(dataset))
    seeds = f"{most} training{'s' if most > 1 else ''} each"
    text = (
        f"{f'From {source} to' if source else 'On'} {dataset}, {best.method} has the highest mean Dice of the "
        f"{len(students)} students with {seeds}: {best.mean(dataset):.3f}"
    )
    tested = next((c.by_dataset[dataset] for c in compared if c.group is best and dataset in c.by_dataset), None)
    if tested is not None:
        d = tested.difference
        verdict = "the interval holds 0" if d.low <= 0 <= d.high else ""
        limits = "" if d.low != d.low else f"95% interval {100 * d.low:+.2f} to {100 * d.high:+.2f}"
        p = "" if tested.holm != tested.holm else f"Wilcoxon p after Holm {p_value(tested.holm)}"
        statistics = "; ".join(filter(None, (limits, verdict, p))) or "too few cases for an interval"
        text += f", {100 * d.mean:+.2f} points against {against} ({statistics})"
    teachers = [g for g in groups if g.source == source and g.method == "teacher" and g.valid(dataset)]
    text += f"; the teacher's is {teachers[0].mean(dataset):.3f}" if teachers else ""
    return [f"{text}."]
