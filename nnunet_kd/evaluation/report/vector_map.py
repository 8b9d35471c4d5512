"""Semantic vectors in two dimensions, as in the GKD paper's figure: by PCA and by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from nnunet_kd.evaluation.fsd.sample import Sample
from nnunet_kd.evaluation.fsd.vector_files import Samples
from nnunet_kd.evaluation.report.figures import MARKERS, STUDENTS, new_figure, save_figure

_MARKERS = MARKERS + "X<>*ph8d"


def vector_map(samples: Mapping[str, Samples], file: Path, seed: int = 0, most: int = 800, rows: int = 8) -> Path | None:
    """One line of panels per model and network; colour: domain, marker: case (markers repeat after 14 cases).

    Args:
        samples: ``{model: {kind: {domain: Sample}}}`` as ``compare_models`` (fsd/compare.py) finds them; kinds "student" and
            "teacher" are drawn.
        most: vectors per panel: t-SNE's time grows with their number. Each domain keeps an even share of its cases'.
        rows: lines of panels at most.

    Returns:
        The picture's file; None where there is nothing to draw.
    """
    lines = [(m, kind, kinds[kind]) for m, kinds in samples.items() for kind in ("student", "teacher") if kind in kinds][:rows]
    if not lines:
        return None
    figure = new_figure(9.2, 3.3 * len(lines) + 0.5)
    axes = figure.subplots(len(lines), 2, squeeze=False)
    domains = list(dict.fromkeys(d for _, _, by_domain in lines for d in by_domain))
    colours = {d: STUDENTS[i % len(STUDENTS)] for i, d in enumerate(domains)}
    several = len({kind for _, kind, _ in lines}) > 1
    for line, (model, kind, by_domain) in zip(axes, lines, strict=True):
        names, cases, vectors = _thinned(by_domain, most, seed)
        name = f"{model}: {kind}" if several else model
        places, shares = principal_components(vectors)
        _scatter(line[0], places, names, cases, colours)
        line[0].set_title(f"{name}, PCA ({100 * shares[0]:.0f}% and {100 * shares[1]:.0f}% of the variance)", fontsize=9)
        _scatter(line[1], _tsne(vectors, seed), names, cases, colours)
        line[1].set_title(f"{name}, t-SNE", fontsize=9)
    handles = [Line2D([], [], color=c, marker="o", linestyle="", label=d) for d, c in colours.items()]
    figure.legend(handles=handles, loc="upper left", ncols=6, frameon=False, fontsize=9)
    return save_figure(figure, file, top=1 - 0.4 / figure.get_figheight())


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components ``(n, 2)`` of vectors ``(n, d)`` and their shares of the variance. d = 1 gives zeros."""
    centred = vectors - vectors.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    s = np.pad(s, (0, max(0, 2 - len(s))))
    u = np.pad(u, ((0, 0), (0, max(0, 2 - u.shape[1]))))
    total = (s**2).sum()
    return u[:, :2] * s[:2], s[:2] ** 2 / total if total else np.zeros(2)


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors.astype(np.float32))


def _thinned(by_domain: Mapping[str, Sample], most: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    share = max(2, most // len(by_domain))
    names, cases, vectors = [], [], []
    for domain, sample in by_domain.items():
        rows = np.arange(len(sample))
        if len(rows) > share:
            rows = np.sort(rng.choice(rows, share, replace=False))
        names += [domain] * len(rows)
        cases += list(sample.cases[rows])
        vectors.append(sample.vectors[rows])
    return np.array(names), np.array(cases), np.concatenate(vectors)


def _scatter(axis: Axes, places: np.ndarray, names: np.ndarray, cases: np.ndarray, colours: Mapping[str, str]) -> None:
    drawn: Sequence[tuple[str, str]] = list(dict.fromkeys(zip(names.tolist(), cases.tolist(), strict=True)))
    numbers: dict[str, int] = {}
    for domain, case in drawn:
        number = numbers[domain] = numbers.get(domain, -1) + 1
        rows = (names == domain) & (cases == case)
        axis.scatter(
            *places[rows].T, s=13, color=colours[domain], marker=_MARKERS[number % len(_MARKERS)], alpha=0.6, linewidths=0
        )
    axis.set_xticks([])
    axis.set_yticks([])
