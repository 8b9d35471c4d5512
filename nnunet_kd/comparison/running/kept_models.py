"""The networks that a comparison keeps: exported from a run's training, found again by the run's settings."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_kd.comparison import git
from nnunet_kd.comparison.analysis.costs import KEPT
from nnunet_kd.comparison.planning import Comparison, Run
from nnunet_kd.comparison.running.measure import now
from nnunet_kd.comparison.running.train import RECORD, read_record
from nnunet_kd.config.run import SECTION
from nnunet_kd.deploy.export import export_model
from nnunet_kd.nnunet_io.trained_fold import FINAL, OpenedFolds, TrainedFold
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json


def kept_model(comparison: Comparison, run: Run) -> dict | None:
    """compare.json of the run's exported model, or None if there is none with these settings."""
    kept = read_kept(model_folder(comparison, run))
    fits = kept is not None and kept["config_hash"] == run.config_hash and kept["seed"] == run.seed
    checkpoint = model_folder(comparison, run) / f"fold_{run.fold}" / FINAL
    return kept if fits and checkpoint.is_file() else None


def model_folder(comparison: Comparison, run: Run) -> Path:
    """Where a run's kept network lies, or will."""
    return comparison.settings.models / run.source.name / run.model_name


def keep_model(comparison: Comparison, run: Run, folder: Path) -> dict:
    """Export the run's training in ``folder`` as its kept model; returns its compare.json."""
    s = comparison.settings
    out = model_folder(comparison, run)
    folds = OpenedFolds()  # the checkpoint that is looked at is the one that is exported
    epoch = _last_epoch(run, folds.open(folder, run.fold, FINAL))
    export_model(folder, out, (str(run.fold),), overwrite=True, open_fold=folds.open)
    record = read_record(folder / f"fold_{run.fold}" / RECORD)
    cpu, wall = record["epochs"].get(str(run.plans[SECTION]["schedule"]["epochs"])) or (None, None)
    kept = {
        "method": run.method,
        "seed": run.seed,
        "config_hash": run.config_hash,
        "commit": record["commit"] or git.code_version(),
        "date": now(),
        "device": s.device,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "checkpoint": {"file": FINAL, "epoch": epoch},
        "depends_on": run.resolved,
    }
    write_json(out / KEPT, kept)
    return kept


def _last_epoch(run: Run, trained: TrainedFold) -> int:
    """The epoch of the training's final checkpoint, which must be the schedule's last.

    A comparison chooses no checkpoint: one chosen on a target set would inflate the Dice there. nnU-Net's checkpoint_best (or
    any other) under the final one's name is therefore refused.
    """
    epoch, last = trained.epoch, run.plans[SECTION]["schedule"]["epochs"]
    if epoch != last:
        raise KDError(
            f"{trained.file} holds epoch {epoch} of {last}: only the schedule's last epoch is compared, never a chosen one; "
            "put the file back that the training wrote, or remove its folder to train again"
        )
    return epoch


def read_kept(folder: Path) -> dict | None:
    """compare.json of a kept model, whatever its settings; None if there is none that can be read."""
    try:
        return json.loads((folder / KEPT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # costs.py takes any OSError; here it would train and overwrite the model anew
        return None
