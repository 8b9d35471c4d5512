"""The `nnunet-kd` command: parses, calls, prints. Imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from nnunet_kd import __version__
from nnunet_kd.errors import KDError


class _Parser(argparse.ArgumentParser):
    """argparse with its errors in this program's form: one line that names the fix (subcommands inherit the class)."""

    def error(self, message: str) -> None:
        self.exit(2, f"nnunet-kd: error: {message}: see `{self.prog} --help`\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; a user's mistake is one line on stderr and 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    options.command_line = shlex.join(["nnunet-kd", *arguments])
    try:
        options.run(options)
    except KDError as error:
        print(f"nnunet-kd: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"nnunet-kd: error: {error.strerror}: {error.filename}: choose another path or free this one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nnunet-kd: stopped", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nnunet-kd", description="Distil a trained nnU-Net into a light student.")
    parser.add_argument("--version", action="version", version=f"nnunet-kd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_plan(commands)
    _add_trainers_path(commands)
    _add_export(commands)
    _add_evaluate(commands)
    _add_fsd(commands)
    _add_compare(commands)
    _add_demo(commands)
    return parser


def _add_convert(commands) -> None:
    p = commands.add_parser("convert", help="a public data set as an nnU-Net raw dataset")
    p.add_argument("name", help="chase_db1, drive or hippocampus")
    p.add_argument("source", type=Path, help="the data set's folder as published")
    p.add_argument("--dataset-id", type=int, required=True, help="nnU-Net dataset id, 1 to 999")
    p.add_argument("--channels", choices=["green", "rgb", "gray"], help="fundus sets: default green")
    width = "fundus sets: width of the field of view in pixels, 0 keeps it (default: 512)"
    p.add_argument("--fov-width", type=int, help=width)
    p.add_argument("--observer", type=int, choices=[1, 2], help="fundus sets: whose annotation (default: 1)")
    split = "chase_db1 only: first20 = 20 to train, 8 to test (default); last8train = the opposite custom"
    p.add_argument("--split", choices=["first20", "last8train"], help=split)
    copies = "fundus sets: the training cases once per corruption instead, to choose settings on (never to train on)"
    p.add_argument("--corruptions", action="store_true", default=None, help=copies)
    p.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that id")
    p.set_defaults(run=_convert)


def _convert(o) -> None:
    import inspect
    import os

    from nnunet_kd.datasets import CONVERTERS

    if o.name not in CONVERTERS:
        raise KDError(f'unknown data set "{o.name}": known are {", ".join(CONVERTERS)}')
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        if not os.environ.get(variable):
            raise KDError(f"environment variable {variable} is not set: export {variable}=/path/to/{variable}")
    accepted = {name: inspect.signature(converter).parameters for name, converter in CONVERTERS.items()}
    options = {k: getattr(o, k) for k in ("channels", "fov_width", "observer", "split", "corruptions")}
    given = {k: value for k, value in options.items() if value is not None}
    for option in given:
        if option not in accepted[o.name]:
            sets = " and ".join(name for name in CONVERTERS if option in accepted[name])
            raise KDError(f"--{option.replace('_', '-')} is for {sets} only, {o.name} has none: leave it out")
    if given.get("fov_width") == 0:
        given["fov_width"] = None
    report = CONVERTERS[o.name](
        o.source, Path(os.environ["nnUNet_raw"]), Path(os.environ["nnUNet_preprocessed"]), o.dataset_id,
        overwrite=o.overwrite, **given,
    )  # fmt: skip
    print(report.text())


def _add_plan(commands) -> None:
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
    rate = "learning rate at the start (default: nnU-Net's 0.01; student: as its teacher)"
    p.add_argument("--initial-lr", type=float, help=rate)
    p.add_argument("--cpu-precision", choices=["float32", "bfloat16"], help=half)
    p.add_argument("--seed", type=int, default=0, help="default: 0; another seed becomes part of the plans name")
    p.add_argument("--name", help="plans name (default: nnUNetKDPlans, for teachers nnUNetTeacherPlans)")
    p.add_argument("--overwrite", action="store_true", help="replace plans that something was trained with")
    p.set_defaults(run=_plan)


def _plan(o) -> None:
    student_only = ("teacher", "teacher_fold", "teacher_checkpoint", "width", "preset")
    teacher_only = ("patch_size", "batch_size")
    other, wrong = ("student", student_only) if o.role == "teacher" else ("teacher", teacher_only)
    for flag in wrong:
        if getattr(o, flag) is not None:
            raise KDError(f"--{flag.replace('_', '-')} is for --role {other}: leave it out, or change --role")
    if o.width is not None and o.features is not None:
        raise KDError("--width and --features both set the student's features: leave one out")
    import torch

    from nnunet_kd.cost import cost_table
    from nnunet_kd.plans import plan_student, plan_teacher

    common = dict(features=o.features, iterations=o.iterations, epochs=o.epochs, cpu_precision=o.cpu_precision,
                  initial_lr=o.initial_lr, seed=o.seed, previous_stage=o.previous_stage,
                  name=o.name, overwrite=o.overwrite)  # fmt: skip
    if o.role == "teacher":
        base = o.base_plans or "nnUNetPlans"
        planned = plan_teacher(o.dataset, o.configuration, base, o.patch_size, o.batch_size, **common)
        trainers = ["nnUNetTrainerScheduled"]
    else:
        if o.teacher is None:
            raise KDError("--teacher FOLDER is missing: name the trained teacher's model folder (or use --role teacher)")
        folds = [int(f) if f.isdigit() else f for f in o.teacher_fold or ["same"]]
        width = 0.25 if o.width is None else o.width
        planned = plan_student(
            o.dataset, o.configuration, o.teacher, width, preset=o.preset, base_plans=o.base_plans,
            teacher_fold=folds if len(folds) > 1 else folds[0],
            teacher_checkpoint=o.teacher_checkpoint or "checkpoint_final.pth", **common,
        )  # fmt: skip
        # plans that name a preset do not fit a trainer that stands for another one, the control's included
        # and several folds, or a transformer, have no features that MSANs could read
        features = len(folds) == 1 and planned.plans["nnunet_kd"]["teacher"]["stages"]["channels"]
        default = "nnUNetTrainerGKD" if features else "nnUNetTrainerKDViews"
        trainers = ["nnUNetTrainerDistillation"] if o.preset else [default, "nnUNetTrainerScheduled"]
    print(cost_table(planned.costs))
    schedule = planned.plans["nnunet_kd"]["schedule"]
    print(f"\nwrote {planned.file}")
    print(f"schedule: {schedule['epochs']} epochs x {schedule['iterations_per_epoch']} iterations, seed {o.seed}")
    print("train with:\n  export nnUNet_extTrainer=$(nnunet-kd trainers-path)")
    device = "" if torch.cuda.is_available() else " -device cpu"
    for trainer in trainers:
        note = "   # the undistilled control" if trainer == "nnUNetTrainerScheduled" and o.role == "student" else ""
        print(f"  nnUNetv2_train {o.dataset} {o.configuration} 0 -p {planned.plans_name} -tr {trainer}{device}{note}")


def _add_trainers_path(commands) -> None:
    p = commands.add_parser("trainers-path", help="the folder for nnUNet_extTrainer")
    p.set_defaults(run=_trainers_path)


def _trainers_path(o) -> None:
    from nnunet_kd.paths import trainers_path

    print(trainers_path())


def _add_export(commands) -> None:
    p = commands.add_parser("export", help="a trained student as a stock nnU-Net model folder")
    p.add_argument("model", help="training folder TRAINER__PLANS__CONFIGURATION (relative to nnUNet_results or absolute)")
    p.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    p.add_argument("-f", "--folds", nargs="+", default=["0"], help="default: 0")
    p.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    p.add_argument("--name", help="plans name of the exported model (default: made from the training's)")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=_export)


def _export(o) -> None:
    from nnunet_kd.deploy.export import export_model
    from nnunet_kd.teacher import resolve_folder

    out = export_model(resolve_folder(o.model), o.out, tuple(o.folds), o.checkpoint, o.name, o.overwrite)
    print(f"wrote {out} (verified: same logits as the training checkpoint)")
    folds = " ".join(o.folds)
    print("predict with stock nnU-Net:")
    print(f"  nnUNetv2_predict_from_modelfolder -m {out} -f {folds} -i IMAGES -o OUT -device cpu")


def _add_evaluation_options(p) -> None:
    p.add_argument("-f", "--fold", default="0", help="default: 0")
    p.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    p.add_argument("--bootstrap", type=_samples, default=200, help="bootstrap and permutation samples for FSD (default: 200)")


def _samples(text: str) -> int:
    if not text.isdigit() or int(text) < 10:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 10")
    return int(text)


def _add_evaluate(commands) -> None:
    p = commands.add_parser("evaluate", help="models x domains: metrics, FSD, a report")
    p.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="repeat; teacher first")
    p.add_argument("--domain", action="append", required=True, metavar="NAME=ID[:Tr|:Ts[:GLOB]]",
                   help="repeat; the first is the home domain, the others are unseen. Or NAME=IMAGES,LABELS[,FOV]")  # fmt: skip
    p.add_argument("-o", "--out", type=Path, required=True, help="folder for report.html, report.json, report.csv")
    p.add_argument("--title", default="Teacher and students at home and on unseen domains")
    p.add_argument("-device", "--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    _add_evaluation_options(p)
    p.set_defaults(run=_evaluate)


def _evaluate(o) -> None:
    import os

    from nnunet_kd.evaluation.domains import parse_domain
    from nnunet_kd.evaluation.evaluate import Model, evaluate
    from nnunet_kd.evaluation.report import print_table, write_report
    from nnunet_kd.teacher import resolve_folder

    models = []
    for text in o.model:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise KDError(f'--model "{text}" must read NAME=FOLDER')
        models.append(Model(name, resolve_folder(folder)))
    domains = [parse_domain(d, Path(os.environ.get("nnUNet_raw", "."))) for d in o.domain]
    report = evaluate(models, domains, o.out, o.fold, o.checkpoint, o.device, o.title, [o.command_line], bootstrap=o.bootstrap)
    page = write_report(report, o.out, o.title, domains)
    print(print_table(report))
    print(f"report: {page}")


def _add_fsd(commands) -> None:
    p = commands.add_parser("fsd", help="Frechet Semantic Distance of a trained run between domains")
    p.add_argument("--model", required=True, help="training folder of a student trained with nnUNetTrainerGKD")
    p.add_argument("--source", required=True, metavar="NAME=ID[:Tr|:Ts[:GLOB]]", help="held-out cases of the home domain")
    p.add_argument("--target", action="append", required=True, metavar="NAME=ID[...]", help="repeat; unseen domains")
    p.add_argument("--networks", nargs="+", choices=["student", "teacher"], default=["student", "teacher"])
    p.add_argument("-o", "--out", type=Path, help="write the result as JSON")
    _add_evaluation_options(p)
    p.set_defaults(run=_fsd)


def _fsd(o) -> None:
    import json
    import os

    from nnunet_kd.evaluation.domains import parse_domain
    from nnunet_kd.evaluation.evaluate import compare_semantics
    from nnunet_kd.evaluation.report import json_ready
    from nnunet_kd.files import write_json
    from nnunet_kd.teacher import resolve_folder

    raw = Path(os.environ.get("nnUNet_raw", "."))
    # vectors come from images alone
    source, *targets = (parse_domain(d, raw, labelled=False) for d in (o.source, *o.target))
    folder = resolve_folder(o.model)
    found = compare_semantics(folder.name, folder, source, targets, o.fold, o.checkpoint, tuple(o.networks), o.bootstrap)
    for row in found:
        low, high = row["kernel_interval"]
        print(f"{row['network']:8} {row['source']} -> {row['target']}: FSD {row['fsd']:.3f}, relative {row['relative']:.3f},")
        print(
            f"         extrapolated {row['fsd_extrapolated']:.3f}, kernel {row['kernel']:.4f} [{low:.4f}, {high:.4f}], "
            f"p {row['p_value']:.3f}, vectors {row['n_a']} and {row['n_b']} of {row['dim']} numbers"
        )
        for warning in row["warnings"]:
            print(f"         warning: {warning}")
    if o.out:
        write_json(o.out, json_ready({"fsd": found}))
    print(json.dumps(json_ready({"fsd": found})))


def _add_compare(commands) -> None:
    p = commands.add_parser("compare", help="methods x seeds into one CSV; does only what is missing")
    p.add_argument("file", type=Path, metavar="FILE.yaml", help="what to compare (docs/compare.md)")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="workers that share the runs (default: 1)")
    p.add_argument("--dry-run", action="store_true", help="list what is done and what is missing")
    p.add_argument("--table", action="store_true", help="print the CSV as Markdown")
    p.add_argument("--against", metavar="METHOD", help="with --table: differences of all methods from this one")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of --jobs
    p.set_defaults(run=_compare)


def _compare(o) -> None:
    from nnunet_kd.compare.settings import read_settings

    if o.against and not o.table:
        raise KDError("--against is for --table: add it, or leave --against out")
    if o.jobs < 1:
        raise KDError(f"--jobs {o.jobs} must be at least 1")
    if (o.jobs > 1) + o.dry_run + o.table > 1:
        raise KDError("--jobs, --dry-run and --table exclude each other: keep one")
    settings = read_settings(o.file)
    if o.table:
        from nnunet_kd.compare.table import table

        print(table(settings, o.against))
        return
    from nnunet_kd.compare.run import compare

    compare(settings, o.dry_run, o.jobs, o.worker)


def _add_demo(commands) -> None:
    p = commands.add_parser("demo", help="the main job on built-in data, in about ten minutes on two CPU cores")
    p.add_argument("--seed", type=int, default=0, help="default: 0")
    p.add_argument("-o", "--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    p.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs (about 3 minutes)")
    p.set_defaults(run=_demo)


def _demo(o) -> None:
    from nnunet_kd.demo import run_demo

    run_demo(o.out, o.seed, o.quick)


if __name__ == "__main__":
    sys.exit(main())
