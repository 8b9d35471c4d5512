"""What a comparison's YAML file can say, as dataclasses. checked_settings.py reads and checks it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_kd.utils.errors import KDError


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


def cluster_of(settings: CompareSettings, domain: str, case: str) -> str:
    """What the bootstrap draws a case with: the first group of the domain's ``clusters``, or the case itself.

    The copies ``CASE__jpeg``, ``CASE__hue`` of one case belong together. A domain that is not in the file has no clusters.
    """
    named = settings.domains.get(domain)
    if named is None or named.clusters is None:
        return case.split("__")[0]
    match = re.search(named.clusters, case)
    if match is None:
        raise KDError(f'{settings.file}: "domains.{domain}.clusters" ({named.clusters}) does not match case {case}: change it')
    return match[1] if match.re.groups else match[0]


def slug(method: str) -> str:
    """A method's name with letters, digits and single underscores only: nnU-Net splits its folder names at ``__``."""
    return re.sub(r"[^A-Za-z0-9]+", "_", method).strip("_")
