"""A tiny data set, its teacher and the plans of a student with everything that a checkpoint has to keep."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from drill.training import Training
from nnunet_kd.utils.environment import command_path, trainers_path
from nnunet_kd.utils.files import write_json

ID, PLANS, TRAINER = 901, "DrillPlans", "nnUNetTrainerGKDCrossView"
EPOCHS, ITERATIONS = 6, 2
# MSANs, P-SAE and views come with the preset; a queue, a learned adapter and class frequencies beside them
LOSSES = {"bottleneck": {"cirkd-memory": {"pixel_memory": 500, "region_memory": 50}}}


def environment(work: Path) -> dict[str, str]:
    """This process's environment with folders of its own: nothing of the user's data is touched."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "FAULT_DRILL_"))}
    folders = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True)
    return (
        kept
        | folders
        | {
            "nnUNet_extTrainer": str(trainers_path()),
            "nnUNet_n_proc_DA": "0",  # without loader workers a seed fixes every batch
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }
    )


def prepare(work: Path, variables: dict[str, str]) -> Path:
    """Data, teacher and plans, made by nnU-Net's own commands. Returns the folder that the student's fold 0 will write to."""
    from nnunet_kd.datasets.synthetic.vessels import generate

    name = generate(work / "raw", work / "preprocessed", ID, 0, 64, 4, 2, 2)["source"]
    command = [command_path("nnUNetv2_plan_and_preprocess"), "-d", str(ID), "-c", "2d", "-npfp", "1", "-np", "1"]
    planning = {**variables, "nnUNet_n_proc_DA": "1"}  # nnU-Net cannot plan with 0
    subprocess.run(command, env=planning, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    os.environ.update(variables)  # nnU-Net in this process reads them when it is imported
    from nnunet_kd.planning.plans import plan_student, plan_teacher
    from nnunet_kd.planning.requests import StudentRequest, TeacherRequest

    size = {"patch_size": (32, 32), "batch_size": 2, "features": (8, 16, 32)}
    teacher = plan_teacher(TeacherRequest(ID, "2d", **size, iterations=2, epochs=1)).plans_name
    training = Training([str(ID), "2d", "0", "-p", teacher, "-tr", "nnUNetTrainerScheduled"], variables, work / "teacher.log")
    if training.run(until="end") != 0:
        raise SystemExit(f"fault_drill: error: the teacher's training failed, see {training.log}")
    folder = work / "results" / name / f"nnUNetTrainerScheduled__{teacher}__2d"
    plans = plan_student(
        StudentRequest(ID, "2d", folder, width=0.5, iterations=EPOCHS * ITERATIONS, epochs=EPOCHS, name=PLANS)
    ).file
    content = json.loads(plans.read_text(encoding="utf-8"))
    content["nnunet_kd"]["schedule"] |= {"val_iterations_per_epoch": 1, "save_every": 1}
    content["nnunet_kd"] |= {"losses": LOSSES, "terms": {"kd": {"balance": 1.0}}}
    write_json(plans, content)
    return work / "results" / name / f"{TRAINER}__{PLANS}__2d" / "fold_0"


def command(*more: str) -> list[str]:
    """Arguments of nnUNetv2_train for the student."""
    return [str(ID), "2d", "0", "-p", PLANS, "-tr", TRAINER, *more]
