"""`nnunet-kd compare FILE --report OUT.html`: everything known of a comparison on one page that needs no network."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnunet_kd.comparison.analysis.costs import NetworkCost, network_costs
from nnunet_kd.comparison.analysis.differences import Comparison, compare_with
from nnunet_kd.comparison.analysis.groups import Group, collect, datasets_of, interval, is_unseen
from nnunet_kd.comparison.git import in_work_tree
from nnunet_kd.comparison.report import figures as drawn
from nnunet_kd.comparison.report.cases import data_card, overlay, read_fsd, training_curves_of
from nnunet_kd.comparison.report.finding import finding, is_teacher
from nnunet_kd.comparison.report.measures import measure_tables
from nnunet_kd.comparison.report.names import group_names
from nnunet_kd.comparison.report.tables import (
    check_against,
    cost_table,
    deviation,
    differences,
    failed_share,
    failures,
    points,
    tests,
)
from nnunet_kd.comparison.rows import read_rows
from nnunet_kd.comparison.settings import CompareSettings
from nnunet_kd.evaluation.report import figures
from nnunet_kd.evaluation.report.contours import contour_figure
from nnunet_kd.evaluation.report.page import data_uri, template
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_text
from nnunet_kd.utils.progress import progress

FEW = 6  # methods in pictures of cases and training curves, unless --methods says which


def write_comparison(
    settings: CompareSettings,
    out: Path,
    against: str | None = None,
    methods: Sequence[str] | None = None,
    overlays: Sequence[str] | None = None,
    fsd: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        against: method of the critical comparisons; default the first undistilled student, else the first method.
        methods: these only.
        overlays: domains whose best, median and worst case are shown as pictures; ["none"]: none. By default the first home
            domain, unless ``out`` lies in a git work tree.
        fsd: ``METHOD=FILE`` of results of `nnunet-kd fsd -o`.

    Raises:
        KDError: nothing to report, unknown names, files that are no results, pictures asked for that cannot be made.
    """
    if out.suffix != ".html":
        raise KDError(f"--report {out}: name a file that ends in .html")
    groups = collect(settings, methods)
    against = against or _reference(settings, groups)
    check_against(settings, groups, against)
    page = _Page(settings, groups, against)
    distances = read_fsd(settings, fsd, groups, page.datasets)
    wanted = page.pictures_wanted(out, overlays)
    page.add_pictures(wanted, required=overlays is not None)
    with tempfile.TemporaryDirectory() as scratch:
        page.draw(Path(scratch), distances)
    text = page.render(distances, commands)
    write_text(out, text)
    return out


def _reference(settings: CompareSettings, groups: Sequence[Group]) -> str:
    methods = [g.method for g in groups]
    plain = [n for n, m in settings.methods.items() if m.role == "student" and m.preset == "student" and n in methods]
    return (plain or methods)[0]


