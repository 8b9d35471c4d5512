"""Plans files: a schedule that fits the machine for the teacher, and a lighter student's plans out of the teacher's.

Student plans keep the teacher's ``data_identifier``, so the student trains on the teacher's preprocessed data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from torch import nn

from nnunet_kd.config.run import SECTION, Schedule, read_config, to_dict
from nnunet_kd.networks.cost import Cost, count_parameters, measure_cost
from nnunet_kd.nnunet_io.cascade import find_previous_stage
from nnunet_kd.nnunet_io.configurations import (
    configurations_of,
    features_of,
    resolved_configuration,
    set_convs,
    set_features,
    set_patch_size,
)
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network, read_model_folder
from nnunet_kd.nnunet_io.teacher import check_compatible, check_patch_size, describe_teacher
from nnunet_kd.utils.environment import NNUNET_FOLDERS, require_environment
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json

TEACHER_PLANS = "nnUNetTeacherPlans"
STUDENT_PLANS = "nnUNetKDPlans"


@dataclass(frozen=True)
class Planned:
    """A written plans file, its name for ``-p``, and the costs of the networks involved (teacher first)."""

    file: Path
    plans_name: str
    plans: dict
    costs: dict[str, Cost]


def preprocessed_folder(dataset: str | int) -> Path:
    """nnUNet_preprocessed/DatasetXXX_NAME for an id or a name."""
    require_environment()
    try:
        # nnU-Net's look-up takes an id as int, or the full name
        name = maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else str(dataset))
    except RuntimeError:
        places = ", ".join(os.environ[n] for n in NNUNET_FOLDERS)
        raise KDError(
            f"dataset {dataset} is unknown to nnU-Net (looked in {places}): convert it first (`nnunet-kd convert`, or a "
            "converter of nnU-Net's)"
        ) from None
    folder = Path(str(nnUNet_preprocessed)) / name
    if not folder.is_dir():
        raise KDError(f"{folder} does not exist: run `nnUNetv2_plan_and_preprocess -d {dataset}` first")
    return folder


def make_schedule(
    iterations: int | None,
    epochs: int | None,
    base: Schedule | None = None,
    cpu_precision: str | None = None,
    initial_lr: float | None = None,
) -> Schedule:
    """A schedule of about ``iterations`` training steps, by default in epochs of about 50 steps (nnU-Net: 1000 x 250)."""
    given = {"cpu_precision": cpu_precision, "initial_lr": initial_lr}
    base = replace(base or Schedule(), **{k: v for k, v in given.items() if v is not None})
    if iterations is None:
        return base if epochs is None else replace(base, epochs=epochs)
    if iterations < 1 or (epochs is not None and epochs < 1):
        raise KDError(f"--iterations {iterations} and --epochs {epochs} must be at least 1")
    epochs = min(epochs or max(1, min(1000, round(iterations / 50))), iterations)
    per_epoch = math.ceil(iterations / epochs)
    validation = max(1, min(50, per_epoch // 5))
    return replace(base, epochs=epochs, iterations_per_epoch=per_epoch, val_iterations_per_epoch=validation)


def plans_name(base: str, seed: int) -> str:
    """nnU-Net's result folders carry the plans name and no seed, so a seed other than 0 is part of the name."""
    return base if seed == 0 else f"{base}_seed{seed}"


