"""The rows of one run on one domain: predictions of its kept model, and what is measured on them."""

from __future__ import annotations

import datetime
import statistics
import tempfile
from pathlib import Path

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.comparison.analysis.costs import KEPT
from nnunet_kd.comparison.planning import Comparison, Run
from nnunet_kd.evaluation.domains import Domain, evaluate_predictions
from nnunet_kd.evaluation.offsets import CaseLogits, best_offset, dice_curves
from nnunet_kd.evaluation.predict import load_predictor, predict_domain
from nnunet_kd.nnunet_io.trained_fold import FINAL
from nnunet_kd.utils.files import write_json


def measure_run(comparison: Comparison, run: Run, domain: Domain, folder: Path, kept: dict) -> list[dict[str, object]]:
    """Predict the domain's cases with the model in ``folder`` and measure them: the CSV's rows.

    Args:
        kept: the model's compare.json; the CPU seconds per case are added to it, and to the file.
    """
    predictor = load_predictor(folder, (str(run.fold),), FINAL, comparison.settings.device)
    labels = PlansManager(run.plans).get_label_manager(predictor.dataset_json)
    wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    curves: dict[str, dict[str, np.ndarray]] = {}

    def see(case: str, logits: CaseLogits) -> None:
        curves[case] = dice_curves(predictor, domain, case, logits, wanted, labels.ignore_label)

    with tempfile.TemporaryDirectory() as scratch:
        predicted = predict_domain(predictor, domain, Path(scratch), f"{run.label} on {domain.name}", see=see)
        metrics = evaluate_predictions(domain, Path(scratch), wanted, ignore_label=labels.ignore_label)
    # the first case pays for warming up; leave it out where there are others
    seconds = list(predicted.cpu_seconds.values())
    kept.setdefault("cpu_seconds_per_case", {}).setdefault(domain.name, round(statistics.median(seconds[1:] or seconds), 3))
    write_json(folder / KEPT, kept)
    cpu = kept["cpu_seconds"]
    return [
        {
            "method": run.method,
            "seed": run.seed,
            "dataset": domain.name,
            "case": case,
            "dice": f"{values['dice']:.6f}",
            "iterations": run.iterations,
            "device": kept["device"],
            "commit": kept["commit"],
            "config_hash": run.config_hash,
            "params": run.parameters,
            "date": now(),
            "cpu_seconds": "" if cpu is None else f"{cpu:.1f}",
            "source": run.source.name,
            "fold": run.fold if run.fold_named else "",
        }
        | measured_cells(values, curves[case])
        for case, values in metrics.items()
    ]


def measured_cells(values: dict, curves: dict[str, np.ndarray]) -> dict[str, str | int]:
    """What a row holds beside its Dice (`rows.MEASURED`), from `metrics.case_metrics` and the Dice over offsets."""
    each = values.get("labels", {})
    empty = values["tp"] + values["fn"] == 0
    marked = [v["tp"] + v["fp"] for v in (each or {"": values}).values()]
    # regions lie in one another: the largest has what is marked, the sum would count it twice
    nested = any("+" in name for name in each)
    best, at = best_offset(curves, float("nan") if empty else values["dice"])
    return {
        "hd95": f"{values['hd95']:.3f}",
        "truth_empty": int(empty),
        "marked": max(marked) if nested else sum(marked),
        "best_dice": f"{best:.6f}",
        "best_offset": f"{at:g}",
        "dice_per_label": ";".join(f"{name}:{v['dice']:.6f}" for name, v in each.items()),
    }


def now() -> str:
    """The time in a row: ISO 8601, to the second."""
    return datetime.datetime.now().isoformat(timespec="seconds")
