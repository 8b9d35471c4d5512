"""`nnunet-kd demo`: the main job on data made on the spot, through nnU-Net's own commands.

A teacher, an undistilled student, a logit-distilled student and a GKD student are trained on a synthetic source domain,
exported, predicted with stock nnU-Net on the source's test cases and on three unseen domains, and compared in a report.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.cli.demo_steps import Display, Step, clock, run_command, run_here
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError

SOURCE_ID = 901
DOMAINS = {"source": "Source", "contrast": "Contrast", "texture": "Texture", "noise": "Noise"}
TRAINERS = {
    "teacher": "nnUNetTrainerScheduled",
    "student": "nnUNetTrainerScheduled",
    "kd": "nnUNetTrainerKD",
    "gkd": "nnUNetTrainerGKD",
}
DESCRIPTIONS = {
    "teacher": "full-width nnU-Net",
    "student": "light student without a teacher",
    "kd": "light student with logit distillation (Hinton)",
    "gkd": "light student with all of GKD (MSAN, ACT, DCGD, DICD)",
}


@dataclass(frozen=True)
class Scale:
    """How large the demo is. Fixed on teacher against undistilled student alone, before distillation was tried."""

    teacher_iterations: int = 600
    student_iterations: int = 600
    epochs: int = 10
    patch: int = 64
    batch: int = 8
    features: tuple[int, ...] = (24, 48, 96, 192)
    width: float = 0.125
    size: int = 160
    train: int = 24
    test: int = 8
    bootstrap: int = 100


QUICK = Scale(20, 20, 10, 32, 2, (8, 16, 32), 0.5, 64, 4, 2, 20)


def run_demo(out: Path, seed: int = 0, quick: bool = False) -> dict:
    """Run the whole demo into ``out`` and return the report's data.

    Raises:
        KDError: a step failed; the message names its log file.
    """
    out = out.resolve()
    scale = QUICK if quick else Scale()
    work, logs = out / "work", out / "logs"
    if out.exists():
        if not (out / "work").is_dir() and any(out.iterdir()):
            raise KDError(f"{out} exists and is not a demo's folder: pass another with -o")
        for old in (work, logs):
            shutil.rmtree(old, ignore_errors=True)
    for folder in ("raw", "preprocessed", "results"):
        (work / folder).mkdir(parents=True)
    logs.mkdir()
    environment = _environment(work)
    os.environ.update(environment)  # for what runs in this process
    steps, state = _plan_steps(out, work, seed, scale), {}
    display = Display(steps)
    print(f"nnunet-kd demo, seed {seed}: {len(steps)} steps, about {clock(sum(s.share for s in steps))} on two CPU cores")
    for number, step in enumerate(steps, 1):
        begin = time.time()
        log = logs / f"{number:02d}_{step.name.replace(' ', '_')}.log"
        if step.call is not None:
            display.show(display.line(number, step, begin))
            state["report"] = step.call(display.start) or state.get("report")
        elif step.command[0] == "nnunet-kd":
            display.show(display.line(number, step, begin))
            run_here(step, log)
        else:
            run_command(step, number, display, log, environment)
        display.done += step.share
    report = state["report"]
    from nnunet_kd.evaluation.report.report import print_table

    display.show("")
    print("\n" + print_table(report))
    print(f"\nreport: {out / 'report.html'}   ({clock(report['seconds'])} in all)")
    return report


def _environment(work: Path) -> dict[str, str]:
    return {
        "nnUNet_raw": str(work / "raw"),
        "nnUNet_preprocessed": str(work / "preprocessed"),
        "nnUNet_results": str(work / "results"),
        "nnUNet_extTrainer": str(trainers_path()),
        # loader workers cost more to start than they save here, and without them a seed fixes every batch
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        # waiting threads sleep: on two cores that anything else uses too, spinning ones cost more than they save
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def _plan_steps(out: Path, work: Path, seed: int, scale: Scale) -> list[Step]:
    suffix = "" if seed == 0 else f"_seed{seed}"
    plans = {n: ("nnUNetTeacherPlans" if n == "teacher" else "nnUNetKDPlans") + suffix for n in TRAINERS}
    dataset = f"Dataset{SOURCE_ID}_SynthSource"
    trained = {n: work / "results" / dataset / f"{t}__{plans[n]}__2d" for n, t in TRAINERS.items()}
    images = work / "images"
    models, predictions = out / "models", out / "predictions"
    features = [str(f) for f in scale.features]

    def synthesise(start: float) -> None:
        from nnunet_kd.datasets.synthetic.vessels import generate

        names = generate(
            work / "raw",
            work / "preprocessed",
            SOURCE_ID,
            seed,
            scale.size,
            scale.train,
            scale.test,
            scale.test,
            overwrite=True,
        )
        images.mkdir()
        for domain, name in names.items():
            for image in (work / "raw" / name / ("imagesTs" if domain == "source" else "imagesTr")).iterdir():
                shutil.copy(image, images)

    def report(start: float) -> dict:
        return _evaluate(out, work, seed, scale, models, predictions, trained, steps, start)

    def train(name: str) -> list[str]:
        return ["nnUNetv2_train", str(SOURCE_ID), "2d", "0", "-p", plans[name], "-tr", TRAINERS[name], "-device", "cpu"]

    plan = ["nnunet-kd", "plan", str(SOURCE_ID), "-c", "2d"]
    steps = [
        Step("make four domains of images", 5, call=synthesise),
        Step(
            "plan and preprocess",
            22,
            ["nnUNetv2_plan_and_preprocess", "-d", str(SOURCE_ID), "-c", "2d", "-npfp", "1", "-np", "1"],
        ),
        Step(
            "plan teacher",
            8,
            [
                *plan,
                "--role",
                "teacher",
                "--patch-size",
                str(scale.patch),
                str(scale.patch),
                "--batch-size",
                str(scale.batch),
                "--features",
                *features,
                "--iterations",
                str(scale.teacher_iterations),
                "--epochs",
                str(scale.epochs),
                "--seed",
                str(seed),
            ],
        ),
        Step("train teacher", 130, train("teacher")),
        Step(
            "plan student",
            2,
            [
                *plan,
                "--teacher",
                str(trained["teacher"].relative_to(work / "results")),
                "--width",
                str(scale.width),
                "--initial-lr",
                "0.1",
                "--iterations",
                str(scale.student_iterations),
                "--epochs",
                str(scale.epochs),
                "--seed",
                str(seed),
            ],
        ),
        Step("train student", 45, train("student")),
        Step("train kd", 75, train("kd")),
        Step("train gkd", 200, train("gkd")),
    ]
    for name in TRAINERS:
        steps.append(
            Step(f"export {name}", 2, ["nnunet-kd", "export", str(trained[name]), "-o", str(models / name), "--overwrite"])
        )
    for name in TRAINERS:
        steps.append(
            Step(
                f"predict with {name}",
                25 if name == "teacher" else 17,
                [
                    "nnUNetv2_predict_from_modelfolder",
                    "-i",
                    str(images),
                    "-o",
                    str(predictions / name),
                    "-m",
                    str(models / name),
                    "-f",
                    "0",
                    "-device",
                    "cpu",
                    "-npp",
                    "1",
                    "-nps",
                    "1",
                    "--disable_progress_bar",
                ],
            )
        )
    steps.append(Step("evaluate and write the report", 40, call=report))
    return steps


def _evaluate(
    out: Path,
    work: Path,
    seed: int,
    scale: Scale,
    models: Path,
    predictions: Path,
    trained: dict[str, Path],
    steps: list[Step],
    start: float,
) -> dict:
    from nnunet_kd.evaluation.domains import parse_domain
    from nnunet_kd.evaluation.evaluate import EvaluationRequest, Model, evaluate
    from nnunet_kd.evaluation.report.report import write_report

    raw = work / "raw"
    specs = [
        f"{label}={SOURCE_ID + i}:{'Ts' if domain == 'source' else 'Tr'}" for i, (domain, label) in enumerate(DOMAINS.items())
    ]
    domains = [parse_domain(spec, raw) for spec in specs]
    commands = [shlex.join(s.command) for s in steps if s.command]
    title = "Demo: a light student on synthetic vessels"
    note = (
        "Synthetic vessel images, made on the spot. Trained on the source domain only; the other three were never seen. "
        "docs/results.md shows five seeds."
    )
    listed = [Model(n, models / n, trained[n], {d.name: predictions / n for d in domains}, None) for n in TRAINERS]
    report = evaluate(
        EvaluationRequest(listed, domains, out, title=title, commands=commands, seed=seed, bootstrap=scale.bootstrap, note=note)
    )
    for entry in report["models"]:
        entry["description"] = DESCRIPTIONS[entry["name"]]
    report["seconds"] = time.time() - start
    write_report(report, out, title, domains, {n: {d.name: predictions / n for d in domains} for n in TRAINERS})
    return report
