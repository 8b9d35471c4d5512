"""plan and trainers-path: what comes before a training. Imports happen inside the functions, so that --help is quick."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from nnunet_kd.utils.errors import KDError

if TYPE_CHECKING:  # --help is quick without
    from nnunet_kd.planning.budget import Proposal
    from nnunet_kd.planning.requests import StudentRequest, TeacherRequest


def add_plan(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd plan`."""
    p = commands.add_parser("plan", help="plans for a light student, or a schedule for a teacher")
    p.add_argument("dataset", help="nnU-Net dataset id or name")
    p.add_argument("-c", "--configuration", required=True, help="2d, 3d_fullres, ...")
    p.add_argument("--role", choices=["student", "teacher"], default="student", help="default: student")
    folder = "student: the teacher's model folder TRAINER__PLANS__CONFIGURATION (relative to nnUNet_results or absolute)"
    p.add_argument("--teacher", metavar="FOLDER", help=folder)
    fold = 'student: the teacher\'s fold: "same" (default), "all" or a number; several are averaged (logits only)'
    p.add_argument("--teacher-fold", nargs="+", metavar="FOLD", help=fold)
    p.add_argument("--teacher-checkpoint", metavar="FILE", help="student: default checkpoint_final.pth")
    p.add_argument("--width", type=float, help="student: factor on the teacher's features (default: 0.25)")
    p.add_argument("--features", type=int, nargs="+", help="features per stage; fewer than planned make a shallower network")
    _add_budget_options(p)
    p.add_argument("--preset", help="student: named settings (default: the trainer's)")
    base = "plans to start from (default: teacher: nnUNetPlans; student: its teacher's)"
    p.add_argument("--base-plans", metavar="PLANS", help=base)
    first = "second stage of a cascade: the model folder whose predictions it reads (student: default as its teacher)"
    p.add_argument("--previous-stage", metavar="FOLDER", help=first)
    p.add_argument("--patch-size", type=int, nargs="+", help="teacher: patch size")
    p.add_argument("--batch-size", type=int, help="teacher: batch size")
    steps = "training steps in all (default: student: as its teacher; teacher: nnU-Net's 250,000)"
    p.add_argument("--iterations", type=int, help=steps)
    p.add_argument("--epochs", type=int, help="epochs to spread them over (default: about 50 steps each)")
    half = "bfloat16: about half the time per step on CPUs that have the instructions (student: as its teacher)"
    rate = "learning rate at the start (default: nnU-Net's 0.01; student: 0.1 if it is small, else as its teacher)"
    p.add_argument("--initial-lr", type=float, help=rate)
    p.add_argument("--cpu-precision", choices=["float32", "bfloat16"], help=half)
    p.add_argument("--seed", type=int, default=0, help="default: 0; another seed becomes part of the plans name")
    p.add_argument("--name", help="plans name (default: nnUNetKDPlans, for teachers nnUNetTeacherPlans)")
    p.add_argument("--overwrite", action="store_true", help="replace plans that something was trained with")
    p.set_defaults(run=_plan)


def _add_budget_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--depth", type=int, metavar="N", help="student: number of stages (default: as its teacher)")
    convs = "student: convolutions per stage, of a residual encoder blocks (default: as its teacher)"
    p.add_argument("--convs", type=int, metavar="N", help=convs)
    budget = "student: a budget instead of --width: the biggest that meets all of them (docs/light-students.md)"
    p.add_argument("--max-params", metavar="500k", help=budget)
    p.add_argument("--max-flops", metavar="2G", help="student: a budget of FLOPs per patch")
    clock = "student: a budget of CPU time per patch on this machine, in ONNX Runtime if it is installed"
    p.add_argument("--max-latency", metavar="200ms", help=clock)
    p.add_argument("--list", action="store_true", help="student: show teacher and students with their costs, write nothing")
    p.add_argument("--threads", type=int, metavar="N", help="budget and --list: CPU threads (default: all CPUs)")


def _propose(o: argparse.Namespace, request: StudentRequest | TeacherRequest) -> Proposal | None:
    """The proposal for the budget on the command line and what was requested; None without a budget and --list."""
    limits = {"max_params": o.max_params, "max_flops": o.max_flops, "max_latency": o.max_latency}
    given = [f"--{name.replace('_', '-')}" for name, value in limits.items() if value is not None]
    if not given and not o.list:
        if o.threads is not None:
            raise KDError("--threads is for budgets and --list: leave it out")
        return None
    for flag in ("features", "width"):
        if getattr(o, flag) is not None:
            raise KDError(f"--{flag} and {(given or ['--list'])[0]} both choose the student's features: leave one out")
    if o.threads is not None and o.threads < 1:
        raise KDError(f"--threads {o.threads} must be at least 1")
    from nnunet_kd.planning.budget import Budget, parse_count, parse_milliseconds, propose
    from nnunet_kd.planning.budget_report import proposal_table

    budget = Budget(
        None if o.max_params is None else parse_count(o.max_params, "--max-params"),
        None if o.max_flops is None else parse_count(o.max_flops, "--max-flops"),
        None if o.max_latency is None else parse_milliseconds(o.max_latency, "--max-latency"),
    )
    proposal = propose(request, budget, o.threads)
    print(proposal_table(proposal))
    if proposal.chosen is not None:
        clock = f" (the time in {proposal.judge})" if budget.milliseconds is not None else ""
        print(f"\n{proposal.chosen.name}: the most parameters that meet {budget}{clock}")
    return proposal


