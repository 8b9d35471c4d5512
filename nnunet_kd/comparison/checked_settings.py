"""Read and check a comparison's YAML file. Every key that is unknown, or that nothing would read, is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnunet_kd.comparison.settings import (
    CompareSettings,
    DomainSettings,
    MethodSettings,
    SlurmSettings,
    SourceSettings,
    StudentSettings,
    TeacherSettings,
    slug,
)
from nnunet_kd.comparison.yaml_file import build, checked_name, checked_values, filled, read_yaml
from nnunet_kd.config.presets import NAMES
from nnunet_kd.config.run import UNDISTILLED
from nnunet_kd.utils.errors import KDError

OWN_KEYS = ("role", "preset", "seed", "teacher")  # what `settings` must leave to the file


def read_settings(file: str | Path) -> CompareSettings:
    """The checked content of a comparison's YAML file.

    Raises:
        KDError: unreadable file, unknown, missing, doubled or unused keys, wrong types or values.
    """
    file = Path(file)
    content = read_yaml(file)
    try:
        return _settings(file, content)
    except KDError as error:
        raise KDError(f"{file}: {error}") from None


def _settings(file: Path, content: Any) -> CompareSettings:
    values = checked_values(CompareSettings, content, "", without=("file",))
    methods = _named(MethodSettings, values, "methods")
    domains = _named(DomainSettings, values, "domains", short="domain")
    values["teacher"] = build(TeacherSettings, values["teacher"], "teacher")
    for key, kind in (("student", StudentSettings), ("slurm", SlurmSettings)):
        values[key] = None if values.get(key) is None else build(kind, values[key], key)
    if values.get("sources") is not None:
        values["sources"] = _named(SourceSettings, values, "sources", short="dataset")
    for key in ("csv", "models"):
        values[key] = Path(values[key]).expanduser()
    values["seeds"] = _seeds(values.get("seeds"), methods)
    settings = CompareSettings(file, **values | {"methods": methods, "domains": domains})
    _check_values(settings)
    _check_methods(settings)
    _check_domains(settings)
    return settings


def _named(kind: type, values: dict, key: str, short: str | None = None) -> dict[str, Any]:
    """A mapping of names; a bare value stands for a mapping with the key ``short`` alone."""
    checked = {}
    for name, value in filled(values, key).items():
        value = {short: value} if short and not isinstance(value, dict | None) else value
        checked[checked_name(key, name)] = build(kind, value, f"{key}.{name}")
    return checked


def _check_values(s: CompareSettings) -> None:
    if (s.dataset is None) == (s.sources is None):
        both = s.dataset is not None
        raise KDError(
            '"dataset" and "sources" are both set: keep one'
            if both
            else '"dataset" is missing: add it, or `sources: {NAME: ID, ...}` to train on several'
        )
    if s.fold is not None and s.folds is not None:
        raise KDError('"fold" and "folds" are both set: keep one')
    for where, value, low in (
        *((f"sources.{n}" if n else "dataset", v.dataset, 1) for n, v in s.all_sources.items()),
        ("fold", s.fold or 0, 0),
        ("threads", s.threads, 1),
        ("teacher.iterations", s.teacher.iterations, 1),
        ("student.iterations", s.student.iterations if s.student else 1, 1),
        *((f"methods.{n}.iterations", 1 if m.iterations is None else m.iterations, 1) for n, m in s.methods.items()),
    ):
        if value < low:
            raise KDError(f'"{where}" is {value}: it must be at least {low}')
    for where, numbers in (
        ("teacher.patch_size", s.teacher.patch_size),
        ("teacher.features", s.teacher.features),
        ("student.features", s.student and s.student.features),
        ("seeds", s.seeds),
        ("folds", s.folds),
        *((f"methods.{n}.seeds", m.seeds) for n, m in s.methods.items()),
        *((f"methods.{n}.features", m.features) for n, m in s.methods.items()),
    ):
        _whole_numbers(where, numbers)
    if s.device not in ("cpu", "cuda"):
        raise KDError(f'"device" is "{s.device}": use cpu or cuda')
    if s.cpu_precision is not None and s.device != "cpu":
        raise KDError(f'"cpu_precision" is set but device is {s.device}, where nothing reads it: remove it')
    if s.cpu_precision not in (None, "float32", "bfloat16"):
        raise KDError(f'"cpu_precision" is "{s.cpu_precision}": use float32 or bfloat16')
    if s.csv.suffix != ".csv":
        raise KDError(f'"csv" is {s.csv}: name a file that ends in .csv')
    if not 0 <= s.failed_below <= 1:
        raise KDError(f'"failed_below" is {s.failed_below}: a case counts as failed below this Dice, from 0 to 1')
    if s.slurm is not None:
        _check_slurm(s.slurm)


def _check_slurm(s: SlurmSettings) -> None:
    if s.cluster not in ("slurm", "local"):
        raise KDError(f'"slurm.cluster" is "{s.cluster}": use slurm, or local to try the file on this machine')
    for key, low in (("hours", 0.01), ("memory_gb", 1), ("cpus", 1), ("gpus", 0)):
        value = getattr(s, key)
        if value is not None and value < low:
            raise KDError(f'"slurm.{key}" is {value}: it must be at least {low}')
    if not all(isinstance(line, str) for line in s.setup):
        raise KDError(f'"slurm.setup" is {s.setup}: list shell lines, such as ["module load python"]')
    if "dependency" in s.extra:
        raise KDError('"slurm.extra.dependency" is set by this program itself (students wait for their teacher): remove it')


def _whole_numbers(where: str, numbers: list | None) -> None:
    if numbers is None:
        return
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise KDError(f'"{where}" is {numbers}: list whole numbers, such as [0, 1, 2]')
    if where.endswith(("seeds", "folds")) and len(set(numbers)) < len(numbers):
        raise KDError(f'"{where}" is {numbers}: name every {where.split(".")[-1][:-1]} once')


def _check_methods(s: CompareSettings) -> None:
    teachers = [name for name, m in s.methods.items() if m.role == "teacher"]
    students = [name for name, m in s.methods.items() if m.role != "teacher"]
    if students and s.student is None:
        raise KDError('"student" is missing: add `student: {features: [4, 8, 16, 24], iterations: 1200}`')
    if not students and s.student is not None:
        raise KDError('"student" is set but every method is a teacher: remove it, or add a method with a preset')
    folders: dict[str, str] = {}
    for name, m in s.methods.items():
        where = f"methods.{name}"
        twin = folders.setdefault(slug(name).lower(), name)
        if twin != name:
            raise KDError(f'methods "{twin}" and "{name}" would share a plans name: rename one')
        if m.role not in ("teacher", "student"):
            raise KDError(f'"{where}.role" is "{m.role}": use teacher or student')
        if m.role == "student" and m.preset is None:
            raise KDError(f'"{where}.preset" is missing: use one of {", ".join(NAMES)}')
        known = ("student", "views-only") if m.role == "teacher" else NAMES
        if m.preset is not None and m.preset not in known:
            raise KDError(f'"{where}.preset" is "{m.preset}": a {m.role} can have {", ".join(known)}')
        for key in m.settings:
            if key in OWN_KEYS:
                raise KDError(f'"{where}.settings.{key}": this file sets it itself; write it beside "settings", not in it')
            if key in UNDISTILLED and m.preset in (None, "student"):
                raise KDError(f'"{where}.settings.{key}" is set but preset "student" does not read it: change the preset')
        if m.features is not None and m.role == "teacher":
            raise KDError(f'"{where}.features" is set but its role is teacher: all teachers take "teacher.features"')
        if m.teacher is not None and (m.role == "teacher" or m.teacher not in teachers):
            raise KDError(f'"{where}.teacher" is "{m.teacher}": name a method with role teacher, for a student only')


def _check_domains(s: CompareSettings) -> None:
    for name, d in s.domains.items():
        where = f"domains.{name}"
        if d.cases not in ("all", "validation"):
            raise KDError(f'"{where}.cases" is "{d.cases}": use all or validation')
        for method in d.methods or []:
            if method not in s.methods:
                raise KDError(f'"{where}.methods" names "{method}": known methods are {", ".join(s.methods)}')
        if d.methods == []:
            raise KDError(f'"{where}.methods" is empty, so nothing would be predicted: name methods, or remove the key')
        for source in d.sources or []:
            if s.sources is None or source not in s.sources:
                raise KDError(f'"{where}.sources" names "{source}": known sources are {", ".join(s.sources or ["none"])}')
        if d.sources == []:
            raise KDError(f'"{where}.sources" is empty, so nothing would be predicted: name sources, or remove the key')
        try:
            re.compile(d.clusters or "")
        except re.error as error:
            raise KDError(f'"{where}.clusters" is no regular expression ({error}): try (\\d+)') from None


def _seeds(seeds: list | None, methods: dict[str, MethodSettings]) -> list:
    each_has_its_own = all(m.seeds is not None for m in methods.values())
    if seeds is None and not each_has_its_own:
        raise KDError('"seeds" is missing: add `seeds: [0, 1, 2]`, or seeds to every method')
    if seeds is not None and each_has_its_own:
        raise KDError('"seeds" is set but every method names its own: remove it')
    return seeds if seeds is not None else [0]
