"""The picture of semantic vectors: principal components by hand, every domain in it."""

import numpy as np
import pytest
from skimage.io import imread

from nnunet_kd.evaluation.fsd.sample import Sample
from nnunet_kd.evaluation.fsd.vector_files import read_vectors, save_vectors
from nnunet_kd.evaluation.report.figures import STUDENTS
from nnunet_kd.evaluation.report.vector_map import principal_components, vector_map


def _samples(rng: np.random.Generator, n: int = 40) -> dict:
    cases = np.repeat(["x", "y"], n // 2)
    return {d: Sample(rng.normal(size=(n, 6)) + shift, cases) for d, shift in (("home", 0), ("away", 3))}


def test_principal_components_are_the_covariances_eigenvectors():
    x = np.random.default_rng(0).normal(size=(50, 5)) * [5, 3, 1, 1, 0.1]
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    places, shares = principal_components(x)
    expected = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    assert np.allclose(np.abs(places), np.abs(expected)) and shares == pytest.approx(values[::-1][:2] / values.sum())
    assert np.allclose(principal_components(np.ones((4, 1)))[0], 0)


def _near(picture: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture[..., :3].astype(int) - wanted).max(-1) < 90).sum())


def test_every_domain_is_drawn(tmp_path):
    samples = {"m": {"student": _samples(np.random.default_rng(0)), "annotation": {}}}
    picture = imread(vector_map(samples, tmp_path / "v.png", most=60))
    assert _near(picture, STUDENTS[0]) > 100 and _near(picture, STUDENTS[1]) > 100
    assert vector_map({"m": {"annotation": {}}}, tmp_path / "none.png") is None


def test_vectors_come_back_from_their_file(tmp_path):
    samples = {"kd+views": {"student": _samples(np.random.default_rng(0))}}
    found = read_vectors(save_vectors(samples, tmp_path)["kd+views"])
    for domain, sample in samples["kd+views"]["student"].items():
        assert np.array_equal(found["student"][domain].vectors, sample.vectors)
        assert found["student"][domain].cases.tolist() == sample.cases.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["kd+views.npz"]
