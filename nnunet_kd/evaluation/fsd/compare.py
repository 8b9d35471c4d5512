"""Frechet Semantic Distances of models between domains, between networks, and between prediction and annotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.evaluation.fsd import distance as fsd
from nnunet_kd.evaluation.fsd.post_hoc import PRESET, fit_of, fit_of_run, fitted_run
from nnunet_kd.evaluation.fsd.vector_files import Sample
from nnunet_kd.evaluation.fsd.vectors import AlignedRun, has_alignment, load_aligned_run, semantic_vectors
from nnunet_kd.evaluation.predict import check_readable
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


def prepare_runs(
    models: Mapping[str, str | Path],
    msan: str = "auto",
    preset: str | None = None,
    steps: int = 600,
    seed: int = 0,
    fold: int | str = 0,
    checkpoint: str = "checkpoint_final.pth",
    networks: Sequence[str] = ("student", "teacher"),
    cache: Path | None = None,
) -> dict[str, AlignedRun]:
    """Models with MSANs: those of their training, or fitted ones with the same settings for all.

    Args:
        msan: "own" (of the training), "fit" (fit them to every model, post_hoc.py), "auto": own if every model has some of one
            kind, stages and size and there is no ``preset``, else fit.
        preset: whose settings are fitted; default: those of the first model with MSANs, else those of ``kd+adjusted+mirrored``.
        steps, seed: of the fit.
        networks: with own MSANs, which networks are read.
        cache: folder for fitted MSANs.

    Raises:
        KDError: as `load_aligned_run` and `fitted_run` do.
    """
    if msan not in MSANS:
        raise KDError(f'--msan "{msan}" is unknown: use one of {", ".join(MSANS)}')
    own = [name for name, folder in models.items() if has_alignment(folder, fold, checkpoint)]
    settings = {name: fit_of_run(models[name], fold, checkpoint, steps, seed) for name in own}
    alike = len(own) == len(models) and len({repr((f.msan, f.act)) for f in settings.values()}) == 1
    if msan == "own" or (msan == "auto" and alike and preset is None):
        teacher = "teacher" in networks
        return {name: load_aligned_run(folder, fold, checkpoint, teacher) for name, folder in models.items()}
    fit = fit_of(preset or PRESET, steps, seed) if preset or not own else settings[own[0]]
    return {name: fitted_run(folder, fit, fold, checkpoint, name, cache) for name, folder in models.items()}


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
    """All distances of every model. Every row is `fsd.compare`'s plus model, network, source, target and ``comparison``:

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
            result = fsd.compare(a.vectors, b.vectors, a.cases, b.cases, seed=seed, bootstrap=samples_drawn)
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

    for name, run in runs.items():
        read = tuple(n for n in networks if n in run.networks) if run.origin == "training" else run.networks
        found: dict[str, dict[str, Sample]] = {}
        for domain in (source, *targets):
            vectors, cases = semantic_vectors(run, domain, read, maps=maps)
            for kind, values in vectors.items():
                found.setdefault(kind, {})[domain.name] = Sample(values, np.array(cases))
        samples[name] = found
        between = [(n, "domains") for n in read]
        if source.name in found.get("annotation", {}) and not (annotated and run.origin == "post hoc"):
            between.append(("annotation", "annotation"))  # a fitted P-SAE is the same for all models
            annotated = True
        for kind, comparison in between:
            home = found[kind][source.name]
            first = np.isin(home.cases, list(reference))
            add(comparison, name, kind, home.part(first), home.part(~first), (source.name, f"{source.name} (other half)"))
            for target in targets:
                if target.name in found[kind]:
                    add(comparison, name, kind, home.part(first), found[kind][target.name], (source.name, target.name))
        for domain in (source, *targets):
            if "teacher" in read and "student" in read:
                pair = found["teacher"][domain.name], found["student"][domain.name]
                add("networks", name, "student", *pair, (f"teacher on {domain.name}", f"student on {domain.name}"))
            for network in read:
                if domain.name in found.get("annotation", {}):
                    pair = found["annotation"][domain.name], found[f"{network} prediction"][domain.name]
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
