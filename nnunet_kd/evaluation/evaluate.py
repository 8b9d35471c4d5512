"""Models x domains: predict, measure, compare semantic distributions, and collect it all for the report."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.config.run import SECTION
from nnunet_kd.evaluation.domains import Domain, measure_predictions
from nnunet_kd.evaluation.fsd.compare import RunsRequest, check_domains, compare_models, prepare_runs
from nnunet_kd.evaluation.fsd.vector_files import save_vectors
from nnunet_kd.evaluation.predict import check_images, check_readable, make_our_trainers_known, predict_domain, predictor_of
from nnunet_kd.evaluation.report.report import write_measurements
from nnunet_kd.networks.cost import count_flops, count_parameters
from nnunet_kd.nnunet_io.checkpoints import logged_curves
from nnunet_kd.nnunet_io.trained_fold import FINAL, OpenedFolds, TrainedFold
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


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated, and how.

    Args:
        domains: the first one is the home domain; all others are unseen.
        out: folder for predictions and vectors.
        commands, seed, note: for the report. ``seed`` is also that of the resampling.
        bootstrap: resamplings of a distance.
        distances: FSD of the models with MSANs of their own ("own"), of all models with fitted ones ("fit"), or "none".
        fit_steps: training steps of a fit.
        auc: predict with probabilities, for the area under the ROC curve; they are removed when they have been read.
        tolerance: of the surface Dice, in mm, or pixels.
        workers: processes that measure.
    """

    models: Sequence[Model]
    domains: Sequence[Domain]
    out: Path
    fold: str = "0"
    checkpoint: str = FINAL
    device: str = "cpu"
    title: str = "Evaluation"
    commands: Sequence[str] = ()
    seed: int | None = None
    bootstrap: int = 200
    note: str = ""
    distances: str = "own"
    fit_steps: int = 600
    auc: bool = False
    tolerance: float = 1.0
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A model with its checkpoints: the network's, and the training's, which is another where the network is an export."""

    model: Model
    network: TrainedFold
    training: TrainedFold


def evaluate(request: EvaluationRequest) -> dict:
    """Evaluate models on domains and collect the report's data. Each checkpoint is read once.

    Raises:
        KDError: unfit models or domains.
    """
    start = time.time()
    folds = OpenedFolds()
    models = _check(request, folds)
    report = {
        "title": request.title,
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "seed": request.seed,
        "note": request.note,
        "commands": list(request.commands),
        "versions": versions(),
        "models": [],
        "fsd": [],
        "nsd_tolerance": request.tolerance,
    }
    for model in models:
        report["models"].append(_evaluate_model(model, request, folds))
    heaviest = max(m["parameters"] for m in report["models"])
    for entry in report["models"]:
        # an exported student carries no section either, so the role alone would take it for a stock teacher
        if entry["parameters"] < heaviest:
            entry["role"] = "student"
    write_measurements(report, request.out)  # nothing of what follows may cost the hours of before
    if request.distances != "none":
        _add_distances(report, models, request, folds)
    report["seconds"] = time.time() - start
    return report


def _evaluate_model(opened: _Opened, request: EvaluationRequest, folds: OpenedFolds) -> dict:
    """One model's entry of the report: cost, metrics per domain and case, training curves."""
    model, folder, domains = opened.model, opened.network.model, request.domains
    labels = PlansManager(folder.plans).get_label_manager(folder.dataset_json)
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    predictions, timed = model.predictions, []
    if predictions is None:
        predictor = predictor_of([opened.network], request.device, open_fold=folds.open)
        done = {
            d.name: predict_domain(
                predictor,
                d,
                request.out / "predictions" / model.name / d.name,
                f"{model.name} on {d.name}",
                probabilities=request.auc,
            )
            for d in domains
        }
        predictions, timed = {name: p.folder for name, p in done.items()}, list(done.values())
    elif model.cpu_seconds is None:
        first_cases = dataclasses.replace(domains[0], cases=domains[0].cases[:3])
        predictor = predictor_of([opened.network], request.device, open_fold=folds.open)
        with tempfile.TemporaryDirectory() as scratch:
            timed = [predict_domain(predictor, first_cases, Path(scratch), f"time of {model.name}")]
    entry = _describe(opened)
    # the first case pays for warming up; leave it out where there are others
    seconds = [s for p in timed for s in list(p.cpu_seconds.values())[1 if len(p.cpu_seconds) > 1 else 0 :]]
    entry["cpu_seconds_per_case"] = float(np.median(seconds)) if seconds else model.cpu_seconds
    for domain in domains:
        predicted = Path(predictions[domain.name])
        measured = measure_predictions(domain, predicted, classes, request.workers, labels.ignore_label, request.tolerance)
        if request.auc and model.predictions is None:  # large, and read by nobody else
            for case in domain.cases:
                for ending in (".npz", ".pkl"):
                    (predicted / f"{case}{ending}").unlink(missing_ok=True)
        entry["domains"][domain.name] = {
            "dice": measured.summary["dice"],
            "cases": measured.cases,
            "summary": measured.summary,
            "pooled": measured.pooled,
            "unseen": domain.name != domains[0].name,
        }
    return entry


