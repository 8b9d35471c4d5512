"""What a training began with goes on: its recipe, out of its checkpoint.

The recipe is how a student learns: views, MSANs, terms and losses with every default spelled out, in the form of the plans
section "nnunet_kd". Presets may change their meaning and plans may be edited; a training that is continued, validated or
evaluated keeps its own. Schedule, teacher and paths are not part of it: they are the plans'.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_kd.config.run import RECIPE, SECTION, Config, read_config
from nnunet_kd.utils.errors import KDError

# trainers whose preset was another one while checkpoints held no recipe
OLD_PRESETS = {"nnUNetTrainerGKD": "kd+adjusted+mirrored"}
OLD_SINCE = "2026-11-28"  # before, the same name stood for earlier forms, which checkpoints of that time do not tell apart
# trainers that only old folders name, and the settings they stand for
RETIRED = {
    "nnUNetTrainerGKDAdjusted": "adjusted",
    "nnUNetTrainerGKDBalanced": "balanced",
    "nnUNetTrainerGKDDice": "dice",
}
_TODAYS = {"kd+adjusted+mirrored": "nnUNetTrainerKDAdjustedMirrored"}


def recipe_of(config: Config) -> dict[str, Any]:
    """The resolved recipe as plain data, for a checkpoint. :func:`read_config` takes it back."""
    recipe = {key: value for key, value in dataclasses.asdict(config).items() if key in RECIPE and value is not None}
    if config.losses is not None:
        losses: dict[str, dict] = {}
        for loss in config.loss_settings:
            losses.setdefault(loss.place, {})[loss.name] = dataclasses.asdict(loss.options)
        recipe["losses"] = losses
    return recipe


def config_of(checkpoint: Mapping, plans: dict, trainer: type) -> tuple[Config, list[str]]:
    """The configuration that the training of a checkpoint goes on with, and what there is to say about it.

    Args:
        checkpoint: nnU-Net's dictionary, read safely.
        plans: today's plans: schedule, seed and teacher are theirs.
        trainer: the class that trained it, as it is today.

    Returns:
        The configuration, and one line each for: a recipe that is not what preset or trainer mean today; settings of the
        plans that were changed since and are not used.

    Raises:
        KDError: plans whose other parts are wrong.
    """
    name, today = trainer.__name__, getattr(trainer, "preset", None)
    begun = checkpoint.get("init_args", {}).get("plans", {})
    begun = begun if isinstance(begun.get(SECTION), dict) else plans
    recipe, lines = checkpoint.get(SECTION, {}).get("recipe"), []
    if recipe is None:
        old = _old_preset(trainer)
        recipe = _resolved(begun, old, name)
        if recipe is None:  # plans of an older version of this program: those of today
            begun, recipe = plans, recipe_of(read_config(plans, old, name))
        if old != today:
            instead = f" (-tr {_TODAYS[old]} in new trainings)" if old in _TODAYS else ""
            lines.append(
                f'{name} stood for preset "{old}" when this training began, and goes on as that{instead}; right for trainings '
                f"begun since {OLD_SINCE}, the checkpoint does not say"
            )
    else:
        meant = _resolved(begun, today, name)
        if meant is None:
            lines.append(f"{name} would not take the plans of this training today: the recipe of its checkpoint goes on")
        elif changes := difference(_nameless(meant), _nameless(recipe)):
            lines.append(
                f'preset "{recipe["preset"]}" means something else today ({changes}): the recipe of the checkpoint goes on'
            )
    if changes := difference(_recipe_keys(plans), _recipe_keys(begun)):
        lines.append(
            f'"{SECTION}" in the plans was changed since this training began ({changes}): not used, its recipe goes on; to '
            "train with the change, plan under another name (`nnunet-kd plan --name NAME`)"
        )
    return read_config(plans, None, name, recipe), lines


def latest_checkpoint(plans: dict, configuration: str, fold: int | str, trainer: str) -> Path | None:
    """The checkpoint that nnU-Net would go on from, in the folder that it gives a training; None if there is none."""
    folder = Path(os.environ.get("nnUNet_results", "")) / str(plans.get("dataset_name"))
    folder = folder / f"{trainer}__{plans.get('plans_name')}__{configuration}" / f"fold_{fold}"
    files = (folder / f"checkpoint_{which}.pth" for which in ("final", "latest", "best"))
    return next((file for file in files if file.is_file()), None)


def difference(now: dict, before: dict) -> str:
    """The first few settings that differ, for messages: ``schedule.epochs 24 -> 30``. Empty if none does."""
    a, b = dict(_flat(before)), dict(_flat(now))
    changed = [f"{k} {a.get(k, 'none')} -> {b.get(k, 'none')}" for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)]
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _old_preset(trainer: type) -> str | None:
    """What a trainer, or the one that a user's own comes from, stood for before checkpoints held recipes."""
    for cls in trainer.__mro__:
        if "preset" in vars(cls):
            return OLD_PRESETS.get(cls.__name__, vars(cls)["preset"])
    return None


def _resolved(plans: dict, preset: str | None, trainer: str) -> dict | None:
    try:
        return recipe_of(read_config(plans, preset, trainer))
    except KDError:
        return None


def _recipe_keys(plans: dict) -> dict:
    return {key: value for key, value in plans[SECTION].items() if key in RECIPE}


def _nameless(recipe: dict) -> dict:
    return {key: value for key, value in recipe.items() if key != "preset"}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
