"""What a comparison's report shows beside the CSV: data cards, training curves, distances, and cases as pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path

import numpy as np

from nnunet_kd.comparison.analysis.costs import kept_models
from nnunet_kd.comparison.analysis.groups import Group, is_unseen
from nnunet_kd.comparison.settings import CompareSettings, slug
from nnunet_kd.evaluation.domains import Domain, parse_domain, read_image, read_label, read_map
from nnunet_kd.evaluation.report.contours import CasePicture, best_median_worst
from nnunet_kd.nnunet_io.trained_fold import FINAL
from nnunet_kd.utils.environment import nnunet_folder
from nnunet_kd.utils.errors import KDError

LOOKED_AT = 20  # cases whose size a data card gives


@dataclasses.dataclass(frozen=True)
class Overlay:
    """One domain's rows of pictures, and the CPU seconds per case of the groups that predicted them (by place)."""

    rows: list[CasePicture]
    cpu_seconds: dict[int, float]


def domain_of(settings: CompareSettings, name: str, cases: Sequence[str]) -> Domain:
    """A domain of the file with those of the CSV's cases that are at hand.

    Raises:
        KDError: not in the file, nnUNet_raw is not set, or no case is there.
    """
    if name not in settings.domains:
        raise KDError(f"domain {name} is not in {settings.file}: known are {', '.join(settings.domains)}")
    domain = parse_domain(f"{name}={settings.domains[name].domain}", nnunet_folder("nnUNet_raw"))
    present_cases = [c for c in domain.cases if c in set(cases)]
    if not present_cases:
        raise KDError(f"domain {name}: none of the cases with rows is in {domain.labels}: convert the data set as it was then")
    return dataclasses.replace(domain, cases=present_cases)


def data_card(settings: CompareSettings, name: str, groups: Sequence[Group]) -> dict[str, str]:
    """Cases, image sizes, spacing, licence and origin of a domain, as far as they are at hand."""
    cases = sorted({case for g in groups for _, case in g.scores.get(name, {})})
    trained = [g.source for g in groups if name in g.scores and not is_unseen(settings, g.source, name)]
    card = {
        "domain": name,
        "place": settings.domains[name].domain if name in settings.domains else "",
        "kind": "home" if trained else "unseen",
        "cases": str(len(cases)),
        "size": "",
        "spacing": "",
        "labels": "",
        "licence": "",
        "origin": "",
    }
    if settings.sources and trained:
        card["kind"] = f"home of {', '.join(dict.fromkeys(trained))}"
    try:
        domain = domain_of(settings, name, cases)
        maps = [read_map(domain.labels / f"{c}{domain.file_ending}") for c in domain.cases[:LOOKED_AT]]
    except KDError as error:
        return card | {"origin": f"not at hand: {error}"}
    card["size"] = _span([m.shape for m, _ in maps], " x ")
    spacings = [s for _, s in maps if s is not None]
    card["spacing"] = f"{_span(spacings, ' x ', '{:.3g}')} mm" if spacings else "none in the files"
    card |= {"labels": f"{np.mean([(m > 0).mean() for m, _ in maps]):.1%} foreground"}
    with contextlib.suppress(OSError, ValueError):
        about = json.loads((domain.images.parent / "dataset.json").read_text(encoding="utf-8"))
        card["licence"] = str(about.get("licence") or about.get("license") or "")
        card["origin"] = str(about.get("reference") or about.get("description") or "")
    return card


def _span(values: Sequence[Sequence[float]], join: str, form: str = "{}") -> str:
    """``480-512 x 512`` of several sizes."""
    parts = []
    for low, high in zip(np.min(values, 0), np.max(values, 0), strict=True):
        texts = [form.format(v) for v in (low, high)]
        parts.append(texts[0] if texts[0] == texts[1] else "-".join(texts))
    return join.join(parts)


def training_curves_of(settings: CompareSettings, group: Group) -> dict[str, list[float | None]]:
    """What nnU-Net's folder of the group's first training logged; empty where it is not at hand."""
    from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, logged_curves

    results = os.environ.get("nnUNet_results")
    source = settings.all_sources.get(group.source)
    if not results or source is None:
        return {}
    seed, fold = group.trainings[0]
    ending = f"{f'_seed{seed}' if seed else ''}__{escape(settings.configuration)}"
    names = [f"*__KD_{slug(group.method)}_*_{h}{ending}" for h in sorted(group.hashes)]
    names += [f"*__nnUNetTeacherPlans{ending}"] * (group.method == "teacher")
    for name in names:
        for file in sorted(Path(results).glob(f"Dataset{source.dataset:03d}_*/{name}/fold_{fold}/checkpoint_final.pth")):
            try:
                checkpoint = load_checkpoint(file)
                schedule = json.loads((file.parents[1] / "plans.json").read_text(encoding="utf-8"))["nnunet_kd"]["schedule"]
            except (KDError, OSError, ValueError, KeyError):
                continue
            if schedule["epochs"] * schedule["iterations_per_epoch"] == group.iterations:
                return logged_curves(checkpoint)
    return {}


