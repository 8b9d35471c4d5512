"""Semantic vectors of models and domains, in memory and as one .npz file per model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunet_kd.evaluation.fsd.sample import Sample

Samples = Mapping[str, Mapping[str, Sample]]  # {kind: {domain: Sample}}, kinds "student", "annotation", ...


def save_vectors(samples: Mapping[str, Samples], folder: Path) -> dict[str, Path]:
    """Write ``FOLDER/MODEL.npz`` for every model: "KIND/DOMAIN" the vectors, "KIND/DOMAIN/cases" their cases."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for model, kinds in samples.items():
        files[model] = folder / f"{model}.npz"
        content = {}
        for kind, domains in kinds.items():
            for domain, sample in domains.items():
                content[f"{kind}/{domain}"] = sample.vectors
                content[f"{kind}/{domain}/cases"] = sample.cases
        temporary = folder / f".{model}.tmp.npz"
        np.savez_compressed(temporary, **content)
        temporary.replace(files[model])
    return files


def read_vectors(file: Path) -> dict[str, dict[str, Sample]]:
    """What `save_vectors` wrote for one model."""
    samples: dict[str, dict[str, Sample]] = {}
    with np.load(file) as content:
        for key in content.files:
            kind, domain, *rest = key.split("/")
            if not rest:
                samples.setdefault(kind, {})[domain] = Sample(content[key], content[f"{key}/cases"])
    return samples
