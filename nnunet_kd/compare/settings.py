"""The comparison's YAML file as checked dataclasses. Every key that is unknown, or that nothing would read, is an error."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nnunet_kd.errors import KDError
from nnunet_kd.presets import PRESETS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")  # becomes part of folder names
UNDISTILLED = ("views", "msan", "act", "terms", "losses")  # what preset "student" does not read
OWN_KEYS = ("role", "preset", "seed", "teacher")  # what `settings` must leave to the file


@dataclass(frozen=True)
class TeacherSettings:
    """The teachers' plans, as for `nnunet-kd plan --role teacher`. Missing sizes stay as nnU-Net planned them."""

    iterations: int
    patch_size: list | None = None
    batch_size: int | None = None
    features: list | None = None
    initial_lr: float | None = None


@dataclass(frozen=True)
class StudentSettings:
    """The students' width and length of training, the same for all methods."""

    features: list
    iterations: int
    initial_lr: float | None = None


@dataclass(frozen=True)
class MethodSettings:
    """One method. ``settings`` is merged into the plans section "nnunet_kd"; ``teacher`` names the method to learn from."""

    role: str = "student"
    preset: str | None = None
    settings: dict = field(default_factory=dict)
    seeds: list | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class DomainSettings:
    """One domain: ``ID[:Tr|:Ts[:GLOB]]`` or ``IMAGES,LABELS[,FOV]``; which of its cases, and for which methods.

    ``clusters`` is a regular expression that finds, in a case's name, what the bootstrap draws as one (a child, a patient).
    """

    domain: str
    cases: str = "all"
    methods: list | None = None
    clusters: str | None = None


@dataclass(frozen=True)
class CompareSettings:
    """The whole file. ``csv`` and ``models`` are relative to the current folder."""

    file: Path
    dataset: int
    configuration: str
    csv: Path
    models: Path
    teacher: TeacherSettings
    student: StudentSettings | None
    methods: dict[str, MethodSettings]
    domains: dict[str, DomainSettings]
    seeds: list[int]
    fold: int = 0
    cpu_precision: str | None = None
    threads: int = 1
    device: str = "cpu"
    commit: bool = False


