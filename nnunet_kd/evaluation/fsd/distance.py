"""Frechet Semantic Distance (FSD): how far apart the semantic vectors of two sets of images are.

FSD(A, B) = |mu_A - mu_B|^2 + Tr(S_A + S_B - 2 (S_A S_B)^(1/2)), mu and S: means and covariances of two sets of vectors.
EVIDENCE (GKD, Qi et al., JBHI 2024): the name, and that it tells how domain-invariant semantic vectors are.
RECONSTRUCTION: the formula, taken from the Frechet inception distance (Heusel et al., NeurIPS 2017).

Between two small samples of one and the same distribution the raw number is far from 0, so `compare` reports beside it:
the number extrapolated to endless samples, a kernel distance without such bias, and the FSD that random relabelling of
the cases gives. The vectors of one case (its patches) resemble each other, so resampling always takes whole cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from nnunet_kd.evaluation.fsd.sample import Sample

Statistic = Callable[[np.ndarray, np.ndarray], float]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FSD of two sets of vectors ``(n, d)`` and ``(m, d)``, covariances with n - 1 and m - 1.

    Tr (S_A S_B)^(1/2) is the nuclear norm of Xa Xb^T / sqrt((n-1)(m-1)), X the centred vectors: exact, without a matrix
    square root, also for singular covariances.

    Raises:
        ValueError: not two-dimensional, different d, fewer than two vectors, or values that are not finite.
    """
    first, second = Sample(a), Sample(b)
    _check_dimensions(first, second)
    a, b = first.doubles, second.doubles
    shift = a.mean(0) - b.mean(0)
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    spread = (a**2).sum() + (b**2).sum()
    # Q of X = QR does not change the nuclear norm, so the product is at most (d, d), however many vectors there are.
    a, b = (np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x for x in (a, b))
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, shift @ shift + spread - 2 * overlap))


def extrapolated_distance(a: Sample, b: Sample, sizes: int = 8, repeats: int = 8, seed: int = 0) -> float:
    """FSD at an endless number of cases: a line in 1/N through the FSD of random subsets of N cases (without ``cases``:
    N vectors) of either sample, N from half of the smaller sample to all of it.

    Free of bias to first order only: with strong differences between few cases a third of the raw bias stays, and near
    0 the number may be negative. Source: Chong and Forsyth, CVPR 2020 (for the Frechet inception distance).

    Raises:
        ValueError: vectors of different dimensions, or fewer than 4 cases (8 vectors) in a sample.
    """
    _check_dimensions(a, b)
    most = min(len(a.rows_of_cases), len(b.rows_of_cases))
    least, what = (8, "vectors") if a.cases is None and b.cases is None else (4, "cases")
    if most < least:
        raise ValueError(f"extrapolation needs {least} {what} in either sample, got {most}")
    rng = np.random.default_rng(seed)
    inverse, distances = [], []
    for count in np.unique(np.round(1 / np.linspace(1 / most, 2 / most, sizes)).astype(int)):
        for _ in range(repeats):
            rows_a = _rows(a, rng.choice(len(a.rows_of_cases), count, replace=False))
            rows_b = _rows(b, rng.choice(len(b.rows_of_cases), count, replace=False))
            inverse.append(1 / count)
            distances.append(frechet_distance(a.doubles[rows_a], b.doubles[rows_b]))
    return float(np.polyfit(inverse, distances, 1)[1])


def kernel_distance(a: Sample, b: Sample) -> float:
    """Unbiased squared maximum mean discrepancy, kernel (x.y/d + 1)^3: the form of the kernel inception distance.

    Pairs of vectors of one case are left out: they resemble each other, and with them the distance of two samples of
    one domain would be far above 0. Without ``cases`` every vector is a case of its own. May be negative near 0.
    Source: Binkowski et al., ICLR 2018.

    Raises:
        ValueError: vectors of different dimensions, or fewer than two cases in a sample.
    """
    return _KernelSums(a, b).distance(np.ones(len(a.rows_of_cases)), np.ones(len(b.rows_of_cases)))