def plan_teacher(
    dataset: str | int,
    configuration: str,
    base_plans: str = "nnUNetPlans",
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    features: Sequence[int] | None = None,
    iterations: int | None = None,
    epochs: int | None = None,
    cpu_precision: str | None = None,
    initial_lr: float | None = None,
    seed: int = 0,
    previous_stage: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Planned:
    """Write plans with a schedule (and patch, batch, widths) of their own for a teacher or any plain training.

    Where the patch size changes, the number of stages, strides and kernels are planned again by nnU-Net's own rule. For the
    second stage of a cascade, ``previous_stage`` is the model folder whose predictions it reads.

    Raises:
        KDError: unknown dataset or configuration, impossible sizes, existing plans that differ.
    """
    folder = preprocessed_folder(dataset)
    plans = _read_plans(folder / f"{base_plans}.json", dataset)
    configurations = configurations_of(plans, configuration, folder)
    config = configurations[configuration]
    if patch_size is not None:
        set_patch_size(config, list(patch_size))
    if features is not None:
        set_features(config, list(features))
    if batch_size is not None:
        if batch_size < 1:
            raise KDError(f"--batch-size {batch_size} must be at least 1")
        config["batch_size"] = batch_size
    schedule = make_schedule(iterations, epochs, None, cpu_precision, initial_lr)
    plans["configurations"] = configurations
    plans["plans_name"] = plans_name(name or TEACHER_PLANS, seed)
    plans[SECTION] = {"role": "teacher", "seed": seed, "schedule": to_dict(schedule)}
    plans[SECTION] |= _previous_stage(config, configuration, previous_stage)
    read_config(plans, "student", "nnUNetTrainerScheduled")
    network = _network(plans, configuration, folder)
    cost = measure_cost(network, config["patch_size"])
    return _write(folder, plans, {"teacher": cost}, overwrite)


def student_base(
    dataset: str | int,
    configuration: str,
    teacher: str | Path,
    base_plans: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> tuple[Path, ModelFolder, dict, dict]:
    """What a student's plans start from: preprocessed folder, teacher, a copy of the plans, and their configurations.

    Raises:
        KDError: unknown dataset, a teacher of another one, untrained, or of another configuration.
    """
    folder = preprocessed_folder(dataset)
    model = read_model_folder(teacher)
    if model.plans["dataset_name"] != folder.name:
        raise KDError(
            f"teacher {model.path} was trained on {model.plans['dataset_name']}, not on {folder.name}: name a teacher of the "
            "student's own dataset"
        )
    plans = deepcopy(model.plans) if base_plans is None else _read_plans(folder / f"{base_plans}.json", dataset)
    # the second stage of a cascade may learn from a teacher that reads images alone
    known = configuration in plans["configurations"]
    if model.configuration != configuration and not (
        known and "previous_stage" in resolved_configuration(plans, configuration)
    ):
        raise KDError(
            f"teacher {model.path} is a {model.configuration} model, -c says {configuration}: pass -c {model.configuration} "
            "(for a cascade's second stage, --base-plans PLANS with plans that have it)"
        )
    if not model.trained_folds(checkpoint):
        raise KDError(f"no fold of teacher {model.path} has a {checkpoint}: train the teacher first")
    configurations = configurations_of(plans, configuration, folder)
    return folder, model, plans, configurations


def plan_student(
    dataset: str | int,
    configuration: str,
    teacher: str | Path,
    width: float = 0.25,
    min_features: int = 4,
    features: Sequence[int] | None = None,
    depth: int | None = None,
    convs: int | None = None,
    iterations: int | None = None,
    epochs: int | None = None,
    cpu_precision: str | None = None,
    initial_lr: float | None = None,
    seed: int = 0,
    preset: str | None = None,
    teacher_fold: int | str | list = "same",
    teacher_checkpoint: str = "checkpoint_final.pth",
    base_plans: str | None = None,
    previous_stage: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Planned:
    """Write a lighter student's plans out of a teacher's model folder.

    Args:
        teacher: nnU-Net model folder TRAINER__PLANS__CONFIGURATION; stored relative to nnUNet_results where it lies in it.
        width: factor on the teacher's features per stage, with ``min_features`` as the floor.
        depth: number of stages, counted from the full resolution; by default all of the teacher's.
        convs: convolutions per stage (blocks of a residual encoder); by default as the teacher's.
        preset: named settings; by default the trainer chooses (nnUNetTrainerGKD: "default").
        teacher_fold: "same" as the student's, "all", a number, or a list whose predictions are averaged (logits only).
        base_plans: plans of the same data whose network (of another family or depth, say), patch and batch size the student
            takes instead of the teacher's. ``width`` is a factor on theirs.
        previous_stage: for the second stage of a cascade, the model folder whose predictions the student reads; by default the
            one its teacher read.

    Raises:
        KDError: bad teacher folder, a student as heavy as the teacher, unknown preset, existing plans that differ, a teacher
            that reads other data or cannot read the student's patches.
    """
    if not 0 < width <= 1:
        raise KDError(f"--width {width} must lie in (0, 1]")
    folder, model, plans, configurations = student_base(dataset, configuration, teacher, base_plans, teacher_checkpoint)
    config = configurations[configuration]
    wide = features_of(config)
    if depth is not None and not 2 <= depth <= len(wide):
        raise KDError(f"--depth {depth} must lie in 2 to {len(wide)}, the stages of the plans it starts from")
    if convs is not None:
        set_convs(config, convs)
    set_features(config, list(features) if features else [max(min_features, round(f * width)) for f in wide[:depth]])
    base = model.plans.get(SECTION, {}).get("schedule")
    schedule = make_schedule(iterations, epochs, Schedule(**base) if base else None, cpu_precision, initial_lr)
    settings = describe_teacher(model, _relative_to_results(model.path), teacher_fold, teacher_checkpoint)
    plans["configurations"] = configurations
    plans["plans_name"] = plans_name(name or STUDENT_PLANS, seed)
    plans[SECTION] = {
        "role": "student",
        **({"preset": preset} if preset else {}),
        "seed": seed,
        "schedule": to_dict(schedule),
        "teacher": asdict(settings),
        **_previous_stage(config, configuration, previous_stage, model),
    }
    logits_only = isinstance(teacher_fold, list) or not settings.stages.channels
    read_config(plans, preset or ("kd" if logits_only else "default"), "nnUNetTrainerDistillation")
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    check_compatible(model, settings, plans, configuration, dataset_json)
    student, big = _network(plans, configuration, folder), build_network(model, model.trainer)
    check_patch_size(model, big, config["patch_size"], settings.stages.input_channels)
    if count_parameters(student) >= count_parameters(big):
        raise KDError(
            f"the student ({count_parameters(student):,} parameters) is as heavy as the teacher "
            f"({count_parameters(big):,}): use a smaller --width"
        )
    costs = {
        "teacher": measure_cost(big, config["patch_size"]),
        "student": measure_cost(student, config["patch_size"]),
    }
    return _write(folder, plans, costs, overwrite)


def _read_plans(file: Path, dataset: str | int) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KDError(f"{file} does not exist: run `nnUNetv2_plan_and_preprocess -d {dataset}` first") from None
    except json.JSONDecodeError as error:
        raise KDError(f"{file} is not valid JSON ({error}): plan again with nnUNetv2_plan_and_preprocess") from None


def _previous_stage(
    config: dict, configuration: str, given: str | Path | None, teacher: ModelFolder | None = None
) -> dict[str, str]:
    """The section's entry on the cascade's first stage, if there is one."""
    if config.get("previous_stage") is None:
        if given is not None:
            raise KDError(f"--previous-stage is for the second stage of a cascade, {configuration} is none: leave it out")
        return {}
    return {"previous_stage": _relative_to_results(find_previous_stage(config["previous_stage"], given, teacher))}


def _network(plans: dict, configuration: str, folder: Path) -> nn.Module:
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return build_network(ModelFolder(folder, plans, dataset_json, configuration))


def _relative_to_results(path: Path) -> str:
    results = Path(str(nnUNet_results)).resolve()
    path = path.resolve()
    return str(path.relative_to(results)) if path.is_relative_to(results) else str(path)


def _write(folder: Path, plans: dict, costs: dict[str, Cost], overwrite: bool) -> Planned:
    file = folder / f"{plans['plans_name']}.json"
    if file.exists() and not overwrite:
        trained = sorted(Path(str(nnUNet_results)).glob(f"{escape(folder.name)}/*__{escape(plans['plans_name'])}__*"))
        if trained and json.loads(file.read_text(encoding="utf-8")) != plans:
            raise KDError(
                f"{file} exists with other settings and {trained[0].name} was trained with it: pass --name to keep both, or "
                "--overwrite"
            )
    write_json(file, plans)
    return Planned(file, plans["plans_name"], plans, costs)