def read_fsd(settings: CompareSettings, texts: Sequence[str], groups: Sequence[Group], datasets: Sequence[str]) -> list[dict]:
    """``METHOD=FILE`` of results of `nnunet-kd fsd -o`, as rows with method, network, target, FSD and Dice points lost.
    ``place``: the group's place among all.

    The student's network belongs to METHOD, the teacher's to the method called teacher.

    Raises:
        KDError: a method without rows, a file that is no such result, or none of its targets among the domains.
    """
    fsd_rows = []
    for text in texts:
        method, _, place = text.partition("=")
        if not method or not place:
            raise KDError(f'--fsd "{text}" must read METHOD=FILE')
        if method not in {g.method for g in groups}:
            known = ", ".join(dict.fromkeys(g.method for g in groups))
            raise KDError(f"--fsd {text}: method {method} has no rows, known are {known}")
        rows_of_file = [
            row for entry in _fsd_entries(Path(place)) if (row := _fsd_row(settings, method, entry, groups)) is not None
        ]
        if not rows_of_file:
            raise KDError(f"--fsd {text}: none of its sources and targets are domains with rows ({', '.join(datasets)})")
        fsd_rows += rows_of_file
    return fsd_rows


def _fsd_entries(file: Path) -> list[dict]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["fsd"]
        for entry in entries:
            entry["network"], entry["source"], entry["target"], entry["relative"]  # noqa: B018
        return entries
    except FileNotFoundError:
        raise KDError(f"{file} does not exist: make it with `nnunet-kd fsd ... -o {file}`") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise KDError(f"{file} is no result of `nnunet-kd fsd -o`: make it again") from None


def _fsd_row(settings: CompareSettings, method: str, entry: Mapping, groups: Sequence[Group]) -> dict | None:
    if entry.get("comparison", "domains") != "domains":
        return None
    name = method if entry["network"] == "student" else "teacher"
    matching = [g for g in groups if g.method == name and entry["source"] in g.scores and entry["target"] in g.scores]
    group = next((g for g in matching if not is_unseen(settings, g.source, entry["source"])), matching[0] if matching else None)
    value = entry.get("relative_extrapolated")
    value = entry["relative"] if value is None else value
    if group is None or value is None:
        return None
    drop = 100 * (group.mean(entry["source"]) - group.mean(entry["target"]))
    return {
        "method": name,
        "network": entry["network"],
        "source": entry["source"],
        "target": entry["target"],
        "place": groups.index(group),
        "fsd": float(value),
        "drop": drop,
    }


def overlay(settings: CompareSettings, name: str, groups: Mapping[int, Group], labels: Mapping[int, str]) -> Overlay:
    """Best, median and worst case of a domain by the groups' mean Dice, predicted with each group's first kept model.

    Args:
        groups: by their place among all; ``labels`` are their names in the picture.

    Raises:
        KDError: data or models are not at hand.
    """
    from nnunet_kd.evaluation.predict import load_predictor, predict_domain

    shown = {i: g for i, g in groups.items() if g.valid(name)}
    chosen = {}
    for i, g in shown.items():
        model = next((m for m in kept_models(settings, g) if any(t == m[2] for t, _ in g.valid(name))), None)
        if model is None:
            raise KDError(f"no kept model of {g.method} in {settings.models}: copy the folder there, or leave the pictures out")
        chosen[i] = model
    dice = {i: {case: v for (t, case), v in shown[i].valid(name).items() if t == chosen[i][2]} for i in shown}
    common = sorted(set.intersection(*(set(d) for d in dice.values()))) if dice else []
    domain = domain_of(settings, name, common)
    mean = {c: float(np.mean([d[c] for d in dice.values()])) for c in common if c in domain.cases}
    if not mean:
        raise KDError(f"domain {name} has no case that all the chosen methods have rows for")
    ranked = best_median_worst(mean)
    domain = dataclasses.replace(domain, cases=[case for _, case in ranked])
    maps: dict[str, dict[str, np.ndarray]] = {case: {} for case in domain.cases}
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        for i, (folder, _, (_, fold)) in chosen.items():
            predictor = load_predictor(folder, (str(fold),), FINAL, settings.device)
            done = predict_domain(predictor, domain, Path(scratch, str(i)), f"{labels[i]} on {name}")
            for case in domain.cases:
                maps[case][labels[i]] = read_map(Path(scratch, str(i), f"{case}{domain.file_ending}"))[0]
            times = list(done.cpu_seconds.values())  # the first case pays for warming up
            seconds[i] = statistics.median(times[1:] or times)
        rows = [
            CasePicture(
                f"{rank}: {case}",
                read_image(domain, case),
                read_label(domain, case),
                maps[case],
                {labels[i]: dice[i][case] for i in shown},
            )
            for rank, case in ranked
        ]
    return Overlay(rows, seconds)
