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
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.config import SECTION, Schedule, read_config, to_dict
from nnunet_kd.cost import Cost, count_parameters, measure_cost
from nnunet_kd.errors import KDError
from nnunet_kd.files import write_json
from nnunet_kd.teacher import ModelFolder, build_network, describe_teacher, read_model_folder

TEACHER_PLANS = "nnUNetTeacherPlans"
STUDENT_PLANS = "nnUNetKDPlans"


@dataclass(frozen=True)
class Planned:
    """A written plans file, its name for ``-p``, and the costs of the networks involved (teacher first)."""

    file: Path
    plans_name: str
    plans: dict
    costs: dict[str, Cost]


def require_environment(*names: str) -> None:
    """Raise KDError for the first nnUNet_* variable that is not set."""
    for name in names or ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        if not os.environ.get(name):
            raise KDError(f"environment variable {name} is not set: export {name}=/path/to/{name}")


def preprocessed_folder(dataset: str | int) -> Path:
    """nnUNet_preprocessed/DatasetXXX_NAME for an id or a name."""
    require_environment()
    try:
        # nnU-Net's look-up takes an id as int, or the full name
        name = maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else str(dataset))
    except RuntimeError:
        places = ", ".join(os.environ[n] for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"))
        raise KDError(
            f"dataset {dataset} is unknown to nnU-Net (looked in {places}): convert it first (`nnunet-kd convert`, or a "
            "converter of nnU-Net's)"
        ) from None
    folder = Path(str(nnUNet_preprocessed)) / name
    if not folder.is_dir():
        raise KDError(f"{folder} does not exist: run `nnUNetv2_plan_and_preprocess -d {dataset}` first")
    return folder


def make_schedule(
    iterations: int | None, epochs: int | None, base: Schedule | None = None, cpu_precision: str | None = None,
    initial_lr: float | None = None,
) -> Schedule:  # fmt: skip
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
    name: str | None = None,
    overwrite: bool = False,
) -> Planned:
    """Write plans with a schedule (and patch, batch, widths) of their own for a teacher or any plain training.

    Where the patch size changes, the number of stages, strides and kernels are planned again by nnU-Net's own rule.

    Raises:
        KDError: unknown dataset or configuration, impossible sizes, existing plans that differ.
    """
    folder = preprocessed_folder(dataset)
    plans = _read_plans(folder / f"{base_plans}.json", dataset)
    config = _flat_configuration(plans, configuration, folder)
    if patch_size is not None:
        _set_patch_size(config, list(patch_size))
    if features is not None:
        _set_features(config, list(features))
    if batch_size is not None:
        if batch_size < 1:
            raise KDError(f"--batch-size {batch_size} must be at least 1")
        config["batch_size"] = batch_size
    schedule = make_schedule(iterations, epochs, None, cpu_precision, initial_lr)
    plans["configurations"] = {configuration: config}
    plans["plans_name"] = plans_name(name or TEACHER_PLANS, seed)
    plans[SECTION] = {"role": "teacher", "seed": seed, "schedule": to_dict(schedule)}
    read_config(plans, "student", "nnUNetTrainerScheduled")
    network = _network(plans, configuration, folder)
    cost = measure_cost(network, config["patch_size"])
    return _write(folder, plans, {"teacher": cost}, overwrite)


def plan_student(
    dataset: str | int,
    configuration: str,
    teacher: str | Path,
    width: float = 0.25,
    min_features: int = 4,
    features: Sequence[int] | None = None,
    iterations: int | None = None,
    epochs: int | None = None,
    cpu_precision: str | None = None,
    initial_lr: float | None = None,
    seed: int = 0,
    preset: str | None = None,
    teacher_fold: int | str | list = "same",
    teacher_checkpoint: str = "checkpoint_final.pth",
    name: str | None = None,
    overwrite: bool = False,
) -> Planned:
    """Write a lighter student's plans out of a teacher's model folder.

    Args:
        teacher: nnU-Net model folder TRAINER__PLANS__CONFIGURATION; stored relative to nnUNet_results where it lies in it.
        width: factor on the teacher's features per stage, with ``min_features`` as the floor.
        preset: named settings; by default the trainer chooses (nnUNetTrainerGKD: "default").
        teacher_fold: "same" as the student's, "all", a number, or a list whose predictions are averaged (logits only).

    Raises:
        KDError: bad teacher folder, a student as heavy as the teacher, unknown preset, existing plans that differ.
    """
    folder = preprocessed_folder(dataset)
    model = read_model_folder(teacher)
    if model.plans["dataset_name"] != folder.name:
        raise KDError(
            f"teacher {model.path} was trained on {model.plans['dataset_name']}, not on {folder.name}: name a teacher of the "
            "student's own dataset"
        )
    if model.configuration != configuration:
        raise KDError(
            f"teacher {model.path} is a {model.configuration} model, -c says {configuration}: pass -c {model.configuration}"
        )
    if not model.trained_folds(teacher_checkpoint):
        raise KDError(f"no fold of teacher {model.path} has a {teacher_checkpoint}: train the teacher first")
    plans = deepcopy(model.plans)
    config = _flat_configuration(plans, configuration, folder)
    if not 0 < width <= 1:
        raise KDError(f"--width {width} must lie in (0, 1]")
    kwargs = config["architecture"]["arch_kwargs"]
    wide = kwargs["features_per_stage"]
    _set_features(config, list(features) if features else [max(min_features, round(f * width)) for f in wide])
    base = model.plans.get(SECTION, {}).get("schedule")
    schedule = make_schedule(iterations, epochs, Schedule(**base) if base else None, cpu_precision, initial_lr)
    settings = describe_teacher(model, _relative_to_results(model), teacher_fold, teacher_checkpoint)
    plans["configurations"] = {configuration: config}
    plans["plans_name"] = plans_name(name or STUDENT_PLANS, seed)
    plans[SECTION] = {
        "role": "student", **({"preset": preset} if preset else {}), "seed": seed,
        "schedule": to_dict(schedule), "teacher": asdict(settings),
    }  # fmt: skip
    read_config(plans, preset or ("kd" if isinstance(teacher_fold, list) else "default"), "nnUNetTrainerDistillation")
    student, big = _network(plans, configuration, folder), build_network(model)
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
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise KDError(f"{file} does not exist: run `nnUNetv2_plan_and_preprocess -d {dataset}` first") from None
    except json.JSONDecodeError as error:
        raise KDError(f"{file} is not valid JSON ({error}): plan again with nnUNetv2_plan_and_preprocess") from None