def _add_distances(report: dict, models: Sequence[_Opened], request: EvaluationRequest, folds: OpenedFolds) -> None:
    """FSD rows and the vectors' files. What fails is noted: no reason to lose the predictions' measures."""
    trainings = {m.model.name: m.training for m in models}
    if request.distances == "own":
        groups = [{name: fold} for name, fold in trainings.items() if fold.msans is not None]
    else:
        groups = [trainings]
    source, *targets = request.domains
    seed = request.seed or 0
    asked = RunsRequest(request.distances, steps=request.fit_steps, seed=seed, cache=request.out / "fsd" / "msan")
    report["fsd_vectors"] = {}
    for group in groups:
        try:
            check_domains(source, targets)
            runs = prepare_runs(group, asked, folds.open)
            semantics = compare_models(runs, source, targets, bootstrap=request.bootstrap, seed=seed)
        except KDError as error:  # a teacher that has moved, say
            report["note"] = f"{report['note']} Without the FSD of {', '.join(group)}: {error}.".strip()
            continue
        report["fsd"] += semantics.rows
        report["fsd_vectors"] |= {n: str(f) for n, f in save_vectors(semantics.samples, request.out / "fsd").items()}


def _check(request: EvaluationRequest, folds: OpenedFolds) -> list[_Opened]:
    """The models' checkpoints. Raises KDError for what would otherwise end the evaluation after the first model's hours."""
    _check_names("model", [m.name for m in request.models])
    _check_names("domain", [d.name for d in request.domains])
    make_our_trainers_known()
    models = []
    for model in request.models:
        network = folds.open(model.folder, request.fold, request.checkpoint)
        training = folds.open(model.training, request.fold, request.checkpoint) if model.training else network
        network.network()
        for domain in request.domains:
            check_images(domain, network.model.dataset_json)
        models.append(_Opened(model, network, training))
    for domain in request.domains:
        check_readable(domain)
    return models


def _check_names(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise KDError(f"two {kind}s are called {name}: give each a name of its own")
        if name in (".", "..") or set(name) & set('/\\:*?"<>|'):
            raise KDError(f'{kind} name "{name}" cannot be a folder\'s name: use letters, digits, "_", "-" and "."')


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, for the report."""
    return {p: importlib.metadata.version(p) for p in ("nnunetv2", "torch", "numpy", "scipy")} | {
        "nnunet_kd": importlib.import_module("nnunet_kd").__version__
    }


def _describe(opened: _Opened) -> dict:
    training, folder, network = opened.training, opened.network.model, opened.network.network()
    plans = training.model.plans
    patch = PlansManager(folder.plans).get_configuration(folder.configuration).patch_size
    section = plans.get(SECTION, {})
    role = "teacher" if section.get("role") == "teacher" or SECTION not in plans else "student"
    return {
        "name": opened.model.name,
        "role": role,
        "trainer": training.trainer_name,
        "plans": plans["plans_name"],
        "parameters": count_parameters(network),
        "flops": count_flops(network, patch),
        "seed": section.get("seed"),
        "schedule": section.get("schedule"),
        "description": "",
        "domains": {},
        "curves": logged_curves(training.content),
    }
