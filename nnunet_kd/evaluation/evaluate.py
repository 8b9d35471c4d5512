"""Models x domains: predict, measure, compare semantic distributions, and collect it all for the report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.config.run import SECTION
from nnunet_kd.evaluation.domains import Domain, measure_predictions
from nnunet_kd.evaluation.fsd.compare import check_domains, compare_models, prepare_runs
from nnunet_kd.evaluation.fsd.vector_files import save_vectors
from nnunet_kd.evaluation.fsd.vectors import has_alignment
from nnunet_kd.evaluation.predict import check_images, check_readable, load_predictor, make_our_trainers_known, predict_domain
from nnunet_kd.evaluation.report.report import write_measurements
from nnunet_kd.networks.cost import count_flops, count_parameters
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, logged_curves
from nnunet_kd.nnunet_io.model_folder import ModelFolder, load_network, read_model_folder
from nnunet_kd.utils.errors import KDError


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to evaluate. ``predictions`` (one folder per domain name) skips predicting. The seconds per case are then
    measured on a few cases of the first domain, unless they are given.

    ``training`` is the training folder where ``folder`` is its export: curves, plans and MSANs come from there.
    """

    name: str
    folder: Path
    training: Path | None = None
    predictions: dict[str, Path] | None = None
    cpu_seconds: float | None = None


def evaluate_model(
    model: Model,
    domains: Sequence[Domain],
    out: Path,
    fold: str = "0",
    checkpoint: str = "checkpoint_final.pth",
    device: str = "cpu",
    source: str | None = None,
    auc: bool = False,
    tolerance: float = 1.0,
    workers: int = 1,
) -> dict:
    """One model's entry of the report: cost, metrics per domain and case, training curves.

    Args:
        source: name of the home domain; all others are unseen.
        auc, tolerance, workers: as in `evaluate`.
    """
    folder = read_model_folder(model.folder)
    labels = PlansManager(folder.plans).get_label_manager(folder.dataset_json)
    wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    predictions, timed = model.predictions, []
    if predictions is None:
        predictor = load_predictor(folder.path, (fold,), checkpoint, device)
        done = {
            d.name: predict_domain(
                predictor, d, out / "predictions" / model.name / d.name, f"{model.name} on {d.name}", probabilities=auc
            )
            for d in domains
        }
        predictions, timed = {name: p.folder for name, p in done.items()}, list(done.values())
    elif model.cpu_seconds is None:
        few = dataclasses.replace(domains[0], cases=domains[0].cases[:3])
        with tempfile.TemporaryDirectory() as scratch:
            predictor = load_predictor(folder.path, (fold,), checkpoint, device)
            timed = [predict_domain(predictor, few, Path(scratch), f"time of {model.name}")]
    entry = _describe(model, folder, fold, checkpoint)
    # the first case pays for warming up; leave it out where there are others
    seconds = [s for p in timed for s in list(p.cpu_seconds.values())[1 if len(p.cpu_seconds) > 1 else 0 :]]
    entry["cpu_seconds_per_case"] = float(np.median(seconds)) if seconds else model.cpu_seconds
    for domain in domains:
        folder_of = Path(predictions[domain.name])
        found = measure_predictions(domain, folder_of, wanted, workers, labels.ignore_label, tolerance)
        if auc and model.predictions is None:  # large, and read by nobody else
            for case in domain.cases:
                for ending in (".npz", ".pkl"):
                    (folder_of / f"{case}{ending}").unlink(missing_ok=True)
        entry["domains"][domain.name] = {
            "dice": found.summary["dice"],
            "cases": found.cases,
            "summary": found.summary,
            "pooled": found.pooled,
            "unseen": source is not None and domain.name != source,
        }
    return entry


