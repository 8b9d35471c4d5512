"""Frechet Semantic Distances of models between domains, between networks, and between prediction and annotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.evaluation.fsd import distance as fsd
from nnunet_kd.evaluation.fsd.post_hoc import PRESET, fit_of, fit_of_run, fitted_run
from nnunet_kd.evaluation.fsd.sample import Sample
from nnunet_kd.evaluation.fsd.vectors import AlignedRun, load_aligned_run, semantic_vectors
from nnunet_kd.evaluation.predict import check_readable
from nnunet_kd.nnunet_io.trained_fold import OpenFold, TrainedFold
from nnunet_kd.utils.errors import KDError

MSANS = ("auto", "own", "fit")


@dataclasses.dataclass(frozen=True)
class Semantics:
    """What `compare_models` has found.

    ``rows``: one per comparison (see there). ``samples``: ``{model: {kind: {domain: Sample}}}``, kinds "student", "teacher",
    "student prediction", "annotation", ... ``msans``: per model where its MSANs come from and how well fitted ones do.
    """

    rows: list[dict]
    samples: dict[str, dict[str, dict[str, Sample]]]
    msans: dict[str, dict]


@dataclasses.dataclass(frozen=True)
class RunsRequest:
    """Which MSANs models are compared with.

    Args:
        msan: "own" (of the training), "fit" (fit them to every model, post_hoc.py), "auto": own if every model has some of one
            kind, stages and size and there is no ``preset``, else fit.
        preset: whose settings are fitted; default: those of the first model with MSANs, else those of ``kd+adjusted+mirrored``.
        steps, seed: of the fit.
        networks: with own MSANs, which networks are read.
        cache: folder for fitted MSANs.

    Raises:
        KDError: no such ``msan``.
    """

    msan: str = "auto"
    preset: str | None = None
    steps: int = 600
    seed: int = 0
    networks: Sequence[str] = ("student", "teacher")
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.msan not in MSANS:
            raise KDError(f'--msan "{self.msan}" is unknown: use one of {", ".join(MSANS)}')


def prepare_runs(
    folds: Mapping[str, TrainedFold], request: RunsRequest | None = None, open_fold: OpenFold = TrainedFold.open
) -> dict[str, AlignedRun]:
    """Models with MSANs: those of their training, or fitted ones with the same settings for all.

    Args:
        folds: of the models, by the models' names.
        open_fold: how teachers' folds are opened.

    Raises:
        KDError: as `load_aligned_run` and `fitted_run` do.
    """
    request = request or RunsRequest()
    settings = {name: fit_of_run(fold, request.steps, request.seed) for name, fold in folds.items() if fold.msans is not None}
    alike = len(settings) == len(folds) and len({repr((f.msan, f.act)) for f in settings.values()}) == 1
    if request.msan == "own" or (request.msan == "auto" and alike and request.preset is None):
        teacher = "teacher" in request.networks
        return {name: load_aligned_run(fold, teacher, open_fold) for name, fold in folds.items()}
    if request.preset or not settings:
        fit = fit_of(request.preset or PRESET, request.steps, request.seed)
    else:
        fit = next(iter(settings.values()))
    return {name: fitted_run(fold, fit, name, request.cache, open_fold) for name, fold in folds.items()}


def compare_models(
    runs: Mapping[str, AlignedRun],
    source: Domain,
    targets: Sequence[Domain],
    networks: Sequence[str] = ("student", "teacher"),
    bootstrap: int = 200,
    seed: int = 0,
    maps: bool = True,
    teacher: str | None = None,
) -> Semantics:
    """All distances of every model.

    Every row is `fsd.compare`'s plus model, network, source, target and ``comparison``:

    * "domains": semantic vectors of one half of the source's cases against each target, and against the other half: the floor,
      what distance two samples of one domain have.
    * "networks": the teacher's vectors against the student's on one domain.
    * "prediction": P-SAE vectors of the annotation against those of the prediction, on one domain. "annotation": of the
      source's annotation against each target's.

    Args:
        source: held-out cases of the home domain.
        networks: of runs with MSANs of their training.
        bootstrap: resamplings of a "domains" row; the others take a quarter.
        maps: "prediction" and "annotation" too, where there is a P-SAE and domains are annotated.
        teacher: name of the model that fitted students are compared with in "networks".

    Raises:
        KDError: too few cases, unreadable images, two domains of one name.
    """
    check_domains(source, targets)
    if teacher is not None and (teacher not in runs or any(r.origin == "training" for r in runs.values())):
        raise KDError(
            f"--teacher {teacher} must name one of the models ({', '.join(runs)}), all with fitted MSANs (--msan fit): runs "
            "with their own MSANs bring their teacher along"
        )
    order = np.random.default_rng(seed).permutation(source.cases)
    reference = set(order[: len(order) // 2])
    rows: list[dict] = []
    samples: dict[str, dict[str, dict[str, Sample]]] = {}
    annotated = False

    def add(comparison: str, model: str, network: str, a: Sample, b: Sample, names: tuple[str, str]) -> None:
        samples_drawn = bootstrap if comparison == "domains" else max(10, bootstrap // 4)
        try:
            result = fsd.compare(a, b, seed=seed, bootstrap=samples_drawn)
        except ValueError as error:
            raise KDError(f"FSD of {names[0]} against {names[1]} ({model} {network}): {error}; give it more cases") from None
        rows.append(
            {
                "comparison": comparison,
                "model": model,
                "network": network,
                "source": names[0],
                "target": names[1],
                "msan": runs[model].origin,
                **result,
            }
        )

    def halves(home: Sample, name: str) -> tuple[Sample, Sample]:
        first = np.isin(home.cases, list(reference))
        try:
            return home.part(first), home.part(~first)
        except ValueError as error:
            raise KDError(f"half of source domain {name}: {error}; give it more cases") from None

    for name, run in runs.items():
        chosen = tuple(n for n in networks if n in run.networks) if run.origin == "training" else run.networks
        by_kind: dict[str, dict[str, Sample]] = {}
        for domain in (source, *targets):
            for kind, sample in semantic_vectors(run, domain, chosen, maps=maps).items():
                by_kind.setdefault(kind, {})[domain.name] = sample
        samples[name] = by_kind
        between = [(n, "domains") for n in chosen]
        if source.name in by_kind.get("annotation", {}) and not (annotated and run.origin == "post hoc"):
            between.append(("annotation", "annotation"))  # a fitted P-SAE is the same for all models
            annotated = True
        for kind, comparison in between:
            one_half, other_half = halves(by_kind[kind][source.name], source.name)
            add(comparison, name, kind, one_half, other_half, (source.name, f"{source.name} (other half)"))
            for target in targets:
                if target.name in by_kind[kind]:
                    add(comparison, name, kind, one_half, by_kind[kind][target.name], (source.name, target.name))
        for domain in (source, *targets):
            if "teacher" in chosen and "student" in chosen:
                pair = by_kind["teacher"][domain.name], by_kind["student"][domain.name]
                add("networks", name, "student", *pair, (f"teacher on {domain.name}", f"student on {domain.name}"))
            for network in chosen:
                if domain.name in by_kind.get("annotation", {}):
                    pair = by_kind["annotation"][domain.name], by_kind[f"{network} prediction"][domain.name]
                    add("prediction", name, network, *pair, (f"annotation of {domain.name}", f"prediction on {domain.name}"))
    for name in runs if teacher else ():
        if name != teacher:
            for domain in (source, *targets):
                a, b = (samples[n]["student"][domain.name] for n in (teacher, name))
                add("networks", name, "student", a, b, (f"{teacher} on {domain.name}", f"{name} on {domain.name}"))
    msans = {
        n: {
            "origin": r.origin,
            "quality": r.quality,
            "stages": [p.name for p in r.alignment.pairs],
            "act": dataclasses.asdict(r.alignment.act),
        }
        for n, r in runs.items()
    }
    return Semantics(rows, samples, msans)


def check_domains(source: Domain, targets: Sequence[Domain]) -> None:
    """Raise KDError for domains that cannot be compared: one name twice, too few cases, unreadable images."""
    names = [source.name, *(t.name for t in targets)]
    for name in names:
        if names.count(name) > 1:
            raise KDError(f"two domains are called {name}: give each a name of its own")
        if "/" in name:
            raise KDError(f'domain name "{name}" cannot hold a "/": use letters, digits, "_" and "-"')
    if len(source.cases) < 2:
        raise KDError(f"source domain {source.name} has {len(source.cases)} case: FSD needs at least two")
    for domain in (source, *targets):
        check_readable(domain, labelled=False)
