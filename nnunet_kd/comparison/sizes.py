"""The plans a comparison's methods start from: one of each role, length and width that the file asks for."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from nnunet_kd.comparison.settings import CompareSettings, MethodSettings
from nnunet_kd.nnunet_io.model_folder import ModelFolder
from nnunet_kd.planning.drafts import draft_student, draft_teacher, student_base
from nnunet_kd.planning.plans import read_dataset_json, read_plans
from nnunet_kd.planning.requests import StudentRequest, TeacherRequest

PLAIN = "nnUNetTrainerScheduled"


@dataclasses.dataclass(frozen=True)
class Size:
    """What tells a method's plans from another's: its role, and the length and width where it has its own."""

    role: str
    iterations: int | None
    features: tuple[int, ...] | None

    @property
    def given(self) -> dict:
        """The fields of a request that it sets."""
        fields = {"iterations": self.iterations, "features": self.features and list(self.features)}
        return {k: v for k, v in fields.items() if v is not None}


def size_of(method: MethodSettings) -> Size:
    """The key of a method's template."""
    return Size(method.role, method.iterations, None if method.features is None else tuple(method.features))


def templates_of(settings: CompareSettings, folder: Path) -> dict[Size, dict]:
    """The plans of a plain teacher and of a student, for every length and width that a method asks for.

    Drafted in memory: nothing may be trained or overwritten yet.

    Args:
        folder: the data set's preprocessed folder.
    """
    base, dataset_json = read_plans(folder), read_dataset_json(folder)
    sizes = list(dict.fromkeys(size_of(m) for m in settings.methods.values()))
    common = {
        "dataset": folder.name,
        "configuration": settings.configuration,
        "cpu_precision": settings.cpu_precision,
    }
    plain = TeacherRequest(**dataclasses.asdict(settings.teacher), **common)
    templates = {
        size: draft_teacher(dataclasses.replace(plain, **size.given), base, dataset_json).plans
        for size in sizes
        if size.role == "teacher"
    }
    if settings.student is None:
        return templates
    plans = json.loads(json.dumps(draft_teacher(plain, base, dataset_json).plans))  # as they would be read from a file
    trained = f"{PLAIN}__{plans['plans_name']}__{settings.configuration}"  # where nnU-Net would train it
    teacher = ModelFolder(
        Path(os.environ.get("nnUNet_results", "."), folder.name, trained), plans, dataset_json, settings.configuration
    )
    usual = StudentRequest(teacher=teacher.path, **dataclasses.asdict(settings.student), **common)
    for size in (size for size in sizes if size.role == "student"):
        request = dataclasses.replace(usual, **size.given)
        templates[size] = draft_student(request, student_base(teacher, settings.configuration, dataset_json)).plans
    return templates
