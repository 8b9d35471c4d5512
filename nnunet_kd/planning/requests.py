"""What can be asked of planning: a teacher's plans, a student's. The fields are the options of `nnunet-kd plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TeacherRequest:
    """Plans with a schedule (and patch, batch, widths) of their own, for a teacher or any plain training.

    Args:
        dataset: nnU-Net's id or name.
        base_plans: name of the plans to start from.
        patch_size, batch_size, features: by default as planned there. With another patch size the number of stages, strides
            and kernels are planned again by nnU-Net's own rule.
        iterations: training steps in all; by default nnU-Net's. ``epochs``: spread over so many, by default of about 50 steps.
        cpu_precision, initial_lr: see config.Schedule.
        seed: another than 0 becomes part of the plans name.
        previous_stage: for the second stage of a cascade, the model folder whose predictions it reads.
        name: of the plans; default nnUNetTeacherPlans.
        overwrite: replace plans that something was trained with.
    """

    dataset: str | int
    configuration: str
    base_plans: str = "nnUNetPlans"
    patch_size: Sequence[int] | None = None
    batch_size: int | None = None
    features: Sequence[int] | None = None
    iterations: int | None = None
    epochs: int | None = None
    cpu_precision: str | None = None
    initial_lr: float | None = None
    seed: int = 0
    previous_stage: str | Path | None = None
    name: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class StudentRequest:
    """A lighter student's plans, out of a teacher's model folder.

    Args:
        dataset: nnU-Net's id or name.
        teacher: nnU-Net model folder TRAINER__PLANS__CONFIGURATION; stored relative to nnUNet_results where it lies in it.
        width: factor on the teacher's features per stage, with ``min_features`` as the floor.
        features: features per stage instead of ``width``; fewer than the teacher's stages make a shallower student.
        depth: number of stages, counted from the full resolution; by default all of the teacher's.
        convs: convolutions per stage (blocks of a residual encoder); by default as the teacher's.
        iterations, epochs, cpu_precision: the schedule; by default the teacher's.
        initial_lr: by default what suits the student's size (learning_rate.py).
        seed: another than 0 becomes part of the plans name.
        preset: named settings; by default the trainer chooses.
        teacher_fold: "same" as the student's, "all", a number, or a list whose predictions are averaged (logits only).
        base_plans: plans of the same data whose network (of another family or depth, say), patch and batch size the student
            takes instead of the teacher's. ``width`` is a factor on theirs.
        previous_stage: for the second stage of a cascade, the model folder whose predictions the student reads; by default
            the one its teacher read.
        name: of the plans; default nnUNetKDPlans.
        overwrite: replace plans that something was trained with.
    """

    dataset: str | int
    configuration: str
    teacher: str | Path
    width: float = 0.25
    min_features: int = 4
    features: Sequence[int] | None = None
    depth: int | None = None
    convs: int | None = None
    iterations: int | None = None
    epochs: int | None = None
    cpu_precision: str | None = None
    initial_lr: float | None = None
    seed: int = 0
    preset: str | None = None
    teacher_fold: int | str | list = "same"
    teacher_checkpoint: str = "checkpoint_final.pth"
    base_plans: str | None = None
    previous_stage: str | Path | None = None
    name: str | None = None
    overwrite: bool = False
