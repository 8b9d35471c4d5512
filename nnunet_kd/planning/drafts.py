"""Plans in memory: a teacher's and a student's, checked, with the networks they describe. Nothing is written here.

A student is drafted from a teacher's `ModelFolder`, of which only the plans, dataset.json and the name count: it need not be
trained, nor be on disk.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from torch import nn

from nnunet_kd.config.run import SECTION, Schedule, read_config, to_dict
from nnunet_kd.networks.cost import count_parameters
from nnunet_kd.nnunet_io.cascade import find_previous_stage
from nnunet_kd.nnunet_io.configurations import (
    configurations_of,
    features_of,
    resolved_configuration,
    set_convs,
    set_features,
    set_patch_size,
)
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network
from nnunet_kd.nnunet_io.teacher_folder import check_compatible, check_patch_size, describe_teacher
from nnunet_kd.planning.learning_rate import student_learning_rate
from nnunet_kd.planning.requests import StudentRequest, TeacherRequest
from nnunet_kd.utils.errors import KDError

TEACHER_PLANS = "nnUNetTeacherPlans"
STUDENT_PLANS = "nnUNetKDPlans"


@dataclass(frozen=True)
class Draft:
    """Plans that could be written, the patch size of their networks, and those networks, untrained, by role (teacher first).

    ``rate_reason`` says why the learning rate is what it is.
    """

    plans: dict
    patch_size: list[int]
    networks: dict[str, nn.Module]
    rate_reason: str


@dataclass(frozen=True)
class StudentBase:
    """What a student's plans start from.

    Attributes:
        teacher: its model folder's plans and dataset.json.
        plans: a copy of the plans (the teacher's, or the request's base plans).
        configurations: of these plans, those that the student gets.
        dataset_json: that of the student's preprocessed data.
    """

    teacher: ModelFolder
    plans: dict
    configurations: dict[str, dict]
    dataset_json: dict


def make_schedule(
    iterations: int | None,
    epochs: int | None,
    base: Schedule | None = None,
    cpu_precision: str | None = None,
    initial_lr: float | None = None,
) -> Schedule:
    """A schedule of about ``iterations`` training steps, by default in epochs of about 50 steps (nnU-Net: 1000 x 250)."""
    overrides = {"cpu_precision": cpu_precision, "initial_lr": initial_lr}
    base = replace(base or Schedule(), **{k: v for k, v in overrides.items() if v is not None})
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


def draft_teacher(request: TeacherRequest, base: dict, dataset_json: dict, preprocessed: Path | None = None) -> Draft:
    """A teacher's plans.

    Args:
        base: content of the plans to start from; stays as it is.
        preprocessed: the data set's folder; with it the second stages of a cascade whose data lie there are planned along.

    Raises:
        KDError: unknown configuration, impossible sizes or settings.
    """
    plans = deepcopy(base)
    configurations = configurations_of(plans, request.configuration, preprocessed)
    config = configurations[request.configuration]
    if request.patch_size is not None:
        set_patch_size(config, list(request.patch_size))
    if request.features is not None:
        set_features(config, list(request.features))
    if request.batch_size is not None:
        if request.batch_size < 1:
            raise KDError(f"--batch-size {request.batch_size} must be at least 1")
        config["batch_size"] = request.batch_size
    schedule = make_schedule(request.iterations, request.epochs, None, request.cpu_precision, request.initial_lr)
    plans["configurations"] = configurations
    plans["plans_name"] = plans_name(request.name or TEACHER_PLANS, request.seed)
    plans[SECTION] = {"role": "teacher", "seed": request.seed, "schedule": to_dict(schedule)}
    plans[SECTION] |= _previous_stage(config, request)
    read_config(plans, "student", "nnUNetTrainerScheduled")
    network = _network(plans, dataset_json, request.configuration)
    reason = "nnU-Net's own" if request.initial_lr is None else "as given"
    return Draft(plans, config["patch_size"], {"teacher": network}, reason)


def student_base(
    teacher: ModelFolder, configuration: str, dataset_json: dict, plans: dict | None = None, preprocessed: Path | None = None
) -> StudentBase:
    """What a student of this teacher starts from.

    Args:
        dataset_json: of the student's data.
        plans: other plans of the same data to start from than the teacher's.
        preprocessed: as in `draft_teacher`.

    Raises:
        KDError: a teacher of another configuration.
    """
    plans = deepcopy(teacher.plans if plans is None else plans)
    # the second stage of a cascade may learn from a teacher that reads images alone
    second = configuration in plans["configurations"] and "previous_stage" in resolved_configuration(plans, configuration)
    if teacher.configuration != configuration and not second:
        raise KDError(
            f"teacher {teacher.path} is a {teacher.configuration} model, -c says {configuration}: pass -c "
            f"{teacher.configuration} (for a cascade's second stage, --base-plans PLANS with plans that have it)"
        )
    return StudentBase(teacher, plans, configurations_of(plans, configuration, preprocessed), dataset_json)


def draft_student(request: StudentRequest, base: StudentBase) -> Draft:
    """A lighter student's plans.

    Args:
        request: its ``dataset``, ``teacher`` and ``base_plans`` have become ``base``.
        base: is used up.

    Raises:
        KDError: a student as heavy as the teacher, unknown preset, a teacher that reads other data or cannot read the
            student's patches.
    """
    check_width(request)
    teacher, plans, configurations = base.teacher, base.plans, base.configurations
    config = configurations[request.configuration]
    wide = features_of(config)
    if request.depth is not None and not 2 <= request.depth <= len(wide):
        raise KDError(f"--depth {request.depth} must lie in 2 to {len(wide)}, the stages of the plans it starts from")
    if request.convs is not None:
        set_convs(config, request.convs)
    narrow = [max(request.min_features, round(f * request.width)) for f in wide[: request.depth]]
    set_features(config, list(request.features) if request.features else narrow)
    plans["configurations"] = configurations
    networks = {
        "teacher": build_network(teacher, teacher.trainer),
        "student": _network(plans, base.dataset_json, request.configuration),
    }
    heavy, light = count_parameters(networks["teacher"]), count_parameters(networks["student"])
    usual = Schedule(**teacher.plans.get(SECTION, {}).get("schedule", {}))
    rate, reason = request.initial_lr, "as given"
    if rate is None:
        rate, reason = student_learning_rate(usual.initial_lr, light, heavy)
    schedule = make_schedule(request.iterations, request.epochs, usual, request.cpu_precision, rate)
    folder = relative_to_results(teacher.path)
    settings = describe_teacher(teacher, folder, request.teacher_fold, request.teacher_checkpoint)
    plans["plans_name"] = plans_name(request.name or STUDENT_PLANS, request.seed)
    plans[SECTION] = {
        "role": "student",
        **({"preset": request.preset} if request.preset else {}),
        "seed": request.seed,
        "schedule": to_dict(schedule),
        "teacher": asdict(settings),
        **_previous_stage(config, request, teacher),
    }
    logits_only = isinstance(request.teacher_fold, list) or not settings.stages.channels
    read_config(plans, request.preset or ("kd" if logits_only else "gkd"), "nnUNetTrainerDistillation")
    check_compatible(teacher, settings, plans, request.configuration, base.dataset_json)
    check_patch_size(teacher, networks["teacher"], config["patch_size"], settings.stages.input_channels)
    if light >= heavy:
        raise KDError(f"the student ({light:,} parameters) is as heavy as the teacher ({heavy:,}): use a smaller --width")
    return Draft(plans, config["patch_size"], networks, reason)


def check_width(request: StudentRequest) -> None:
    """Raise KDError for a width that makes no lighter student."""
    if not 0 < request.width <= 1:
        raise KDError(f"--width {request.width} must lie in (0, 1]")


def _previous_stage(
    config: dict, request: TeacherRequest | StudentRequest, teacher: ModelFolder | None = None
) -> dict[str, str]:
    """The section's entry on the cascade's first stage, if there is one."""
    given = request.previous_stage
    if config.get("previous_stage") is None:
        if given is not None:
            raise KDError(
                f"--previous-stage is for the second stage of a cascade, {request.configuration} is none: leave it out"
            )
        return {}
    return {"previous_stage": relative_to_results(find_previous_stage(config["previous_stage"], given, teacher))}


def _network(plans: dict, dataset_json: dict, configuration: str) -> nn.Module:
    return build_network(ModelFolder(Path(plans["dataset_name"]), plans, dataset_json, configuration))


def relative_to_results(path: Path) -> str:
    """A model folder as plans name it: relative to nnUNet_results where it lies in it, else absolute."""
    path = path.resolve()
    if not nnUNet_results.is_set():
        return str(path)
    results = Path(str(nnUNet_results)).resolve()
    return str(path.relative_to(results)) if path.is_relative_to(results) else str(path)
