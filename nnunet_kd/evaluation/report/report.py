"""The report: one HTML page for readers, report.json and report.csv for programs, the pictures as PNG files."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.evaluation.domains import Domain, read_image, read_label, read_map
from nnunet_kd.evaluation.fsd.vector_files import read_vectors
from nnunet_kd.evaluation.metrics.overlap import COUNTS, METRICS
from nnunet_kd.evaluation.metrics.surfaces import ASSD_DEFINITION, HD95_DEFINITION, NSD_DEFINITION
from nnunet_kd.evaluation.report import figures
from nnunet_kd.evaluation.report.contours import CasePicture, best_median_worst, contour_figure
from nnunet_kd.evaluation.report.finding import (
    as_float,
    best_student,
    caveat,
    domain_names,
    finding,
    mean_dice,
    ordered,
    teacher_of,
    unseen_domains,
)
from nnunet_kd.evaluation.report.page import data_uri, template
from nnunet_kd.evaluation.report.vector_map import vector_map
from nnunet_kd.utils.errors import first_line
from nnunet_kd.utils.tables import aligned_table

FSD_TABLES = (  # title, comparisons (fsd/compare.py), what is compared
    (
        "The numbers",
        ("domains", "annotation"),
        "One half of the source's cases against each domain, by the vectors of each network, or of the annotation.",
    ),
    (
        "Teacher against student",
        ("networks",),
        "The two networks' vectors of one domain: they share a space only as far as both alignment networks were tied to the "
        "annotation's vectors.",
    ),
    (
        "Prediction against annotation",
        ("prediction",),
        "Vectors that the semantic autoencoder makes of the annotated and of the predicted label maps: the shapes alone.",
    ),
)
Predictions = Mapping[str, Mapping[str, Path]]


def write_report(
    report: dict,
    folder: Path,
    title: str | None = None,
    domains: Sequence[Domain] = (),
    predictions: Predictions | None = None,
) -> Path:
    """Write report.html (self-contained), report.json, report.csv and the pictures into a folder.

    Args:
        report: as `evaluate.evaluate` returns it. ``title`` and ``figures`` are set in it.
        domains: for the pictures with outlines; without them there are none.
        predictions: ``{model: {domain: folder of label maps}}``; default FOLDER/predictions/MODEL/DOMAIN.

    Returns:
        The path of report.html.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if predictions is None:
        predictions = {m["name"]: {d: folder / "predictions" / m["name"] / d for d in m["domains"]} for m in report["models"]}
    report["title"] = title or report.get("title") or "Evaluation"
    write_measurements(report, folder)  # before the pictures: they may fail, after hours of predicting
    pictures = draw_figures(report, folder, domains, predictions)
    report["figures"] = {p["name"]: p["file"] for p in pictures}
    write_measurements(report, folder)
    for picture in pictures:
        picture["uri"] = data_uri(folder / picture["file"])
    page = folder / "report.html"
    page.write_text(render(report, pictures), encoding="utf-8")
    return page


