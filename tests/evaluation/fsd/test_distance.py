"""FSD against scipy's matrix square root and closed-form Gaussians; its companions against what they promise."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from nnunet_kd.cli.main import main
from nnunet_kd.evaluation.fsd.distance import (
    bootstrap_interval,
    compare,
    extrapolated_distance,
    frechet_distance,
    kernel_distance,
    kernel_interval,
    permutation_null,
)
from nnunet_kd.evaluation.fsd.sample import Sample


def _by_matrix_square_root(a: np.ndarray, b: np.ndarray) -> float:
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(s + t - 2 * np.real(sqrtm(s @ t))))


def _gaussian_with(mean: np.ndarray, covariance: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n vectors whose sample mean and covariance are exactly these."""
    x = rng.normal(size=(n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def _domain(rng: np.random.Generator, cases: int, patches: int, d: int, between: float = 0.3, shift: float = 0.0) -> Sample:
    """Vectors of cases that each have a mean of their own."""
    means = rng.normal(0, between, (cases, 1, d))
    x = (means + rng.normal(size=(cases, patches, d))).reshape(-1, d)
    x[:, 0] += shift
    return Sample(x, np.repeat([f"case{i}" for i in range(cases)], patches))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 60, 5), (40, 90, 12), (300, 50, 16)])
