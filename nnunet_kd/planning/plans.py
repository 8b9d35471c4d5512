"""Plans files: a schedule that fits the machine for the teacher, and a lighter student's plans out of the teacher's.

Student plans keep the teacher's ``data_identifier``, so the student trains on the teacher's preprocessed data. What the plans
say is worked out in drafts.py; here the files are read and written.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name

from nnunet_kd.networks.cost import Cost, measure_cost
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.planning.drafts import Draft, StudentBase, check_width, draft_student, draft_teacher, student_base
from nnunet_kd.planning.requests import StudentRequest, TeacherRequest
from nnunet_kd.utils.environment import NNUNET_FOLDERS, require_environment
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json


@dataclass(frozen=True)
class Planned:
    """A written plans file, its name for ``-p``, and the costs of the networks involved (teacher first).

    ``rate_reason`` says why the learning rate is what it is.
    """

    file: Path
    plans_name: str
    plans: dict
    costs: dict[str, Cost]
    rate_reason: str


def plan_teacher(request: TeacherRequest) -> Planned:
    """Write plans for a teacher or any plain training.

    Raises:
        KDError: unknown dataset or configuration, impossible sizes, existing plans that differ.
    """
    folder = preprocessed_folder(request.dataset)
    base = read_plans(folder, request.base_plans)
    return _write(folder, draft_teacher(request, base, read_dataset_json(folder), folder), request.overwrite)


def plan_student(request: StudentRequest) -> Planned:
    """Write a lighter student's plans out of a teacher's model folder.

    Raises:
        KDError: bad teacher folder, a student as heavy as the teacher, unknown preset, existing plans that differ, a teacher
            that reads other data or cannot read the student's patches.
    """
    check_width(request)
    folder = preprocessed_folder(request.dataset)
    return _write(folder, draft_student(request, read_student_base(request, folder)), request.overwrite)


def read_student_base(request: StudentRequest, folder: Path) -> StudentBase:
    """What the student that is asked for starts from, read from the teacher's model folder.

    Args:
        folder: the data set's preprocessed folder.

    Raises:
        KDError: a teacher of another data set or configuration, or untrained.
    """
    teacher = read_model_folder(request.teacher)
    if teacher.plans["dataset_name"] != folder.name:
        raise KDError(
            f"teacher {teacher.path} was trained on {teacher.plans['dataset_name']}, not on {folder.name}: name a teacher of "
            "the student's own dataset"
        )
    plans = None if request.base_plans is None else read_plans(folder, request.base_plans)
    base = student_base(teacher, request.configuration, read_dataset_json(folder), plans, folder)
    if not teacher.trained_folds(request.teacher_checkpoint):
        raise KDError(f"no fold of teacher {teacher.path} has a {request.teacher_checkpoint}: train the teacher first")
    return base


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


def read_plans(folder: Path, name: str = "nnUNetPlans") -> dict:
    """The plans of this name in a data set's preprocessed folder. Raises KDError if there are none."""
    file = folder / f"{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        number = convert_dataset_name_to_id(folder.name)
        raise KDError(f"{file} does not exist: run `nnUNetv2_plan_and_preprocess -d {number}` first") from None
    except json.JSONDecodeError as error:
        raise KDError(f"{file} is not valid JSON ({error}): plan again with nnUNetv2_plan_and_preprocess") from None


def read_dataset_json(folder: Path) -> dict:
    """dataset.json of a data set's preprocessed folder."""
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def _write(folder: Path, draft: Draft, overwrite: bool) -> Planned:
    costs = {role: measure_cost(network, draft.patch_size) for role, network in draft.networks.items()}
    plans, name = draft.plans, draft.plans["plans_name"]
    file = folder / f"{name}.json"
    if file.exists() and not overwrite:
        trained = sorted(Path(str(nnUNet_results)).glob(f"{escape(folder.name)}/*__{escape(name)}__*"))
        if trained and json.loads(file.read_text(encoding="utf-8")) != plans:
            raise KDError(
                f"{file} exists with other settings and {trained[0].name} was trained with it: pass --name to keep both, or "
                "--overwrite"
            )
    write_json(file, plans)
    return Planned(file, name, plans, costs, draft.rate_reason)