def write_measurements(report: dict, folder: Path) -> None:
    """report.json and report.csv alone."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_ready(report), indent=2, allow_nan=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    write_csv(report, folder / "report.csv")


def render(report: Mapping, pictures: Sequence[Mapping] = ()) -> str:
    """The HTML page. ``pictures`` as from `draw_figures`, each with its data URI as ``uri``."""
    unseen = unseen_domains(report)
    report = {
        **report,
        "fsd": [{"comparison": "domains", **row} for row in report["fsd"]],
    }  # reports of before have no such key
    return template("report.html.j2", number=number, clock=_clock).render(
        report=report,
        models=ordered(report["models"]),
        domains=domain_names(report),
        unseen=unseen,
        best=best_student(report),
        teacher=teacher_of(report),
        hd95_definition=HD95_DEFINITION,
        assd_definition=ASSD_DEFINITION,
        nsd_definition=NSD_DEFINITION,
        fsd_tables=FSD_TABLES,
        has_auc=any("auc" in d["summary"] for m in report["models"] for d in m["domains"].values()),
        unseen_mean={m["name"]: mean_dice(m, unseen) for m in report["models"]},
        finding=finding(report),
        caveat=caveat(report),
        pictures=pictures,
        has_cldice=any("cldice" in d["summary"] for m in report["models"] for d in m["domains"].values()),
        cases={
            d: dict.fromkeys(c for m in report["models"] for c in m["domains"].get(d, {"cases": ()})["cases"])
            for d in domain_names(report)
        },
        failures=sum(d["summary"]["failures"] for m in report["models"] for d in m["domains"].values()),
    )


def draw_figures(
    report: dict, folder: Path, domains: Sequence[Domain] = (), predictions: Predictions | None = None
) -> list[dict]:
    """Draw every picture there is data for: ``[{"name", "section", "file", "alt", "caption"}]``.

    One that cannot be drawn is left out, with a line on standard error and in the report's note.
    """
    models = ordered(report["models"])
    styles = figures.model_styles([(m["name"], m["role"]) for m in models])
    pictures = []

    def add(section: str, name: str, draw: Callable[[], Path | None], alt: str, caption: str) -> None:
        try:
            file = draw()
        except Exception as error:  # matplotlib raises all kinds, and what was measured is worth more than a picture
            line = f'The picture "{name}" is left out: {first_line(error)}.'
            print(f"nnunet-kd: warning: {line}", file=sys.stderr)
            report["note"] = " ".join(filter(None, [report.get("note", "").replace(line, "").strip(), line]))
            return
        if file is not None:
            pictures.append({"section": section, "name": name, "file": file.name, "alt": alt, "caption": caption})

    dice = {m["name"]: {d: _dice(v["cases"]) for d, v in m["domains"].items()} for m in models}
    add(
        "dice",
        "dice",
        lambda: figures.dice_dots(
            {m: {d: list(c.values()) for d, c in by_domain.items()} for m, by_domain in dice.items()},
            styles,
            folder / "dice.png",
        ),
        f"Dice of every case and the mean, for {', '.join(dice)} on {', '.join(domain_names(report))}; the means are in "
        "the table above",
        "Small dots: one case each. Large marks: the mean, the number in the table.",
    )
    for domain in domains:
        shown = [m["name"] for m in models if domain.name in m["domains"]]
        if shown:
            students = [m["name"] for m in models if m["role"] != "teacher"]
            ranked = _ranked(domain, {n: dice[n][domain.name] for n in shown}, students)

            def outlines(domain: Domain = domain, shown: list = shown, ranked: list = ranked) -> Path:
                rows = _picture_rows(domain, {n: dice[n][domain.name] for n in shown}, ranked, predictions or {})
                return contour_figure(rows, folder / f"outlines_{_slug(domain.name)}.png")

            if ranked:
                add(
                    "pictures",
                    domain.name,
                    outlines,
                    f"{domain.name}: outlines of the annotation and of the predictions of {', '.join(shown)} on "
                    f"{len(ranked)} case(s)",
                    domain.name,
                )
    curves = {m["name"]: m["curves"] for m in models if m.get("curves")}
    add(
        "curves",
        "curves",
        lambda: figures.training_curves(curves, styles, folder / "curves.png"),
        f"Training curves of {', '.join(curves)}: segmentation loss, validation Dice and every distillation term",
        "One panel for each logged value. Losses of different patch sizes or with different views cannot be compared.",
    )
    if report["fsd"]:
        targets = ", ".join(dict.fromkeys(r["target"] for r in report["fsd"]))
        add(
            "fsd",
            "fsd",
            lambda: figures.fsd_bars(report["fsd"], folder / "fsd.png"),
            f"Relative Frechet Semantic Distance from {report['fsd'][0]['source']} to {targets}; the numbers are in the "
            "table below",
            "Grey: how far the raw FSD reaches by chance, when the cases are dealt to the two sets at random. A diamond "
            "beyond the grey speaks for a real difference.",
        )
    vectors = {model: Path(file) for model, file in report.get("fsd_vectors", {}).items() if Path(file).is_file()}
    if vectors:

        def places() -> Path:
            samples = {model: read_vectors(file) for model, file in vectors.items()}
            return vector_map(samples, folder / "vectors.png", seed=report.get("seed") or 0)

        add(
            "fsd",
            "vectors",
            places,
            f"Semantic vectors of {', '.join(vectors)} in two dimensions, coloured by domain",
            "One mark for each patch; colour: domain, shape: case. Distances in t-SNE have no scale.",
        )
    return pictures


def print_table(report: Mapping) -> str:
    """Text table of what was measured: mean Dice by model and domain, parameters, CPU seconds per case."""
    names = domain_names(report)
    rows = [("mean Dice", *names, "parameters", "CPU s/case")]
    for m in ordered(report["models"]):
        dice = [number(m["domains"][d]["dice"]) if d in m["domains"] else "-" for d in names]
        rows.append((m["name"], *dice, f"{m['parameters']:,}", number(m.get("cpu_seconds_per_case"), 2)))
    return aligned_table(rows, rule=True)


def write_csv(report: Mapping, file: Path) -> Path:
    """One row per model, domain and case. Undefined values are empty; several labels add ``dice_LABEL`` and so on."""
    metrics = [*METRICS, *COUNTS]
    rows = []
    for model in ordered(report["models"]):
        for domain, domain_result in model["domains"].items():
            for case, values in domain_result["cases"].items():
                row = {
                    "model": model["name"],
                    "role": model["role"],
                    "domain": domain,
                    "unseen": domain_result["unseen"],
                    "case": case,
                    "failed": values["failed"],
                    "hd95_unit": values["hd95_unit"],
                }
                row |= {k: values[k] for k in metrics if k in values}
                for label, each in values.get("labels", {}).items():
                    row |= {f"{k}_{label}": each[k] for k in metrics if k in each}
                rows.append({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(k for r in rows for k in r)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return file


def json_ready(value: Any) -> Any:
    """The same data for strict JSON: NaN and infinity become null, arrays and tuples lists, paths text."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if math.isnan(as_float(value)) else f"{value:,.{digits}f}"


def _ranked(domain: Domain, dice: Mapping[str, Mapping[str, float]], students: Sequence[str]) -> list[tuple[str, str]]:
    ranked_by = [n for n in dice if n in students] or list(dice)
    # a case that one model has no Dice for has none in the others either: the annotation is empty, or nobody found a thing
    return best_median_worst({c: float(np.mean([dice[n][c] for n in ranked_by])) for c in domain.cases})


def _picture_rows(
    domain: Domain, dice: Mapping[str, Mapping[str, float]], ranked: Sequence[tuple[str, str]], predictions: Predictions
) -> list[CasePicture]:
    rows = []
    for rank, case in ranked:
        maps = {n: read_map(predictions[n][domain.name] / f"{case}{domain.file_ending}")[0] for n in dice}
        rows.append(
            CasePicture(
                f"{rank}: {case}", read_image(domain, case), read_label(domain, case), maps, {n: dice[n][case] for n in dice}
            )
        )
    return rows


def _dice(cases: Mapping[str, Mapping]) -> dict[str, float]:
    return {case: as_float(values["dice"]) for case, values in cases.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
