"""Metrics against MONAI and scikit-learn, which the package itself does not need."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunet_kd.evaluation.metrics.overlap import case_metrics, pooled
from nnunet_kd.evaluation.metrics.roc import Roc
from nnunet_kd.evaluation.metrics.surfaces import surface_metrics

monai = pytest.importorskip("monai.metrics")

SHAPES = [((48, 60), None), ((48, 60), (0.7, 1.9)), ((14, 22, 26), (3.0, 0.8, 0.8)), ((15, 20, 20), (1.0, 1.0, 2.5))]


def _blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return gaussian_filter(rng.normal(size=shape), 2) > 0.06


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
def test_distances_are_monais(shape, spacing):
    rng = np.random.default_rng(0)
    for tolerance in (0.9, 2.0):
        p, t = _blobs(rng, shape), _blobs(rng, shape)
        y, y_pred = (torch.from_numpy(m[None, None]).float() for m in (t, p))
        step = [1.0] * len(shape) if spacing is None else list(spacing)
        common = dict(include_background=True, spacing=step)
        expected = {
            "hd95": monai.compute_hausdorff_distance(y_pred, y, percentile=95, **common),
            "assd": monai.compute_average_surface_distance(y_pred, y, symmetric=True, **common),
            "nsd": monai.compute_surface_dice(y_pred, y, class_thresholds=[tolerance], **common),
        }
        found = surface_metrics(p, t, spacing, tolerance)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value.item(), rel=1e-5), name
        assert found["nsd"] < 1 and found["assd"] < found["hd95"]


def test_overlaps_are_monais():
    rng = np.random.default_rng(1)
    p, t = (_blobs(rng, (40, 50)).astype(int) + _blobs(rng, (40, 50)) for _ in range(2))
    y, y_pred = (torch.from_numpy(np.stack([m == k for k in range(3)])[None]).float() for m in (t, p))
    dice = monai.compute_dice(y_pred, y, include_background=False)[0]
    iou = monai.compute_iou(y_pred, y, include_background=False)[0]
    found = case_metrics(p, t, [1, 2])["labels"]
    for k in (1, 2):
        assert found[str(k)]["dice"] == pytest.approx(dice[k - 1].item(), rel=1e-5)
        assert found[str(k)]["iou"] == pytest.approx(iou[k - 1].item(), rel=1e-5)


def _scores(rng: np.random.Generator, truth: np.ndarray, spread: float) -> np.ndarray:
    """What a sure network says: most probabilities next to 0 and 1."""
    return 1 / (1 + np.exp(-spread * (truth - 0.5 + rng.normal(0, 0.6, truth.shape))))


@pytest.mark.parametrize("spread", [0.3, 4.0, 16.0])
def test_auc_is_scikit_learns_per_case_and_pooled(spread):
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    rng = np.random.default_rng(2)
    truths = [_blobs(rng, (60, 70)).astype(int) for _ in range(3)]
    scores = [_scores(rng, t + 0.2 * i, spread).astype(np.float32) for i, t in enumerate(truths)]
    fov = np.pad(np.ones((50, 60), bool), 5)
    cases, total = {}, {}
    for i, (truth, score) in enumerate(zip(truths, scores, strict=True)):
        rocs = {}
        cases[str(i)] = case_metrics(score > 0.5, truth, [1], fov, probabilities=[score], rocs=rocs)
        assert cases[str(i)]["auc"] == pytest.approx(roc_auc_score(truth[fov], score[fov]), abs=5e-5)
        total = {k: total[k] + r if k in total else r for k, r in rocs.items()}
    together = [np.concatenate([x[fov] for x in xs]) for xs in (truths, scores)]
    assert pooled(cases, total)["auc"] == pytest.approx(roc_auc_score(*together), abs=5e-5)


def test_auc_by_hand_and_where_there_is_none():
    truth, score = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.4, 0.2, 0.95])
    # pairs in order: 0.9 beats 0.4 and 0.2; 0.4 ties with 0.4 and beats 0.2
    assert Roc.count(score, truth).area() == pytest.approx((2 + 0.5 + 1) / 6)
    assert np.isnan(Roc.count(score, np.ones(5)).area())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Roc.count(score + 1, truth)
    assert "auc" not in case_metrics(truth[None], truth[None])
    with pytest.raises(ValueError, match="as many maps of probabilities"):
        case_metrics(truth[None], truth[None], [1], probabilities=[score])