def evaluate(
    models: Sequence[Model],
    domains: Sequence[Domain],
    out: Path,
    fold: str = "0",
    checkpoint: str = "checkpoint_final.pth",
    device: str = "cpu",
    title: str = "Evaluation",
    commands: Sequence[str] = (),
    seed: int | None = None,
    bootstrap: int = 200,
    note: str = "",
    distances: str = "own",
    auc: bool = False,
    tolerance: float = 1.0,
    workers: int = 1,
) -> dict:
    """Evaluate models on domains (the first domain is the source) and collect the report's data.

    Args:
        distances: FSD of the models with MSANs of their own ("own"), of all models with fitted ones ("fit"), or "none".
        auc: predict with probabilities, for the area under the ROC curve; they are removed when they have been read.
        tolerance: of the surface Dice, in mm, or pixels.
        workers: processes that measure.
    """
    start = time.time()
    _check(models, domains, fold, checkpoint)
    source = domains[0]
    report = {
        "title": title,
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "seed": seed,
        "note": note,
        "commands": list(commands),
        "versions": versions(),
        "models": [],
        "fsd": [],
        "nsd_tolerance": tolerance,
    }
    for model in models:
        report["models"].append(
            evaluate_model(model, domains, out, fold, checkpoint, device, source.name, auc, tolerance, workers)
        )
    heaviest = max(m["parameters"] for m in report["models"])
    for entry in report["models"]:
        # an exported student carries no section either, so the role alone would take it for a stock teacher
        if entry["parameters"] < heaviest:
            entry["role"] = "student"
    write_measurements(report, out)  # nothing of what follows may cost the hours of before
    if distances != "none":
        _add_distances(report, models, domains, out, fold, checkpoint, bootstrap, seed or 0, distances)
    report["seconds"] = time.time() - start
    return report


def _add_distances(
    report: dict,
    models: Sequence[Model],
    domains: Sequence[Domain],
    out: Path,
    fold: str,
    checkpoint: str,
    bootstrap: int,
    seed: int,
    distances: str,
) -> None:
    """FSD rows and the vectors' files. What fails is noted: no reason to lose the predictions' measures."""
    folders = {m.name: m.training or m.folder for m in models}
    if distances == "own":
        groups = [{n: f} for n, f in folders.items() if has_alignment(f, fold, checkpoint)]
    else:
        groups = [folders]
    report["fsd_vectors"] = {}
    for group in groups:
        try:
            check_domains(domains[0], domains[1:])
            runs = prepare_runs(group, distances, fold=fold, checkpoint=checkpoint, seed=seed, cache=out / "fsd" / "msan")
            found = compare_models(runs, domains[0], domains[1:], bootstrap=bootstrap, seed=seed)
        except KDError as error:  # a teacher that has moved, say
            report["note"] = f"{report['note']} Without the FSD of {', '.join(group)}: {error}.".strip()
            continue
        report["fsd"] += found.rows
        report["fsd_vectors"] |= {n: str(f) for n, f in save_vectors(found.samples, out / "fsd").items()}


def _check(models: Sequence[Model], domains: Sequence[Domain], fold: str, checkpoint: str) -> None:
    """Raise KDError for what would otherwise end the evaluation after the first model's hours."""
    _check_names("model", [m.name for m in models])
    _check_names("domain", [d.name for d in domains])
    make_our_trainers_known()
    for model in models:
        folder = read_model_folder(model.folder)
        for part in (folder, read_model_folder(model.training)) if model.training else (folder,):
            load_checkpoint(part.checkpoint(fold, checkpoint))
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's search for the trainer talks
            load_network(folder, fold, checkpoint)
        for domain in domains:
            check_images(domain, folder.dataset_json)
    for domain in domains:
        check_readable(domain)


def _check_names(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise KDError(f"two {kind}s are called {name}: give each a name of its own")
        if name in (".", "..") or set(name) & set('/\\:*?"<>|'):
            raise KDError(f'{kind} name "{name}" cannot be a folder\'s name: use letters, digits, "_", "-" and "."')


def versions() -> dict[str, str]:
    return {p: importlib.metadata.version(p) for p in ("nnunetv2", "torch", "numpy", "scipy")} | {
        "nnunet_kd": importlib.import_module("nnunet_kd").__version__
    }


def _describe(model: Model, folder: ModelFolder, fold: str, checkpoint: str) -> dict:
    training = read_model_folder(model.training) if model.training else folder
    content = load_checkpoint(training.checkpoint(fold, checkpoint))
    make_our_trainers_known()
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's search for the trainer talks
        network = load_network(folder, fold, checkpoint)
    patch = PlansManager(folder.plans).get_configuration(folder.configuration).patch_size
    section = training.plans.get(SECTION, {})
    role = "teacher" if section.get("role") == "teacher" or SECTION not in training.plans else "student"
    return {
        "name": model.name,
        "role": role,
        "trainer": content["trainer_name"],
        "plans": training.plans["plans_name"],
        "parameters": count_parameters(network),
        "flops": count_flops(network, patch),
        "seed": section.get("seed"),
        "schedule": section.get("schedule"),
        "description": "",
        "domains": {},
        "curves": logged_curves(content),
    }