def read_settings(file: str | Path) -> CompareSettings:
    """The checked content of a comparison's YAML file.

    Raises:
        KDError: unreadable file, unknown, missing, doubled or unused keys, wrong types or values.
    """
    file = Path(file)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise KDError(f"{file} does not exist: name the comparison's YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KDError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _settings(file, content)
    except KDError as error:
        raise KDError(f"{file}: {error}") from None


def _settings(file: Path, content: Any) -> CompareSettings:
    values = _values(CompareSettings, content, "", without=("file",))
    methods = {_name("methods", k): _build(MethodSettings, v, f"methods.{k}") for k, v in _filled(values, "methods").items()}
    domains = {}
    for name, value in _filled(values, "domains").items():
        value = {"domain": value} if isinstance(value, str) else value
        domains[_name("domains", name)] = _build(DomainSettings, value, f"domains.{name}")
    values["teacher"] = _build(TeacherSettings, values["teacher"], "teacher")
    student = values.get("student")
    values["student"] = None if student is None else _build(StudentSettings, student, "student")
    for key in ("csv", "models"):
        values[key] = Path(values[key]).expanduser()
    values["seeds"] = _seeds(values.get("seeds"), methods)
    settings = CompareSettings(file, **values | {"methods": methods, "domains": domains})
    _check_values(settings)
    _check_methods(settings)
    _check_domains(settings)
    return settings


def _check_values(s: CompareSettings) -> None:
    for where, value, low in (
        ("dataset", s.dataset, 1), ("fold", s.fold, 0), ("threads", s.threads, 1),
        ("teacher.iterations", s.teacher.iterations, 1), ("student.iterations", s.student.iterations if s.student else 1, 1),
    ):  # fmt: skip
        if value < low:
            raise KDError(f'"{where}" is {value}: it must be at least {low}')
    for where, numbers in (("teacher.patch_size", s.teacher.patch_size), ("teacher.features", s.teacher.features),
                           ("student.features", s.student and s.student.features), ("seeds", s.seeds),
                           *((f"methods.{n}.seeds", m.seeds) for n, m in s.methods.items())):  # fmt: skip
        _whole_numbers(where, numbers)
    if s.device not in ("cpu", "cuda"):
        raise KDError(f'"device" is "{s.device}": use cpu or cuda')
    if s.cpu_precision is not None and s.device != "cpu":
        raise KDError(f'"cpu_precision" is set but device is {s.device}, where nothing reads it: remove it')
    if s.cpu_precision not in (None, "float32", "bfloat16"):
        raise KDError(f'"cpu_precision" is "{s.cpu_precision}": use float32 or bfloat16')
    if s.csv.suffix != ".csv":
        raise KDError(f'"csv" is {s.csv}: name a file that ends in .csv')


def _whole_numbers(where: str, numbers: list | None) -> None:
    if numbers is None:
        return
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise KDError(f'"{where}" is {numbers}: list whole numbers, such as [0, 1, 2]')
    if where.endswith("seeds") and len(set(numbers)) < len(numbers):
        raise KDError(f'"{where}" is {numbers}: name every seed once')


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
            raise KDError(f'"{where}.preset" is missing: use one of {", ".join(PRESETS)}')
        known = ("student", "views-only") if m.role == "teacher" else tuple(PRESETS)
        if m.preset is not None and m.preset not in known:
            raise KDError(f'"{where}.preset" is "{m.preset}": a {m.role} can have {", ".join(known)}')
        for key in m.settings:
            if key in OWN_KEYS:
                raise KDError(f'"{where}.settings.{key}": this file sets it itself; write it beside "settings", not in it')
            if key in UNDISTILLED and m.preset in (None, "student"):
                raise KDError(f'"{where}.settings.{key}" is set but preset "student" does not read it: change the preset')
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
        try:
            re.compile(d.clusters or "")
        except re.error as error:
            raise KDError(f'"{where}.clusters" is no regular expression ({error}): try (\\d+)') from None


def cluster_of(settings: CompareSettings, domain: str, case: str) -> str:
    """What the bootstrap draws a case with: the first group of the domain's ``clusters``, or the case itself.

    The copies ``CASE__jpeg``, ``CASE__hue`` of one case belong together. A domain that is not in the file has no clusters.
    """
    own = settings.domains.get(domain)
    if own is None or own.clusters is None:
        return case.split("__")[0]
    found = re.search(own.clusters, case)
    if found is None:
        raise KDError(f'{settings.file}: "domains.{domain}.clusters" ({own.clusters}) does not match case {case}: change it')
    return found[1] if found.re.groups else found[0]


def slug(method: str) -> str:
    """A method's name with letters, digits and single underscores only: nnU-Net splits its folder names at ``__``."""
    return re.sub(r"[^A-Za-z0-9]+", "_", method).strip("_")


def _seeds(seeds: list | None, methods: dict[str, MethodSettings]) -> list:
    own = all(m.seeds is not None for m in methods.values())
    if seeds is None and not own:
        raise KDError('"seeds" is missing: add `seeds: [0, 1, 2]`, or seeds to every method')
    if seeds is not None and own:
        raise KDError('"seeds" is set but every method names its own: remove it')
    return seeds if seeds is not None else [0]


def _filled(values: dict, key: str) -> dict:
    if not values[key]:
        raise KDError(f'"{key}" is empty: add at least one')
    return values[key]


def _name(where: str, name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise KDError(f'"{where}" has the name {name!r}: use letters, digits, "+", "-", "_" and "." (in quotes if YAML reads '
                      "it as something else)")  # fmt: skip
    return name


def _build(cls: type, data: Any, where: str) -> Any:
    return cls(**_values(cls, data, where))


def _values(cls: type, data: Any, where: str, without: tuple[str, ...] = ()) -> dict:
    """The checked keys of one mapping, by a dataclass's type hints."""
    prefix = f"{where}." if where else ""
    if not isinstance(data, dict):
        raise KDError(f'"{where or "the file"}" must be a mapping with keys, got {data!r}')
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in without}
    hints = typing.get_type_hints(cls)
    for key, value in data.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), list(fields), n=1)
            fix = f'did you mean "{close[0]}"?' if close else f"known keys: {', '.join(fields)}"
            raise KDError(f'unknown key "{prefix}{key}"; {fix}')
        allowed = _types(hints[key])
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(t.__name__ for t in allowed if t is not type(None))
            raise KDError(f'"{prefix}{key}" is {value!r}: it must be of type {names}')
    for name, f in fields.items():
        optional = type(None) in _types(hints[name]) or name == "seeds"
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data and not optional:
            raise KDError(f'"{prefix}{name}" is missing: add it')
    return dict(data)


def _types(hint: Any) -> tuple[type, ...]:
    """Types that a value of the YAML file may have: paths are text there, nested dataclasses mappings."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    plain = [typing.get_origin(o) or o for o in options]
    return tuple(dict if dataclasses.is_dataclass(o) else str if o is Path else o for o in plain)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error: YAML would silently keep the last."""

    def construct_mapping(self, node, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.YAMLError(f'key "{name}" is there twice (line {key.start_mark.line + 1}): remove one')
            seen.add(name)
        return super().construct_mapping(node, deep)
