"""From the YAML file to runs: the plans of every method, checked before anything trains, and what identifies a result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_kd.augmentation.views import VIEW_PRESETS
from nnunet_kd.comparison.settings import CompareSettings, MethodSettings, cluster_of, slug
from nnunet_kd.comparison.sizes import PLAIN, Size, size_of, templates_of
from nnunet_kd.config.run import SECTION, Config, read_config
from nnunet_kd.datasets.nnunet_format import read_fold
from nnunet_kd.evaluation.domains import Domain, parse_domain
from nnunet_kd.evaluation.predict import check_images
from nnunet_kd.networks.cost import count_parameters
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network
from nnunet_kd.planning.drafts import TEACHER_PLANS, plans_name
from nnunet_kd.planning.plans import preprocessed_folder
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json

DISTILLING = "nnUNetTrainerDistillation"


@dataclass(frozen=True)
class Source:
    """A data set to train on: its name in the file ("" in a file without names), nnU-Net's name and folders."""

    name: str
    dataset: str
    preprocessed: Path
    results: Path

    @property
    def notes(self) -> Path:
        """Where logs and locks lie."""
        return self.results / "compare"


@dataclass(frozen=True)
class Run:
    """One method with one seed on one fold of one source.

    ``plans`` lack only their name and the teacher's folder. ``resolved`` is what the result depends on besides the seed, and
    ``config_hash`` its hash. ``fold_named``: the file lists folds, so that names and rows have to tell which.
    """

    source: Source
    fold: int
    method: str
    seed: int
    plans: dict
    trainer: str
    resolved: dict
    config_hash: str
    parameters: int
    teacher: Run | None
    fold_named: bool = False

    @property
    def label(self) -> str:
        fold = f" fold {self.fold}" if self.fold_named else ""
        return f"{self.method} seed {self.seed}{fold}{f' from {self.source.name}' if self.source.name else ''}"

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.method, self.seed, self.source.name, self.fold

    @property
    def features(self) -> list[int]:
        (configuration,) = self.plans["configurations"].values()
        return configuration["architecture"]["arch_kwargs"]["features_per_stage"]

    @property
    def model_name(self) -> str:
        # fold 0 keeps the name it has in a file without folds
        fold = f"_fold{self.fold}" if self.fold_named and self.fold else ""
        return f"{self.method}_{'-'.join(map(str, self.features))}_seed{self.seed}{fold}"

    @property
    def plans_names(self) -> list[str]:
        """Names its plans may have, in order of preference. The hash keeps trainings of other settings apart."""
        hashed = f"KD_{slug(self.method)}_{'_'.join(map(str, self.features))}_{self.config_hash}"
        # the plain teacher is also the one that `nnunet-kd plan --role teacher` names
        usual = [TEACHER_PLANS] if self.method == "teacher" else []
        return [plans_name(name, self.seed) for name in (*usual, hashed)]

    @property
    def iterations(self) -> int:
        schedule = self.plans[SECTION]["schedule"]
        return schedule["epochs"] * schedule["iterations_per_epoch"]


@dataclass(frozen=True)
class Comparison:
    """What the file asks for. ``runs`` are in the order of work.

    ``domains[source, fold]`` has the domains of its runs by name, with their cases chosen.
    """

    settings: CompareSettings
    runs: list[Run]
    domains: dict[tuple[str, int], dict[str, Domain]]

    def domains_of(self, run: Run) -> list[Domain]:
        """The domains that a run is evaluated on."""
        domains = self.domains[run.source.name, run.fold]
        chosen = ((d, self.settings.domains[name].methods) for name, d in domains.items())
        return [d for d, methods in chosen if methods is None or run.method in methods]


def plan_comparison(settings: CompareSettings) -> Comparison:
    """Plan every method in memory and find every domain's cases. Writes nothing but a missing splits_final.json.

    Raises:
        KDError: whatever would later stop a run: settings, sizes, missing data, unfit domains.
    """
    runs, domains = [], {}
    for name, chosen in settings.all_sources.items():
        folder = preprocessed_folder(chosen.dataset)
        source = Source(name, folder.name, folder, Path(os.environ["nnUNet_results"]) / folder.name)
        templates = templates_of(settings, folder)
        for fold in settings.all_folds:
            runs += _runs(settings, source, fold, templates)
            domains[name, fold] = _domains(settings, source, fold)
    return Comparison(settings, runs, domains)


def _runs(settings: CompareSettings, source: Source, fold: int, templates: dict[Size, dict]) -> list[Run]:
    teachers = {n: m for n, m in settings.methods.items() if m.role == "teacher"}
    resolved: dict[str, tuple[dict, str, dict, int]] = {}
    for name, method in {**teachers, **settings.methods}.items():
        resolved[name] = _resolve(settings, name, method, templates, source.preprocessed, fold, resolved)
    made: dict[tuple[str, int], Run] = {}
    for name, seed in _order(settings, teachers, {n for n, r in resolved.items() if "teacher" in r[0][SECTION]}):
        plans, trainer, content, parameters = resolved[name]
        plans = deepcopy(plans)
        plans[SECTION]["seed"] = seed
        # the teacher of the same fold: any other has seen this one's validation cases
        teacher = made.get((_teacher_of(name, settings), seed)) if "teacher" in plans[SECTION] else None
        made[name, seed] = Run(
            source, fold, name, seed, plans, trainer, content, _hash(content), parameters, teacher, settings.folds is not None
        )
    return list(made.values())