def kernel_interval(a: Sample, b: Sample, n: int = 200, seed: int = 0) -> tuple[float, float]:
    """95% interval of `kernel_distance`: percentiles over n bootstrap samples of cases.

    A case drawn twice makes no pair with itself. Samples that hold one case only have no distance and are left out.
    """
    sums = _KernelSums(a, b)
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(n):
        counts = [len(sample.rows_of_cases) for sample in (a, b)]
        weights = [rng.multinomial(count, np.full(count, 1 / count)) for count in counts]
        if all((w > 0).sum() > 1 for w in weights):
            distances.append(sums.distance(*weights))
    return tuple(float(q) for q in np.quantile(distances, (0.025, 0.975)))


def bootstrap_interval(
    a: Sample, b: Sample, statistic: Statistic = frechet_distance, n: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95% interval of ``statistic(a, b)`` over n bootstrap samples of cases, mirrored at the observed value.

    Mirrored (the "basic" bootstrap): what resampling adds to the statistic is taken off. So the interval corrects FSD's
    bias much as `extrapolated_distance` does and may lie below the raw FSD.
    """
    _check_dimensions(a, b)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(n):
        rows_a, rows_b = (_rows(s, rng.integers(len(s.rows_of_cases), size=len(s.rows_of_cases))) for s in (a, b))
        resampled.append(statistic(a.doubles[rows_a], b.doubles[rows_b]))
    lower, upper = np.quantile(resampled, (0.025, 0.975))
    observed = statistic(a.doubles, b.doubles)
    return float(2 * observed - upper), float(2 * observed - lower)


def permutation_null(a: Sample, b: Sample, statistic: Statistic = frechet_distance, n: int = 200, seed: int = 0) -> dict:
    """How large ``statistic(a, b)`` gets if the cases are dealt to the two sets at random.

    Every way of dealing is tried if there are at most n; else n random ones, and the observed one counts with them.

    Returns:
        ``p_value`` (share of dealings that reach the observed value), ``median``, ``quantile95``, ``relabellings``.
        With few cases p cannot get small: 4 against 4 give 1/70 at best.
    """
    _check_dimensions(a, b)
    vectors = np.concatenate([a.doubles, b.doubles])
    groups = a.rows_of_cases + [rows + len(a) for rows in b.rows_of_cases]
    first = len(a.rows_of_cases)
    observed = statistic(a.doubles, b.doubles)
    if math.comb(len(groups), first) <= n:
        dealings = [np.array(c) for c in itertools.combinations(range(len(groups)), first)]
    else:
        rng = np.random.default_rng(seed)
        dealings = [np.arange(first), *(rng.permutation(len(groups))[:first] for _ in range(n))]
    values = []
    for chosen in dealings:
        rest = np.setdiff1d(np.arange(len(groups)), chosen)
        rows_a, rows_b = (np.concatenate([groups[i] for i in part]) for part in (chosen, rest))
        # A dealing can leave one vector in a set; it has no covariance.
        if min(len(rows_a), len(rows_b)) > 1:
            values.append(statistic(vectors[rows_a], vectors[rows_b]))
    reached = np.asarray(values) >= observed * (1 - 1e-9) - 1e-12
    return {
        "p_value": float(reached.mean()),
        "median": float(np.median(values)),
        "quantile95": float(np.quantile(values, 0.95)),
        "relabellings": len(values),
    }


def compare(a: Sample, b: Sample, seed: int = 0, bootstrap: int = 200) -> dict:
    """Everything the report shows about two samples of semantic vectors; ``a`` is the source (the reference).

    Returns:
        ``n_a``, ``n_b`` (vectors), ``cases_a``, ``cases_b`` (how many), ``dim``, ``fsd``, ``fsd_extrapolated``,
        ``fsd_interval``, ``fsd_null`` (see `permutation_null`), ``p_value``, ``kernel``, ``kernel_interval``,
        ``warnings``. ``relative``, ``relative_extrapolated``, ``relative_interval``, ``relative_null95``: the same FSD
        divided by the trace of a's covariance, because two alignment networks share no scale. The kernel distance is
        taken after shifting and scaling both sets (by one factor) so that ``a`` has mean 0 and mean variance 1. What
        needs more cases than there are is NaN, with a warning.

    Raises:
        ValueError: vectors of different dimensions.
    """
    _check_dimensions(a, b)
    fewest, dim = min(len(a.rows_of_cases), len(b.rows_of_cases)), a.dim
    warnings = []
    if min(len(a), len(b)) < 2 * dim:
        warnings.append(
            f"{min(len(a), len(b))} vectors of {dim} dimensions: fewer than twice the dimension, FSD is mostly bias"
        )
    if fewest < 5:
        warnings.append(f"{fewest} case(s) in the smaller set: intervals and p-values are rough below 5 cases")
    trace = float(a.doubles.var(0, ddof=1).sum())
    if trace <= 1e-12 * max(1.0, float((a.doubles**2).sum(1).mean())):
        warnings.append("the source vectors are all the same: the alignment network has collapsed, FSD says nothing")
        trace = math.nan

    fsd = frechet_distance(a.doubles, b.doubles)
    null = permutation_null(a, b, n=bootstrap, seed=seed)
    extrapolated = kernel = math.nan
    interval = kernel_bounds = (math.nan, math.nan)
    if fewest >= 4:
        extrapolated = extrapolated_distance(a, b, seed=seed)
    if fewest >= 2:
        interval = bootstrap_interval(a, b, n=bootstrap, seed=seed)
        if not math.isnan(trace):
            home, scale = a.doubles.mean(0), math.sqrt(trace / dim)
            scaled = [Sample((sample.doubles - home) / scale, sample.cases) for sample in (a, b)]
            kernel = kernel_distance(*scaled)
            kernel_bounds = kernel_interval(*scaled, bootstrap, seed)

    return {
        "n_a": len(a),
        "n_b": len(b),
        "cases_a": len(a.rows_of_cases),
        "cases_b": len(b.rows_of_cases),
        "dim": dim,
        "fsd": fsd,
        "fsd_extrapolated": extrapolated,
        "fsd_interval": interval,
        "fsd_null": null,
        "p_value": null["p_value"],
        "relative": fsd / trace,
        "relative_extrapolated": extrapolated / trace,
        "relative_interval": tuple(v / trace for v in interval),
        "relative_null95": null["quantile95"] / trace,
        "kernel": kernel,
        "kernel_interval": kernel_bounds,
        "warnings": warnings,
    }


class _KernelSums:
    """Sums of the kernel over all pairs of vectors of two cases, so that resampling cases costs next to nothing."""

    def __init__(self, a: Sample, b: Sample) -> None:
        _check_dimensions(a, b)
        if min(len(a.rows_of_cases), len(b.rows_of_cases)) < 2:
            raise ValueError("the kernel distance needs two cases in either sample")
        self.sizes = [np.array([len(rows) for rows in sample.rows_of_cases]) for sample in (a, b)]
        self.aa, self.bb, self.ab = (self._between(*pair) for pair in ((a, a), (b, b), (a, b)))

    @staticmethod
    def _between(x: Sample, y: Sample) -> np.ndarray:
        sorted_y = y.doubles[np.concatenate(y.rows_of_cases)]
        starts = np.cumsum([0, *(len(rows) for rows in y.rows_of_cases[:-1])])
        # one case of x at a time: never all pairs in memory
        kernels = (((x.doubles[rows] @ sorted_y.T / x.dim + 1) ** 3).sum(0) for rows in x.rows_of_cases)
        return np.stack([np.add.reduceat(kernel, starts) for kernel in kernels])

    def distance(self, weights_a: np.ndarray, weights_b: np.ndarray) -> float:
        """The squared discrepancy with every case counted as often as its weight says."""
        total = 0.0
        for sums, w, sizes in zip((self.aa, self.bb), (weights_a, weights_b), self.sizes, strict=True):
            pairs = np.outer(w, w) * (1 - np.eye(len(w)))
            total += (pairs * sums).sum() / (pairs * np.outer(sizes, sizes)).sum()
        pairs = np.outer(weights_a, weights_b)
        return float(total - 2 * (pairs * self.ab).sum() / (pairs * np.outer(*self.sizes)).sum())


def _check_dimensions(a: Sample, b: Sample) -> None:
    if a.dim != b.dim:
        raise ValueError(f"the two samples have vectors of {a.dim} and {b.dim} dimensions")


def _rows(sample: Sample, cases: Sequence[int]) -> np.ndarray:
    """The row numbers of some cases, one case after the other."""
    return np.concatenate([sample.rows_of_cases[i] for i in cases])
