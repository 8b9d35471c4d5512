"""Semantic vectors of models and domains, in memory and as one .npz file per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Vectors ``(n, d)`` of one domain and the case of each of them."""

    vectors: np.ndarray
    cases: np.ndarray

    def part(self, rows: np.ndarray) -> Sample:
        return Sample(self.vectors[rows], self.cases[rows])


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
    found: dict[str, dict[str, Sample]] = {}
    with np.load(file) as content:
        for key in content.files:
            kind, domain, *rest = key.split("/")
            if not rest:
                found.setdefault(kind, {})[domain] = Sample(content[key], content[f"{key}/cases"])
    return found