def _flat_configuration(plans: dict, configuration: str, folder: Path) -> dict:
    """The configuration with its inheritance resolved, so that a changed architecture replaces nothing by accident."""
    have = plans["configurations"]
    if configuration not in have:
        raise KDError(f"configuration {configuration} is not in plans {plans['plans_name']} of {folder.name}: use one of "
                      f"{', '.join(have)}")  # fmt: skip
    config = deepcopy(PlansManager(deepcopy(plans)).get_configuration(configuration).configuration)
    config.pop("inherits_from", None)
    for stage in ("previous_stage", "next_stage"):
        if config.get(stage) is not None:
            if stage == "previous_stage":
                raise KDError(
                    f"configuration {configuration} is the second stage of a cascade, which cannot be planned yet: "
                    "distil 3d_fullres or 2d instead"
                )
            config.pop(stage)
    return config


def _set_patch_size(config: dict, patch_size: list[int]) -> None:
    if len(patch_size) != len(config["patch_size"]):
        raise KDError(f"--patch-size needs {len(config['patch_size'])} numbers for this configuration, got {patch_size}")
    if min(patch_size) < 8:
        raise KDError(f"--patch-size {patch_size} is too small: every axis needs at least 8 pixels")
    kwargs = config["architecture"]["arch_kwargs"]
    # nnU-Net's rule: halve an axis while 4 pixels remain at the bottleneck
    _, strides, kernels, fitted, _ = get_pool_and_conv_props(config["spacing"], patch_size, 4, 999999)
    stages = len(strides)
    old = kwargs["features_per_stage"]
    base, top = old[0], max(old)
    config["patch_size"] = [int(p) for p in fitted]
    kwargs["n_stages"] = stages
    kwargs["strides"] = [[int(i) for i in s] for s in strides]
    kwargs["kernel_sizes"] = [[int(i) for i in k] for k in kernels]
    kwargs["features_per_stage"] = [min(base * 2**i, top) for i in range(stages)]
    for key, length in (("n_conv_per_stage", stages), ("n_blocks_per_stage", stages),
                        ("n_conv_per_stage_decoder", stages - 1)):  # fmt: skip
        if key in kwargs:
            kwargs[key] = (list(kwargs[key]) + [kwargs[key][-1]] * length)[:length]


def _set_features(config: dict, features: list[int]) -> None:
    """Set the features per stage; fewer entries than stages make a shallower network."""
    kwargs = config["architecture"]["arch_kwargs"]
    stages = len(features)
    if not 2 <= stages <= kwargs["n_stages"] or min(features) < 1:
        raise KDError(f"features {features}: give 2 to {kwargs['n_stages']} positive numbers, one per stage")
    kwargs["n_stages"] = stages
    kwargs["features_per_stage"] = [int(f) for f in features]
    for key in ("strides", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage"):
        if key in kwargs:
            kwargs[key] = kwargs[key][:stages]
    # the decoder's list starts at the bottleneck: keep the entries of the remaining, higher-resolution stages
    kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][-(stages - 1) :]


def _network(plans: dict, configuration: str, folder: Path) -> nn.Module:
    dataset_json = json.loads((folder / "dataset.json").read_text())
    return build_network(ModelFolder(folder, plans, dataset_json, configuration))


def _relative_to_results(model: ModelFolder) -> str:
    results = Path(str(nnUNet_results)).resolve()
    path = model.path.resolve()
    return str(path.relative_to(results)) if path.is_relative_to(results) else str(path)


def _write(folder: Path, plans: dict, costs: dict[str, Cost], overwrite: bool) -> Planned:
    file = folder / f"{plans['plans_name']}.json"
    if file.exists() and not overwrite:
        trained = sorted(Path(str(nnUNet_results)).glob(f"{folder.name}/*__{plans['plans_name']}__*"))
        if trained and json.loads(file.read_text()) != plans:
            raise KDError(
                f"{file} exists with other settings and {trained[0].name} was trained with it: pass --name to keep both, or "
                "--overwrite"
            )
    write_json(file, plans)
    return Planned(file, plans["plans_name"], plans, costs)
