"""The plans a comparison's methods start from: one of each role, length and width that the file asks for."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_kd.comparison.settings import CompareSettings, MethodSettings
from nnunet_kd.planning.plans import plan_student, plan_teacher
from nnunet_kd.utils.errors import KDError

FINAL = "checkpoint_final.pth"
PLAIN = "nnUNetTrainerScheduled"
Size = tuple[str, int | None, tuple[int, ...] | None]  # role, iterations and features where a method has its own


def size_of(method: MethodSettings) -> Size:
    """The key of a method's template."""
    return method.role, method.iterations, None if method.features is None else tuple(method.features)


def templates_of(settings: CompareSettings, folder: Path) -> dict[Size, dict]:
    """The plans of a plain teacher and of a student, for every length and width that a method asks for, by the package's own
    planning in a scratch copy of the folders.

    Student plans come out of a trained folder, and nothing may be trained or overwritten yet: hence the copy.
    """
    base = folder / "nnUNetPlans.json"
    if not base.is_file():
        raise KDError(f"{base} does not exist: run `nnUNetv2_plan_and_preprocess -d {folder.name}` first")
    sizes = list(dict.fromkeys(size_of(m) for m in settings.methods.values()))
    with tempfile.TemporaryDirectory() as scratch:
        preprocessed, results = Path(scratch, "preprocessed", folder.name), Path(scratch, "results", folder.name)
        preprocessed.mkdir(parents=True)
        for file in (base, folder / "dataset.json"):
            shutil.copy(file, preprocessed)
        with _environment(nnUNet_preprocessed=str(preprocessed.parent), nnUNet_results=str(results.parent)):
            common = {"cpu_precision": settings.cpu_precision, "overwrite": True}
            plain = dataclasses.asdict(settings.teacher)
            plans = {
                size: plan_teacher(
                    folder.name, settings.configuration, **plain | _given({"iterations": size[1]}), **common
                ).plans
                for size in sizes
                if size[0] == "teacher"
            }
            if settings.student is not None:
                teacher = plan_teacher(folder.name, settings.configuration, **plain, **common)
                model = results / f"{PLAIN}__{teacher.plans_name}__{settings.configuration}"
                (model / f"fold_{settings.all_folds[0]}").mkdir(parents=True)
                (model / f"fold_{settings.all_folds[0]}" / FINAL).touch()
                shutil.copy(teacher.file, model / "plans.json")
                shutil.copy(folder / "dataset.json", model)
                usual = dataclasses.asdict(settings.student)
                for size in (size for size in sizes if size[0] == "student"):
                    own = _given({"iterations": size[1], "features": size[2] and list(size[2])})
                    planned = plan_student(folder.name, settings.configuration, model, **usual | own, **common)
                    plans[size] = planned.plans
    return plans


def _given(values: dict) -> dict:
    return {k: v for k, v in values.items() if v is not None}


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.update({k: v for k, v in before.items() if v is not None})
        for name in (k for k, v in before.items() if v is None):
            del os.environ[name]