class _Page:
    """Collects the parts of one page; `render` puts them together."""

    def __init__(self, settings: CompareSettings, groups: list[Group], against: str) -> None:
        self.settings, self.groups, self.against = settings, groups, against
        self.datasets = datasets_of(settings, groups)
        self.names = group_names(groups)
        self.costs: list[NetworkCost] = network_costs(settings, groups)
        self.compared: list[Comparison] = compare_with(settings, groups, self.datasets, against)
        roles = {n: m.role for n, m in settings.methods.items()}
        self.styles = figures.model_styles([(self.names[i], roles.get(g.method, "student")) for i, g in enumerate(groups)])
        self.rows = {}  # domain: rows of pictures
        self.images: list[dict] = []
        self.notes: list[str] = []

    def pictures_wanted(self, out: Path, overlays: Sequence[str] | None) -> list[str]:
        if overlays == ["none"]:
            return []
        for name in overlays or []:
            if name not in self.datasets:
                raise KDError(f"--overlays {name}: the domains with rows are {', '.join(self.datasets)}")
        if in_work_tree(out.absolute().parent):
            why = "pictures of cases do not belong into a repository"
            if overlays:
                raise KDError(f"{out} lies in a git work tree, and {why}: name a file outside it, or --overlays none")
            self.notes.append(f"No cases are shown: the page lies in a git work tree, and {why}.")
            return []
        return list(overlays or (self._of_kind(unseen=False) or self.datasets)[:1])

    def _of_kind(self, unseen: bool) -> list[str]:
        """Domains that are home, or unseen, to any of the groups evaluated there."""
        pairs = ((d, g) for d in self.datasets for g in self.groups if d in g.scores)
        return list(dict.fromkeys(d for d, g in pairs if is_unseen(self.settings, g.source, d) is unseen))

    def chosen(self, dataset: str | None = None) -> dict[int, Group]:
        """At most FEW groups, for pictures: teachers, the reference, then those with most trainings and the highest Dice."""
        candidates = {i: g for i, g in enumerate(self.groups) if dataset is None or g.valid(dataset)}
        rank = [i for i in candidates if is_teacher(self.settings, candidates[i]) and candidates[i].method == "teacher"]
        rank += [i for i in candidates if candidates[i].method == self.against]
        rank += sorted(
            candidates,
            key=lambda i: (
                -len(candidates[i].trainings),
                -sum(candidates[i].mean(d) for d in candidates[i].scores if candidates[i].valid(d)),
            ),
        )
        return {i: candidates[i] for i in sorted(list(dict.fromkeys(rank))[:FEW])}

    def add_pictures(self, domains: Sequence[str], required: bool) -> None:
        measured: dict[int, list[float]] = {}
        for name in domains:
            try:
                cases = overlay(self.settings, name, self.chosen(name), self.names)
            except KDError as error:
                if required:
                    raise
                self.notes.append(f"No cases of {name} are shown: {error}.")
                continue
            self.rows[name] = cases.rows
            for i, seconds in cases.cpu_seconds.items():
                measured.setdefault(i, []).append(seconds)
        self.costs = _with_times(self.groups, self.costs, measured)

    def draw(self, folder: Path, distances: Sequence[dict]) -> None:
        """Every picture there is data for, as data URIs."""
        cases = {
            d: {n: _by_case(g, d) for n, g in zip(self.names.values(), self.groups, strict=True) if g.valid(d)}
            for d in self.datasets
        }
        self._add(
            "cases",
            drawn.case_figure(cases, folder / "cases.png"),
            f"Dice of every case, {len(self.groups)} methods on {', '.join(self.datasets)}; the means are in the table",
            "A dot is one case, its Dice averaged over seeds and folds.",
        )
        if self.compared:
            labels = {i: self.names[self.groups.index(c.group)] for i, c in enumerate(self.compared)}
            self._add(
                "forest",
                drawn.forest_figure(self.compared, labels, self.datasets, folder / "forest.png"),
                f"Difference from {self.against} in Dice points with 95% intervals; the numbers are in the table below",
                f"Right of 0: better than {self.against}.",
            )
        self._draw_pareto(folder)
        if distances:
            shown = [(self.names[r["place"]], r["target"], r["fsd"], r["drop"]) for r in distances]
            self._add(
                "fsd",
                drawn.fsd_figure(shown, self.styles, folder / "fsd.png"),
                f"FSD against the loss of Dice for {len(shown)} pairs of method and target, as in the table below",
                "To the right: less like the source to the network. Upwards: more Dice is lost.",
            )
        for name, rows in progress(self.rows.items(), "pictures", unit="picture"):
            try:
                drawn_rows = contour_figure(rows, folder / "overlay.png")
            except KDError as error:
                self.notes.append(f"No cases of {name} are shown: {error}.")
                continue
            self._add(
                "overlays",
                drawn_rows,
                f"{name}: outlines of the annotation and of the predictions of {', '.join(rows[0].predictions)} on "
                f"{len(rows)} cases",
                name,
            )
        curves = {self.names[i]: c for i, g in self.chosen().items() if (c := training_curves_of(self.settings, g))}
        picture = figures.training_curves(curves, self.styles, folder / "curves.png") if curves else None
        if picture is not None:
            self._add(
                "curves",
                picture,
                f"Training curves of {', '.join(curves)}: losses, pseudo Dice, distillation terms",
                "One panel for each logged value, of each method's first training. Losses of different patch sizes or "
                "with different views cannot be compared.",
            )

    def _draw_pareto(self, folder: Path) -> None:
        unseen = self._of_kind(unseen=True)
        domains = unseen or self.datasets
        dice = {
            d: {
                self.names[i]: g.mean(d)
                for i, g in enumerate(self.groups)
                if g.valid(d) and (not unseen or is_unseen(self.settings, g.source, d))
            }
            for d in domains
        }
        timed = any(c.cpu_seconds_per_case for c in self.costs)
        values = [(c.cpu_seconds_per_case if timed else c.flops and c.flops / 1e6) for c in self.costs]
        label = "CPU seconds per case" if timed else "MFLOPs per patch"
        trained = {self.names[i]: g.cpu_seconds for i, g in enumerate(self.groups) if g.cpu_seconds}
        costs = {label: {self.names[i]: v for i, v in enumerate(values) if v}, "CPU seconds per training": trained}
        self._add(
            "pareto",
            drawn.pareto_figure(dice, costs, self.styles, folder / "pareto.png"),
            f"Dice on {', '.join(domains)} against cost; the numbers are in the tables",
            "Upwards and to the left is better. The grey line joins what no other method beats in both.",
        )

    def _add(self, section: str, file: Path | None, alt: str, caption: str) -> None:
        if file is not None:
            self.images.append({"section": section, "alt": alt, "caption": caption, "uri": data_uri(file)})

    def matrix(self) -> list[dict]:
        """A line per group with a cell per domain, for the template."""
        best = {}
        for d in self.datasets:
            for source in {g.source for g in self.groups}:
                students = [g for g in self.groups if g.source == source and g.valid(d) and not is_teacher(self.settings, g)]
                if students:
                    best[source, d] = max(students, key=lambda g, d=d: g.mean(d))
        lines = []
        for g in self.groups:
            cells = []
            for d in self.datasets:
                if not g.valid(d):
                    cells.append(None)
                    continue
                found, failed = interval(self.settings, g, d), failed_share(g, d, self.settings.failed_below)[0]
                cells.append(
                    {
                        "mean": g.mean(d),
                        "sd": deviation(list(g.means(d).values())),
                        "low": found.low,
                        "high": found.high,
                        "home": not is_unseen(self.settings, g.source, d),
                        "failed": failed,
                        "trainings": len(g.means(d)),
                        "best": best.get((g.source, d)) is g,
                    }
                )
            lines.append({"group": g, "teacher": is_teacher(self.settings, g), "cells": cells})
        return lines

    def render(self, distances: Sequence[dict], commands: Sequence[str]) -> str:
        from nnunet_kd.evaluation.evaluate import versions

        rows = read_rows(self.settings.csv)
        older = [f"{g.method} ({', '.join(g.older)})" for g in self.groups if g.older]
        return template("comparison.html.j2").render(
            title=f"Comparison {self.settings.file.stem}",
            created=datetime.datetime.now().isoformat(" ", "minutes"),
            settings=self.settings,
            yaml=self.settings.file.read_text(encoding="utf-8"),
            against=self.against,
            datasets=self.datasets,
            finding=finding(self.settings, self.groups, self.datasets, self.compared, self.against),
            notes=self.notes,
            matrix=self.matrix(),
            sources=len({g.source for g in self.groups}) > 1,
            lengths=len({g.iterations for g in self.groups}) > 1,
            failures=failures(self.settings, self.groups, self.datasets),
            measures=measure_tables(self.groups, self.datasets),
            costs=cost_table(self.settings, self.groups, self.datasets, self.costs),
            differences=differences(self.compared, self.datasets, self.against) if self.compared else None,
            tests=tests(self.compared, self.against) if self.compared else None,
            points=points,
            cards=[data_card(self.settings, d, self.groups) for d in self.datasets],
            distances=distances,
            images=self.images,
            older=older,
            csv_rows=len(rows),
            last=max(r["date"] for r in rows),
            trained=sorted({r["commit"] for r in rows if r["commit"]}),
            versions=versions(),
            commands=commands,
            few=FEW,
        )


def _by_case(group: Group, dataset: str) -> list[float]:
    """Each case's Dice, averaged over trainings."""
    found: dict[str, list[float]] = {}
    for (_, case), value in group.valid(dataset).items():
        found.setdefault(case, []).append(value)
    return [sum(v) / len(v) for _, v in sorted(found.items())]


def _with_times(groups: Sequence[Group], costs: Sequence[NetworkCost], measured: dict[int, list[float]]) -> list[NetworkCost]:
    """The seconds measured while the pictures were predicted, where none are known; alike networks take alike times."""
    alike: dict[tuple, list[float]] = {}
    for i, seconds in measured.items():
        alike.setdefault((groups[i].params, costs[i].flops), []).extend(seconds)
    completed = []
    for g, c in zip(groups, costs, strict=True):
        seconds = alike.get((g.params, c.flops))
        if c.cpu_seconds_per_case is None and seconds:
            c = dataclasses.replace(c, cpu_seconds_per_case=sum(seconds) / len(seconds))
        completed.append(c)
    return completed
