"""The comparison's YAML file as checked dataclasses. Every key that is unknown, or that nothing would read, is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_kd.comparison.yaml_file import build, checked_name, checked_values, filled, read_yaml
from nnunet_kd.config.presets import NAMES
from nnunet_kd.config.run import UNDISTILLED
from nnunet_kd.utils.errors import KDError

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
    """One method. ``settings`` is merged into the plans section "nnunet_kd"; ``teacher`` names the method to learn from.

    ``iterations`` and (students only) ``features`` stand in for those of the file's sections teacher and student.
    """

    role: str = "student"
    preset: str | None = None
    settings: dict = field(default_factory=dict)
    seeds: list | None = None
    teacher: str | None = None
    iterations: int | None = None
    features: list | None = None


@dataclass(frozen=True)
class SourceSettings:
    """A data set that every method trains on."""

    dataset: int


@dataclass(frozen=True)
class SlurmSettings:
    """What one run asks of a Slurm cluster. ``local`` runs the jobs one after the other on this machine, to try the file.

    ``setup`` are shell lines before the run, ``extra`` further options of sbatch by their long names.
    """

    cluster: str = "slurm"
    hours: int | float = 24
    partition: str | None = None
    memory_gb: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list = field(default_factory=list)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class DomainSettings:
    """One domain: ``ID[:Tr|:Ts[:GLOB]]`` or ``IMAGES,LABELS[,FOV]``; which of its cases, and for which methods.

    ``clusters`` is a regular expression that finds, in a case's name, what the bootstrap draws as one (a child, a patient).
    ``sources``: the sources whose networks are evaluated here, by default all. ``unseen`` says whether the report counts it
    as an unseen domain; by default it is one if it belongs to another data set than the source.
    """

    domain: str
    cases: str = "all"
    methods: list | None = None
    clusters: str | None = None
    sources: list | None = None
    unseen: bool | None = None


@dataclass(frozen=True)
class CompareSettings:
    """The whole file. ``csv`` and ``models`` are relative to the current folder.

    Either ``dataset`` or ``sources``, and either ``fold`` or ``folds``; `all_sources` and `all_folds` have both forms as one.
    """

    file: Path
    configuration: str
    csv: Path
    models: Path
    teacher: TeacherSettings
    student: StudentSettings | None
    methods: dict[str, MethodSettings]
    domains: dict[str, DomainSettings]
    seeds: list[int]
    dataset: int | None = None
    sources: dict[str, SourceSettings] | None = None
    fold: int | None = None
    folds: list | None = None
    cpu_precision: str | None = None
    threads: int = 1
    device: str = "cpu"
    commit: bool = False
    failed_below: float = 0.5
    slurm: SlurmSettings | None = None

    @property
    def all_sources(self) -> dict[str, SourceSettings]:
        """The sources by name; the one of a file without names is called ""."""
        return self.sources or {"": SourceSettings(self.dataset or 0)}

    @property
    def all_folds(self) -> list[int]:
        return self.folds or [self.fold or 0]


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
    found = {}
    for name, value in filled(values, key).items():
        value = {short: value} if short and not isinstance(value, dict | None) else value
        found[checked_name(key, name)] = build(kind, value, f"{key}.{name}")
    return found


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