def _request(o: argparse.Namespace) -> StudentRequest | TeacherRequest:
    """What the command line asks planning for."""
    from nnunet_kd.planning.requests import StudentRequest, TeacherRequest

    common = dict(
        dataset=o.dataset,
        configuration=o.configuration,
        features=o.features,
        iterations=o.iterations,
        epochs=o.epochs,
        cpu_precision=o.cpu_precision,
        initial_lr=o.initial_lr,
        seed=o.seed,
        previous_stage=o.previous_stage,
        name=o.name,
        overwrite=o.overwrite,
    )
    if o.role == "teacher":
        return TeacherRequest(
            base_plans=o.base_plans or "nnUNetPlans", patch_size=o.patch_size, batch_size=o.batch_size, **common
        )
    if o.teacher is None:
        raise KDError("--teacher FOLDER is missing: name the trained teacher's model folder (or use --role teacher)")
    folds = [int(f) if f.isdigit() else f for f in o.teacher_fold or ["same"]]
    return StudentRequest(
        teacher=o.teacher,
        width=0.25 if o.width is None else o.width,
        preset=o.preset,
        base_plans=o.base_plans,
        depth=o.depth,
        convs=o.convs,
        teacher_fold=folds if len(folds) > 1 else folds[0],
        teacher_checkpoint=o.teacher_checkpoint or "checkpoint_final.pth",
        **common,
    )


def _plan(o: argparse.Namespace) -> None:
    student_only = (
        "teacher",
        "teacher_fold",
        "teacher_checkpoint",
        "width",
        "preset",
        "depth",
        "convs",
        "max_params",
        "max_flops",
        "max_latency",
        "threads",
    )
    teacher_only = ("patch_size", "batch_size")
    other, wrong = ("student", student_only) if o.role == "teacher" else ("teacher", teacher_only)
    for flag in wrong:
        if getattr(o, flag) is not None:
            raise KDError(f"--{flag.replace('_', '-')} is for --role {other}: leave it out, or change --role")
    if o.role == "teacher" and o.list:
        raise KDError("--list is for --role student: leave it out, or change --role")
    if o.width is not None and o.features is not None:
        raise KDError("--width and --features both set the student's features: leave one out")
    if o.depth is not None and o.features is not None:
        raise KDError("--depth and --features both set the number of stages: leave one out")
    request = _request(o)
    proposal = _propose(o, request) if o.role == "student" else None
    if o.list:
        return
    import torch

    from nnunet_kd.networks.cost import cost_table
    from nnunet_kd.planning.plans import plan_student, plan_teacher

    if o.role == "teacher":
        planned = plan_teacher(request)
        trainers = ["nnUNetTrainerScheduled"]
    else:
        if proposal is not None:
            request = dataclasses.replace(request, features=proposal.chosen.features, convs=proposal.chosen.convs)
        planned = plan_student(request)
        folds = o.teacher_fold or ["same"]
        # plans that name a preset do not fit a trainer that stands for another one, the control's included
        # and several folds, or a transformer, have no features that MSANs could read
        features = len(folds) == 1 and planned.plans["nnunet_kd"]["teacher"]["stages"]["channels"]
        default = "nnUNetTrainerGKD" if features else "nnUNetTrainerKDViews"
        trainers = ["nnUNetTrainerDistillation"] if o.preset else [default, "nnUNetTrainerScheduled"]
    if proposal is None:
        print(cost_table(planned.costs))
    else:
        from nnunet_kd.planning.budget_report import draw

        print(f"the front as a picture: {draw(proposal, planned.file.with_name(f'{planned.plans_name}_budget.png'))}")
    schedule = planned.plans["nnunet_kd"]["schedule"]
    print(f"\nwrote {planned.file}")
    print(f"schedule: {schedule['epochs']} epochs x {schedule['iterations_per_epoch']} iterations, seed {o.seed}")
    print(f"learning rate: {schedule['initial_lr']:g} at the start ({planned.rate_reason}); --initial-lr sets another")
    print("train with:\n  export nnUNet_extTrainer=$(nnunet-kd trainers-path)")
    device = "" if torch.cuda.is_available() else " -device cpu"
    for trainer in trainers:
        note = "   # the undistilled control" if trainer == "nnUNetTrainerScheduled" and o.role == "student" else ""
        print(f"  nnUNetv2_train {o.dataset} {o.configuration} 0 -p {planned.plans_name} -tr {trainer}{device}{note}")


def add_trainers_path(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd trainers-path`."""
    p = commands.add_parser("trainers-path", help="the folder for nnUNet_extTrainer")
    p.set_defaults(run=_trainers_path)


def _trainers_path(o: argparse.Namespace) -> None:
    from nnunet_kd.utils.environment import trainers_path

    print(trainers_path())