def same_training(run: Run, plans: dict) -> bool:
    """Whether plans found beside a training (or planned under its name) are the run's own, wherever its teacher lies."""

    def relevant(p: dict) -> tuple:
        config = read_config(p, "student" if run.trainer == PLAIN else None, run.trainer)
        return (
            p["dataset_name"],
            p["configurations"],
            config.seed,
            config.teacher and config.teacher.plans_hash,
            (_result_depends_on(config)),
        )

    try:
        return json.dumps(relevant(run.plans), sort_keys=True) == json.dumps(relevant(plans), sort_keys=True)
    except KDError:  # of another version of this program, say
        return False


def _order(settings: CompareSettings, teachers: dict[str, MethodSettings], taught: set[str]) -> Iterator[tuple[str, int]]:
    """Teachers first, then seed by seed as in the file. A teacher gets the seeds of the students that need it as well."""
    seeds = {name: list(settings.seeds if m.seeds is None else m.seeds) for name, m in settings.methods.items()}
    for name in taught:
        teacher = _teacher_of(name, settings)
        seeds[teacher] += [s for s in seeds[name] if s not in seeds[teacher]]
    for group in (teachers, [n for n in settings.methods if n not in teachers]):
        for seed in dict.fromkeys([*settings.seeds, *(s for name in group for s in seeds[name])]):
            yield from ((name, seed) for name in group if seed in seeds[name])


def _teacher_of(name: str, settings: CompareSettings) -> str:
    return settings.methods[name].teacher or "teacher"


def _resolve(
    settings: CompareSettings,
    name: str,
    method: MethodSettings,
    templates: dict[Size, dict],
    folder: Path,
    fold: int,
    known: dict,
) -> tuple[dict, str, dict, int]:
    """One method's plans, trainer, everything its result depends on, and its number of parameters."""
    plans = deepcopy(templates[size_of(method)])
    section = plans[SECTION]
    preset = method.preset or "student"
    trainer = PLAIN if preset == "student" else DISTILLING
    if trainer == DISTILLING:
        section["preset"] = preset
    extra = deepcopy(method.settings)
    if not isinstance(extra.get("schedule", {}), dict):
        raise KDError(f'{settings.file}: "methods.{name}.settings.schedule" must be a mapping')
    section["schedule"] |= extra.pop("schedule", {})
    section |= extra
    try:
        config = read_config(plans, "student" if trainer == PLAIN else None, trainer)
    except KDError as error:
        raise KDError(f"{settings.file}: method {name}: {error}") from None
    content = _result_depends_on(config) | {
        "dataset": plans["dataset_name"],
        "fold": fold,
        "configurations": plans["configurations"],
    }
    if config.distils:
        teacher = _teacher_of(name, settings)
        if teacher not in known:
            raise KDError(
                f'{settings.file}: method {name} learns from method "{teacher}", which is not there: add '
                f"`{teacher}: {{role: teacher}}` to the methods, or name another in methods.{name}.teacher"
            )
        content["teacher"] = known[teacher][2]
    else:
        # neither trained with nor waited for; the settings a teacher's plans brought are in the plans themselves
        section.pop("teacher", None)
    network = build_network(
        ModelFolder(folder, plans, json.loads((folder / "dataset.json").read_text(encoding="utf-8")), settings.configuration)
    )
    return plans, trainer, json.loads(json.dumps(content)), count_parameters(network)


def _result_depends_on(config: Config) -> dict:
    """The configuration with its preset spelled out; a term that is off leaves no trace, nor does a preset's name."""
    content = {k: v for k, v in _without_none(dataclasses.asdict(config)).items() if k not in ("preset", "seed", "teacher")}
    if config.views is not None:
        steps = VIEW_PRESETS.get(config.views.preset, ())
        content["views"]["steps"] = [{k: getattr(v, "__name__", v) for k, v in vars(s).items()} for s in steps]
    return content


def _without_none(value: Any) -> Any:
    return {k: _without_none(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _domains(settings: CompareSettings, source: Source, fold: int) -> dict[str, Domain]:
    dataset_json = json.loads((source.preprocessed / "dataset.json").read_text(encoding="utf-8"))
    domains = {}
    for name, d in settings.domains.items():
        if d.sources is not None and source.name not in d.sources:
            continue
        domain = parse_domain(f"{name}={d.domain}", Path(os.environ["nnUNet_raw"]))
        if d.cases == "validation":
            kept = _validation_cases(source.preprocessed, settings, fold)
            domain = dataclasses.replace(domain, cases=[c for c in domain.cases if c.split("__")[0] in kept])
            if not domain.cases:
                raise KDError(
                    f"{settings.file}: domain {name} has no validation case of fold {fold} of {source.dataset} "
                    f"({', '.join(sorted(kept)[:3])}, ...): change `domain`, `cases` or `sources`"
                )
        for case in domain.cases:
            cluster_of(settings, name, case)
        check_images(domain, dataset_json)
        domains[name] = domain
    if not domains:
        raise KDError(f"{settings.file}: no domain is for source {source.name}: name it in the `sources` of one")
    return domains


def _validation_cases(folder: Path, settings: CompareSettings, fold: int) -> set[str]:
    file = folder / "splits_final.json"
    if not file.is_file():
        # nnU-Net would make the same at the first training, in the middle of which another worker could read it
        ending = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
        cases = sorted(p.name.removesuffix(ending) for p in (folder / "gt_segmentations").iterdir())
        write_json(file, [{k: [str(c) for c in v] for k, v in s.items()} for s in generate_crossval_split(cases)])
    split = read_fold(folder, fold)
    if split is None:
        key = "folds" if settings.folds else "fold"
        raise KDError(f'{settings.file}: "{key}" is {fold}, a fold that {file} does not have: name another')
    return set(split["val"])
