"""The report: one HTML page for readers, report.json and report.csv for programs, the pictures as PNG files."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunet_kd.evaluation import figures
from nnunet_kd.evaluation.domains import Domain, read_image, read_label, read_map
from nnunet_kd.evaluation.finding import best_student, caveat, domain_names, finding, mean_dice, ordered, teacher_of, unseen_domains
from nnunet_kd.evaluation.metrics import COUNTS, HD95_DEFINITION, METRICS


def write_report(
    report: dict,
    folder: Path,
    title: str | None = None,
    domains: Sequence[Domain] = (),
    predictions: Mapping[str, Mapping[str, Path]] | None = None,
) -> Path:
    """Write report.html (self-contained), report.json, report.csv and the pictures into a folder.

    Args:
        report: as `evaluate.evaluate` returns it. ``title`` and ``figures`` are set in it.
        domains: for the pictures with outlines; without them there are none.
        predictions: ``{model: {domain: folder of label maps}}``; default FOLDER/predictions/MODEL/DOMAIN.

    Returns:
        The path of report.html.

    Raises:
        KDError: an image, label or prediction for the pictures is missing or unreadable.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report["title"] = title or report.get("title") or "Evaluation"
    report["figures"] = {}
    pictures = draw_figures(report, folder, domains, predictions)
    report["figures"] = {p["name"]: p["file"] for p in pictures}
    _write_text(folder / "report.json", json.dumps(json_ready(report), indent=2, allow_nan=False) + "\n")
    write_csv(report, folder / "report.csv")
    for picture in pictures:
        data = base64.b64encode((folder / picture["file"]).read_bytes()).decode("ascii")
        picture["uri"] = f"data:image/png;base64,{data}"
    _write_text(folder / "report.html", render(report, pictures))
    return folder / "report.html"


def render(report: dict, pictures: Sequence[Mapping] = ()) -> str:
    """The HTML page. ``pictures`` as from `draw_figures`, each with its data URI in ``uri``."""
    environment = Environment(
        loader=PackageLoader("nnunet_kd.evaluation"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=_number, large=_large, clock=_clock)
    names = domain_names(report)
    unseen = [d for d in names if any(m["domains"].get(d, {}).get("unseen") for m in report["models"])]
    return environment.get_template("report.html.j2").render(
        report=report, models=_ordered(report["models"]), domains=names, unseen=unseen, best=best_student(report),
        teacher=_teacher(report), unseen_mean={m["name"]: mean_dice(m, unseen) for m in report["models"]},
        finding=finding(report), caveat=caveat(report), pictures=pictures, hd95_definition=HD95_DEFINITION,
        unit=_unit(report), has_cldice=any("cldice" in d["summary"] for m in report["models"] for d in m["domains"].values()),
        cases={d: list(next(m for m in report["models"] if d in m["domains"])["domains"][d]["cases"]) for d in names},
    )  # fmt: skip


def draw_figures(
    report: dict,
    folder: Path,
    domains: Sequence[Domain] = (),
    predictions: Mapping[str, Mapping[str, Path]] | None = None,
) -> list[dict]:
    """Draw every picture the report has data for: ``[{"name", "section", "file", "alt", "caption"}]``."""
    models = _ordered(report["models"])
    styles = figures.model_styles([(m["name"], m["role"]) for m in models])
    found = []

    def add(section: str, name: str, file: Path | None, alt: str, caption: str) -> None:
        if file is not None:
            found.append({"section": section, "name": name, "file": file.name, "alt": alt, "caption": caption})

    dice = {m["name"]: {d: [c["dice"] for c in v["cases"].values()] for d, v in m["domains"].items()} for m in models}
    add("dice", "dice", figures.dice_dots(dice, styles, folder / "dice.png"),
        f"Dice of every case and its mean for {', '.join(dice)} on {', '.join(domain_names(report))}",
        "Small dots: one case each. Large marks: their mean, the number in the table.")  # fmt: skip
    for domain in domains:
        shown = [m for m in models if domain.name in m["domains"]]
        if shown:
            rows = _picture_rows(domain, shown, predictions or {}, folder)
            add("pictures", domain.name, figures.contour_figure(rows, folder / f"outlines_{_slug(domain.name)}.png"),
                f"{domain.name}: outlines of annotation and prediction of {', '.join(m['name'] for m in shown)} on "
                f"{len(rows)} cases", "Cases by the students' mean Dice. Enlarged: organs whole, thin structures where the "
                "models err most.")  # fmt: skip
    curves = {m["name"]: m["curves"] for m in models if m.get("curves")}
    add("curves", "curves", figures.training_curves(curves, styles, folder / "curves.png"),
        f"Training curves of {', '.join(curves)}: segmentation loss, validation Dice and every distillation term",
        "Every value that was logged, one panel each. The training's segmentation loss is nnU-Net's own, on the images the "
        "model was trained with; losses of different patches or views are not comparable between models.")  # fmt: skip
    if report["fsd"]:
        targets = dict.fromkeys(r["target"] for r in report["fsd"])
        add("fsd", "fsd", figures.fsd_bars(report["fsd"], folder / "fsd.png"),
            f"Relative Frechet Semantic Distance from {report['fsd'][0]['source']} to {', '.join(targets)}",
            "Grey: how far the raw FSD of one and the same domain reaches by chance, when cases are dealt to the two sets at "
            "random. A diamond beyond it speaks for a real difference.")  # fmt: skip
    return found


def print_table(report: dict) -> str:
    """Text table of what was measured: mean Dice by model and domain, parameters, CPU seconds per case."""
    names = domain_names(report)
    rows = [("model", *names, "parameters", "CPU s/case")]
    for m in _ordered(report["models"]):
        dice = [_number(m["domains"][d]["dice"]) if d in m["domains"] else "-" for d in names]
        rows.append((m["name"], *dice, f"{m['parameters']:,}", _number(m.get("cpu_seconds_per_case"), 2)))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def write_csv(report: dict, file: Path) -> Path:
    """One row per model, domain and case. Undefined values are empty; labels have ``dice_LABEL`` and so on."""
    metrics = [*METRICS, *COUNTS]
    rows = []
    for model in _ordered(report["models"]):
        for domain, found in model["domains"].items():
            for case, values in found["cases"].items():
                row = {"model": model["name"], "role": model["role"], "domain": domain, "unseen": found["unseen"],
                       "case": case, "failed": values["failed"], "hd95_unit": values["hd95_unit"]}  # fmt: skip
                row |= {k: values[k] for k in metrics if k in values}
                for label, each in values.get("labels", {}).items():
                    row |= {f"{k}_{label}": each[k] for k in metrics if k in each}
                rows.append({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(k for r in rows for k in r)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return file


def json_ready(value):
    """The same data for strict JSON: NaN and infinity become null, arrays lists, paths text."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
