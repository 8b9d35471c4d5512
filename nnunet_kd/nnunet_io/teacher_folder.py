"""Trained nnU-Net model folders as one frozen teacher: strict, fold-matched, safely loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.config.run import SECTION, Teacher, TeacherStages
from nnunet_kd.networks.stages import StageTable, stage_table
from nnunet_kd.networks.teacher import FrozenTeacher, TeacherEnsemble
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network, model_path
from nnunet_kd.nnunet_io.trained_fold import OpenFold, TrainedFold
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.errors import KDError, NotSupported, first_line


def describe_teacher(
    model: ModelFolder, folder: str, fold: int | str | list = "same", checkpoint: str = "checkpoint_final.pth"
) -> Teacher:
    """The "teacher" part of the student's plans, stage table included, read without any trained weights."""
    network = build_network(model, model.trainer)
    try:
        table = stage_table(network)
    except NotSupported:  # fine for those who read its logits only
        table = StageTable(type(network).__name__, (), ())
    manager = PlansManager(model.plans)
    stages = TeacherStages(
        family=table.family,
        channels=list(table.channels),
        strides=[list(s) for s in table.strides],
        input_channels=determine_num_input_channels(
            manager, manager.get_configuration(model.configuration), model.dataset_json
        ),
        outputs=manager.get_label_manager(model.dataset_json).num_segmentation_heads,
        parameters=sum(p.numel() for p in network.parameters()),
    )
    return Teacher(folder, model.configuration, stages, model.plans_hash, fold, checkpoint)


def load_teacher(
    settings: Teacher,
    student_fold: int | str,
    student_plans: dict,
    student_configuration: str,
    dataset_json: dict,
    open_fold: OpenFold = TrainedFold.open,
) -> FrozenTeacher:
    """Load the teacher that the student's plans name and check that it fits the student's data.

    Args:
        settings: section "nnunet_kd.teacher".
        student_fold: ``"same"`` in the settings takes the teacher's same fold: another fold's teacher has seen the
            student's validation cases. Several folds are averaged.
        open_fold: how the teacher's folds are opened.

    Raises:
        KDError: missing or foreign files, another dataset, other labels, channels, spacing or plans.
    """
    first, *others = teacher_folds(settings, student_fold)
    folds = [open_fold(settings.folder, first, settings.checkpoint)]
    model = folds[0].model
    folds += [open_fold(model, fold, settings.checkpoint) for fold in others]
    check_compatible(model, settings, student_plans, student_configuration, dataset_json)
    networks = [fold.network() for fold in folds]
    _check_stages(model, settings, networks[0])
    patch = PlansManager(student_plans).get_configuration(student_configuration).patch_size
    check_patch_size(model, networks[0], patch, settings.stages.input_channels)
    axes = folds[0].mirror_axes  # the folds have one trainer, and so the same
    if len(networks) == 1:
        return FrozenTeacher(networks[0], axes)
    return TeacherEnsemble(networks, PlansManager(model.plans).get_label_manager(dataset_json).has_regions, axes)


def _check_stages(model: ModelFolder, settings: Teacher, network: nn.Module) -> None:
    stages = settings.stages
    if not stages.channels:
        return
    planned, trained = StageTable.from_lists(stages.family, stages.channels, stages.strides), stage_table(network)
    if (planned.channels, planned.strides) != (trained.channels, trained.strides):
        raise KDError(
            f'"{SECTION}.teacher.stages" says channels {list(planned.channels)} and strides {list(planned.strides)}, teacher '
            f"{model.path} has {list(trained.channels)} and {list(trained.strides)}: plan the student again with "
            "`nnunet-kd plan`"
        )


def teacher_files(settings: Teacher, student_fold: int | str) -> list[Path]:
    """The checkpoints of the folds that teach."""
    path = model_path(settings.folder)
    return [path / f"fold_{fold}" / settings.checkpoint for fold in teacher_folds(settings, student_fold)]


def teacher_folds(settings: Teacher, student_fold: int | str) -> list[int | str]:
    """The teacher's folds, "same" replaced by the student's and none twice."""
    folds = [student_fold if fold == "same" else fold for fold in settings.folds]
    return list({str(fold): fold for fold in folds}.values())


def check_patch_size(model: ModelFolder, network: nn.Module, patch_size: Sequence[int], channels: int) -> None:
    """Raise KDError unless the teacher's network can read patches of the student's size."""
    trained_on = PlansManager(model.plans).get_configuration(model.configuration).patch_size
    if list(patch_size) == list(trained_on):
        return
    try:
        with torch.no_grad():
            size = network.eval()(torch.zeros(1, channels, *patch_size)).shape[2:]
        if list(size) != list(patch_size):  # a transformer drops what is left over
            raise RuntimeError(f"it predicts {list(size)}")
    except (RuntimeError, AssertionError) as error:
        raise KDError(
            f"teacher {model.path} was trained on patches of {list(trained_on)} and cannot read the student's of "
            f"{list(patch_size)} ({first_line(error)}): a U-Net needs multiples of its strides, a transformer its own size; "
            "plan the student with such a patch"
        ) from None


def check_compatible(
    model: ModelFolder, settings: Teacher, student_plans: dict, student_configuration: str, dataset_json: dict
) -> None:
    """Raise KDError unless teacher and student read the same input and write the same labels."""
    where = f"teacher {model.path}"
    if model.plans["dataset_name"] != student_plans["dataset_name"]:
        raise KDError(
            f"{where} was trained on {model.plans['dataset_name']}, the student's plans are of "
            f"{student_plans['dataset_name']}: plan the student from a teacher of its own dataset"
        )
    for what, read in (
        ("labels", lambda content: content["labels"]),
        ("regions", lambda content: content.get("regions_class_order")),
        ("input channels", channel_names),
    ):
        theirs, ours = read(model.dataset_json), read(dataset_json)
        if theirs != ours:
            raise KDError(
                f"{where} has {what} {theirs}, the student's dataset.json has {ours}: train teacher and student on the same "
                "dataset.json"
            )
    if model.configuration != settings.configuration:
        raise KDError(
            f'{where} is a {model.configuration} model, "{SECTION}.teacher.configuration" says {settings.configuration}: '
            "plan the student again with `nnunet-kd plan`"
        )
    teacher = PlansManager(model.plans).get_configuration(model.configuration)
    student = PlansManager(student_plans).get_configuration(student_configuration)
    if teacher.previous_stage_name is not None and student.previous_stage_name is None:
        raise KDError(
            f"{where} is the second stage of a cascade and reads the first one's segmentation, which {student_configuration} "
            f"does not load: train the student as {model.configuration}"
        )
    for key in ("spacing", "normalization_schemes", "use_mask_for_norm"):
        if teacher.configuration[key] != student.configuration[key]:
            raise KDError(
                f"{where} was trained with {key} {teacher.configuration[key]}, the student's configuration "
                f"{student_configuration} has {student.configuration[key]}: both must read the same preprocessed data"
            )
    if model.plans["transpose_forward"] != student_plans["transpose_forward"]:
        raise KDError(
            f"{where} was trained with axes in the order {model.plans['transpose_forward']}, the student's plans say "
            f"{student_plans['transpose_forward']}: both must read the same preprocessed data"
        )
    if model.plans_hash != settings.plans_hash:
        raise KDError(
            f"{model.path / 'plans.json'} has changed since the student was planned (hash {model.plans_hash}, planned with "
            f"{settings.plans_hash}): plan the student again with `nnunet-kd plan`"
        )