def test_equals_the_matrix_square_root(n, m, d):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    b = rng.normal(size=(m, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    assert frechet_distance(a, b) == pytest.approx(_by_matrix_square_root(a, b), rel=1e-9)


def test_fewer_vectors_than_dimensions():
    """Singular covariances: the square root of S1 S2 by eigenvalues of the small Gram matrix is the reference."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 30)), rng.normal(size=(9, 30)) + 0.5
    xa, xb = a - a.mean(0), b - b.mean(0)
    product = xa @ xb.T @ xb @ xa.T / (6 * 8)
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(product), 0, None)).sum()
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_closed_form_gaussians():
    rng = np.random.default_rng(3)
    mean = np.array([1.0, -2.0, 0.5])
    s, t = np.diag([4.0, 1.0, 0.25]), np.diag([1.0, 9.0, 0.25])
    a, b = _gaussian_with(np.zeros(3), s, 50, rng), _gaussian_with(mean, t, 80, rng)
    expected = (mean**2).sum() + ((np.sqrt(np.diag(s)) - np.sqrt(np.diag(t))) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    # covariances that do not commute, d = 2: Tr (S T)^1/2 = sqrt(Tr(S T) + 2 sqrt(det S det T))
    s2, t2 = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    a, b = _gaussian_with(np.zeros(2), s2, 40, rng), _gaussian_with(np.zeros(2), t2, 40, rng)
    overlap = math.sqrt(np.trace(s2 @ t2) + 2 * math.sqrt(np.linalg.det(s2) * np.linalg.det(t2)))
    assert frechet_distance(a, b) == pytest.approx(np.trace(s2 + t2) - 2 * overlap, rel=1e-9)


def test_symmetric_zero_for_itself_and_blind_to_rotation():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(50, 8)), rng.normal(size=(60, 8)) * 2 + 1
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert frechet_distance(a, a[rng.permutation(50)]) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(5), np.zeros((5, 1)), r"must be vectors \(n, d\), got shape \(5,\)"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "sample of 1 vector"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 and 4 dimensions"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "holds values that are not finite"),
    ],
)
def test_wrong_input(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
    for function in (extrapolated_distance, kernel_distance, kernel_interval, bootstrap_interval, permutation_null, compare):
        with pytest.raises(ValueError, match=message):
            function(Sample(a), Sample(b))


def test_case_names_must_match():
    with pytest.raises(ValueError, match="5 vectors need as many case names"):
        Sample(np.eye(5), ["x"] * 4)


def test_extrapolation_takes_the_bias_off():
    raw, by_vector, raw_cases, by_case = [], [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(200, 32)), rng.normal(size=(200, 32))
        raw.append(frechet_distance(a, b))
        by_vector.append(extrapolated_distance(Sample(a), Sample(b), seed=seed))
        a, b = _domain(rng, 12, 20, 32, 0.4), _domain(rng, 12, 20, 32, 0.4)
        raw_cases.append(frechet_distance(a.vectors, b.vectors))
        by_case.append(extrapolated_distance(a, b, seed=seed))
    assert np.mean(raw) > 2 and abs(np.mean(by_vector)) < 0.1 * np.mean(raw)
    assert abs(np.mean(by_case)) < 0.3 * np.mean(raw_cases)
    # the truth it tends to is kept: a shift of 2 is a distance of 4
    a, b = (
        _gaussian_with(np.zeros(4), np.eye(4), 400, np.random.default_rng(0)),
        np.random.default_rng(1).normal(size=(400, 4)),
    )
    b[:, 0] += 2
    one, other = Sample(a), Sample(b)
    assert extrapolated_distance(one, other) == pytest.approx(4, rel=0.1)
    assert extrapolated_distance(one, other, seed=7) == extrapolated_distance(one, other, seed=7)
    with pytest.raises(ValueError, match="needs 4 cases"):
        extrapolated_distance(Sample(a, np.arange(400) % 3), Sample(b, np.arange(400) % 9))


def _kernel_by_loops(a, b, ca, cb):
    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    aa = np.mean([k(a[i], a[j]) for i, j in itertools.permutations(range(len(a)), 2) if ca[i] != ca[j]])
    bb = np.mean([k(b[i], b[j]) for i, j in itertools.permutations(range(len(b)), 2) if cb[i] != cb[j]])
    return aa + bb - 2 * np.mean([k(x, y) for x in a for y in b])


def test_kernel_distance_equals_loops_over_pairs():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(9, 4)), rng.normal(size=(11, 4)) + 0.5
    ca, cb = list("aabbbccdd"), list("zzzyyyyyxxw")
    shuffle = rng.permutation(9)
    assert kernel_distance(Sample(a), Sample(b)) == pytest.approx(_kernel_by_loops(a, b, range(9), range(11)))
    shuffled = Sample(a, ca).part(shuffle)
    assert kernel_distance(shuffled, Sample(b, cb)) == pytest.approx(_kernel_by_loops(a, b, ca, cb))
    with pytest.raises(ValueError, match="two cases"):
        kernel_distance(Sample(a, ["a"] * 9), Sample(b, cb))


def test_kernel_distance_is_unbiased_by_case():
    with_cases, without = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        a, b = _domain(rng, 6, 15, 8, 0.6), _domain(rng, 6, 15, 8, 0.6)
        with_cases.append(kernel_distance(a, b))
        without.append(kernel_distance(Sample(a.vectors), Sample(b.vectors)))
    error = np.std(with_cases) / math.sqrt(30)
    assert abs(np.mean(with_cases)) < 3 * error
    assert np.mean(without) > 3 * error


def test_intervals_hold_the_truth_and_grow_with_the_shift():
    rng = np.random.default_rng(11)
    a, same, far = (
        _domain(rng, 10, 20, 8),
        _domain(rng, 10, 20, 8),
        _domain(rng, 10, 20, 8, shift=3.0),
    )
    low, high = kernel_interval(a, same)
    assert low < kernel_distance(a, same) < high and low < 0.05
    assert kernel_interval(a, far)[0] > high
    low, high = bootstrap_interval(a, far)
    assert low < 9 < high
    low, high = bootstrap_interval(a, same)
    assert low < 0 < high < bootstrap_interval(a, far)[0]
    assert bootstrap_interval(a, far, n=20) == bootstrap_interval(a, far, n=20)


def test_bootstrap_of_a_mean_has_the_textbook_width():
    """With one vector a case and the mean as the statistic the interval is mean +- 1.96 s/sqrt(n)."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 1)), rng.normal(size=(60, 1))
    low, high = bootstrap_interval(Sample(a), Sample(b), lambda x, y: x.mean() - y.mean(), n=2000)
    error = math.sqrt(a.var(ddof=1) / 60 + b.var(ddof=1) / 60)
    assert (low + high) / 2 == pytest.approx(a.mean() - b.mean(), abs=0.1 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_permutation_tries_every_dealing_of_few_cases():
    rng = np.random.default_rng(0)
    a, b = _domain(rng, 4, 6, 3, 0.1), _domain(rng, 4, 6, 3, 0.1, shift=5.0)
    null = permutation_null(a, b)
    assert null["relabellings"] == 70 and null["p_value"] == pytest.approx(2 / 70)  # and the mirrored dealing
    assert null["median"] < null["quantile95"] < frechet_distance(a.vectors, b.vectors) + 1e-9


def test_permutation_p_values_are_uniform_where_nothing_differs():
    p = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = _domain(rng, 6, 8, 3, 0.7), _domain(rng, 6, 8, 3, 0.7)
        p.append(permutation_null(a, b, n=60, seed=seed)["p_value"])
    assert np.mean(np.array(p) <= 0.1) < 0.25 and 0.35 < np.mean(p) < 0.65


def test_compare_reports_everything_and_warns():
    rng = np.random.default_rng(4)
    first, second = _domain(rng, 6, 20, 6), _domain(rng, 8, 20, 6, shift=2.0)
    a, b = first.vectors, second.vectors
    r = compare(first, second, bootstrap=60)
    assert (r["n_a"], r["n_b"], r["cases_a"], r["cases_b"], r["dim"]) == (120, 160, 6, 8, 6)
    assert r["fsd"] == pytest.approx(frechet_distance(a, b)) and r["warnings"] == []
    assert r["relative"] == pytest.approx(r["fsd"] / np.trace(np.cov(a, rowvar=False)))
    assert r["relative_interval"][0] < r["relative_extrapolated"] < r["relative_interval"][1]
    assert r["p_value"] < 0.05 and r["relative"] > r["relative_null95"] and r["kernel_interval"][0] > 0
    scaled = compare(*(Sample(s.vectors * 100 + 5, s.cases) for s in (first, second)), bootstrap=60)
    assert scaled["relative"] == pytest.approx(r["relative"]) and scaled["kernel"] == pytest.approx(r["kernel"])
    assert scaled["fsd"] == pytest.approx(1e4 * r["fsd"])


def test_compare_with_too_little_to_go_on():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(10, 6)), rng.normal(size=(10, 6))
    r = compare(Sample(a, ["one"] * 10), Sample(b, ["p"] * 5 + ["q"] * 5), bootstrap=20)
    assert any("twice the dimension" in w for w in r["warnings"]) and any("1 case" in w for w in r["warnings"])
    assert r["fsd"] > 0 and math.isnan(r["fsd_extrapolated"]) and math.isnan(r["kernel"])
    assert math.isnan(r["kernel_interval"][0])
    collapsed = compare(*(Sample(x, list("aabbccddee")) for x in (np.ones((10, 6)), b)), bootstrap=20)
    assert any("collapsed" in w for w in collapsed["warnings"]) and math.isnan(collapsed["relative"])


def test_the_command_writes_its_numbers_though_no_picture_can_be_drawn(monkeypatch, tmp_path, capsys, tiny_dataset):
    found = SimpleNamespace(rows=[], msans={}, samples={})
    monkeypatch.setattr("nnunet_kd.nnunet_io.trained_fold.OpenedFolds.open", lambda *_: None)
    monkeypatch.setattr("nnunet_kd.evaluation.fsd.compare.prepare_runs", lambda *_: [])
    monkeypatch.setattr("nnunet_kd.evaluation.fsd.compare.compare_models", lambda *_, **__: found)
    monkeypatch.setattr("nnunet_kd.evaluation.fsd.vector_files.save_vectors", lambda *_: {})

    def broken(*_, **__):
        assert (tmp_path / "fsd.json").is_file()
        raise TypeError("no such colour")

    monkeypatch.setattr("nnunet_kd.evaluation.report.vector_map.vector_map", broken)
    monkeypatch.setattr("nnunet_kd.evaluation.report.figures.fsd_bars", broken)
    command = ["fsd", "--model", "m=folder", "--source", "a=950:Tr", "--target", "b=950:Tr", "-o", str(tmp_path / "fsd.json")]
    assert main(command) == 0
    assert json.loads((tmp_path / "fsd.json").read_text())["fsd"] == []
    assert capsys.readouterr().err.splitlines() == [
        f"nnunet-kd: warning: the picture {name} is left out: no such colour" for name in ("fsd_vectors.png", "fsd.png")
    ]
