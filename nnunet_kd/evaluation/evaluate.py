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

from nnunet_kd.checkpoints import load_checkpoint
from nnunet_kd.config import SECTION
from nnunet_kd.cost import measure_cost
from nnunet_kd.errors import KDError
from nnunet_kd.evaluation import fsd
from nnunet_kd.evaluation.domains import Domain, evaluate_predictions
from nnunet_kd.evaluation.metrics import pooled, summarise
from nnunet_kd.evaluation.predict import check_images, check_readable, load_predictor, make_our_trainers_known, predict_domain
from nnunet_kd.evaluation.vectors import has_alignment, load_aligned_run, semantic_vectors
from nnunet_kd.teacher import ModelFolder, load_network, read_model_folder


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
    model: Model, domains: Sequence[Domain], out: Path, fold: str = "0", checkpoint: str = "checkpoint_final.pth",
    device: str = "cpu", source: str | None = None,
) -> dict:  # fmt: skip
    """One model's entry of the report: cost, metrics per domain and case, training curves.

    Args:
        source: name of the home domain; all others are unseen.
    """
    folder = read_model_folder(model.folder)
    labels = PlansManager(folder.plans).get_label_manager(folder.dataset_json)
    wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    predictions, timed = model.predictions, []
    if predictions is None:
        predictor = load_predictor(folder.path, (fold,), checkpoint, device)
        done = {d.name: predict_domain(predictor, d, out / "predictions" / model.name / d.name, f"{model.name} on {d.name}")
                for d in domains}  # fmt: skip
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
        cases = evaluate_predictions(domain, predictions[domain.name], wanted, ignore_label=labels.ignore_label)
        summary = summarise(cases)
        entry["domains"][domain.name] = {
            "dice": summary["dice"], "cases": cases, "summary": summary, "pooled": pooled(cases),
            "unseen": source is not None and domain.name != source,
        }  # fmt: skip
    return entry


def compare_semantics(
    name: str, folder: Path, source: Domain, targets: Sequence[Domain], fold: str = "0",
    checkpoint: str = "checkpoint_final.pth", networks: tuple[str, ...] = ("student", "teacher"), bootstrap: int = 200,
    seed: int = 0,
) -> list[dict]:  # fmt: skip
    """FSD of one trained run: each target domain against the source, per network, and the source split in half as the floor.

    The source's cases are split in two halves; the first is the reference of every comparison, the second shows what
    distance two samples of one and the same domain have.
    """
    _check_names("domain", [source.name, *(t.name for t in targets)])
    if len(source.cases) < 2:
        raise KDError(f"source domain {source.name} has {len(source.cases)} case: FSD needs at least two")
    for domain in (source, *targets):
        check_readable(domain, labelled=False)
    run = load_aligned_run(folder, fold, checkpoint, with_teacher="teacher" in networks)
    found = []
    home, home_cases = semantic_vectors(run, source, networks)
    order = np.random.default_rng(seed).permutation(source.cases)
    reference = set(order[: len(order) // 2])
    rows = np.array([c in reference for c in home_cases])
    owners = np.array(home_cases)
    others = {t.name: semantic_vectors(run, t, networks) for t in targets}
    for network in networks:
        pairs = {f"{source.name} (other half)": (home[network][~rows], owners[~rows])}
        pairs.update({t: (v[network], np.array(c)) for t, (v, c) in others.items()})
        for target, (vectors, cases) in pairs.items():
            try:
                result = fsd.compare(home[network][rows], vectors, owners[rows], cases, seed=seed, bootstrap=bootstrap)
            except ValueError as error:
                raise KDError(f"FSD of {source.name} against {target} ({network}): {error}; give it more cases") from None
            found.append({"model": name, "network": network, "source": source.name, "target": target, **result})
    return found


def evaluate(
    models: Sequence[Model], domains: Sequence[Domain], out: Path, fold: str = "0",
    checkpoint: str = "checkpoint_final.pth", device: str = "cpu", title: str = "Evaluation", commands: Sequence[str] = (),
    seed: int | None = None, bootstrap: int = 200, note: str = "",
) -> dict:  # fmt: skip
    """Evaluate models on domains (the first domain is the source) and collect the report's data."""
    start = time.time()
    _check(models, domains, fold, checkpoint)
    source = domains[0]
    report = {
        "title": title, "created": datetime.datetime.now().isoformat(timespec="seconds"), "seed": seed, "note": note,
        "commands": list(commands), "versions": versions(), "models": [], "fsd": [],
    }  # fmt: skip
    for model in models:
        report["models"].append(evaluate_model(model, domains, out, fold, checkpoint, device, source.name))
    heaviest = max(m["parameters"] for m in report["models"])
    for entry in report["models"]:
        # an exported student carries no section either, so the role alone would take it for a stock teacher
        if entry["parameters"] < heaviest:
            entry["role"] = "student"
    for model in models:
        training = model.training or model.folder
        if has_alignment(training, fold, checkpoint):
            try:
                report["fsd"] += compare_semantics(model.name, training, source, domains[1:], fold, checkpoint,
                                                   bootstrap=bootstrap)  # fmt: skip
            except KDError as error:  # a teacher that has moved, say: no reason to lose the predictions' measures
                report["note"] = f"{report['note']} Without the FSD of {model.name}: {error}.".strip()
    report["seconds"] = time.time() - start
    return report


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
    cost = measure_cost(network, patch, repeats=1)
    curves = {k: [None if _is_nan(x) else float(x) for x in v] for k, v in content.get("logging", {}).items()
              if k in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice") or k.startswith("kd/")}  # fmt: skip
    section = training.plans.get(SECTION, {})
    role = "teacher" if section.get("role") == "teacher" or SECTION not in training.plans else "student"
    return {
        "name": model.name, "role": role, "trainer": content["trainer_name"], "plans": training.plans["plans_name"],
        "parameters": cost.parameters, "flops": cost.flops, "seed": section.get("seed"),
        "schedule": section.get("schedule"), "description": "", "domains": {}, "curves": curves,
    }  # fmt: skip


def _is_nan(x: object) -> bool:
    return not isinstance(x, int | float | np.number) or bool(np.isnan(x))
