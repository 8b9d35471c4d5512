"""Metrics against counts made by hand, brute-force distances and nnU-Net's rules for empty masks."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from skimage.morphology import disk, skeletonize

from nnunet_kd.evaluation.metrics.overlap import case_metrics, centreline_dice, hausdorff95, pooled, summarise
from nnunet_kd.evaluation.metrics.surfaces import directed_distances, surface_metrics


def _blob(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(rng.normal(size=shape), 2) > 0.05


def _surface_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Foreground pixels with a face neighbour outside the mask, found by shifting a padded copy."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(padded)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)
    return np.argwhere((padded & ~inside)[(slice(1, -1),) * mask.ndim]) * np.array(spacing)


def _brute_hd95(p: np.ndarray, t: np.ndarray, spacing: tuple[float, ...]) -> float:
    distances = cdist(_surface_points(p, spacing), _surface_points(t, spacing))
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def test_counts_and_ratios_by_hand():
    truth = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    prediction = np.array([[0, 1, 1, 1], [1, 0, 0, 0]])
    m = case_metrics(prediction, truth, [1])
    assert (m["tp"], m["fp"], m["fn"], m["tn"]) == (2, 2, 1, 3)
    assert m["dice"] == pytest.approx(4 / 7)
    assert m["iou"] == pytest.approx(2 / 5)
    assert m["sensitivity"] == pytest.approx(2 / 3)
    assert m["specificity"] == pytest.approx(3 / 5)
    assert m["accuracy"] == pytest.approx(5 / 8)
    assert m["hd95_unit"] == "px" and not m["failed"]


@pytest.mark.parametrize(("shape", "spacing"), [((40, 50), (1.0, 1.0)), ((14, 20, 18), (3.0, 0.8, 0.8))])
def test_hd95_equals_brute_force(shape, spacing):
    rng = np.random.default_rng(1)
    for _ in range(3):
        p, t = _blob(rng, shape), _blob(rng, shape)
        assert hausdorff95(p, t, spacing) == pytest.approx(_brute_hd95(p, t, spacing), rel=1e-9)


def test_hd95_of_shifted_square_is_the_shift_in_mm():
    truth = np.zeros((40, 40), bool)
    truth[10:20, 10:20] = True
    moved = np.roll(truth, 15, axis=1)  # 5 px gap between the squares
    assert hausdorff95(moved, truth) == pytest.approx(15)
    assert hausdorff95(moved, truth, (1, 0.5)) == pytest.approx(7.5)
    assert case_metrics(moved, truth, spacing=(1, 0.5))["hd95_unit"] == "mm"


def test_empty_masks():
    empty, full = np.zeros((30, 40), int), np.zeros((30, 40), int)
    full[5:9, 5:30] = 1
    both = case_metrics(empty, empty)
    assert math.isnan(both["dice"]) and math.isnan(both["hd95"]) and math.isnan(both["cldice"]) and not both["failed"]
    for p, t in ((empty, full), (full, empty)):
        one = case_metrics(p, t)
        assert one["failed"] and one["dice"] == 0 and one["cldice"] == 0
        assert one["hd95"] == pytest.approx(50)  # the diagonal of 30 x 40
    assert case_metrics(empty, full, spacing=(2, 2))["hd95"] == pytest.approx(100)


def test_field_of_view_and_ignore_label_hide_pixels():
    truth = np.array([[1, 1, 0, 0], [1, 1, 0, 2]])
    prediction = np.array([[1, 1, 1, 0], [1, 1, 0, 1]])
    fov = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
    m = case_metrics(prediction, truth, [1], fov, ignore_label=2)
    assert (m["tp"], m["fp"], m["fn"], m["tn"]) == (4, 0, 0, 2)
    assert m["dice"] == 1 and m["hd95"] == 0
    assert case_metrics(prediction, truth, [1], fov)["fp"] == 1


def test_labels_and_regions():
    truth = np.zeros((20, 20), int)
    truth[2:10, 2:10], truth[4:6, 4:6] = 1, 2
    prediction = np.where(truth == 2, 1, truth)  # finds the organ, misses the tumour in it
    m = case_metrics(prediction, truth, [(1, 2), 2])
    assert set(m["labels"]) == {"1+2", "2"}
    assert m["labels"]["1+2"]["dice"] == 1 and m["labels"]["2"]["dice"] == 0
    assert m["dice"] == pytest.approx(0.5) and m["failed"]
    assert m["tp"] == 64 and m["fn"] == 4
    summary = summarise({"a": m})
    assert summary["labels"]["2"]["failures"] == 1 and summary["labels"]["1+2"]["failures"] == 0


def test_cldice_rewards_the_centreline_not_the_width():
    vessel = np.zeros((60, 60), bool)
    vessel[28:33, 5:55] = True
    thin = np.zeros_like(vessel)
    thin[30, 5:55] = True
    assert centreline_dice(vessel, vessel) == pytest.approx(1)
    assert centreline_dice(thin, vessel) > 0.95  # the centreline is all there, the width is not
    assert case_metrics(thin, vessel)["dice"] < 0.4
    ball = np.zeros_like(vessel)
    ball[20:41, 20:41] = disk(10)
    found = 21 / skeletonize(vessel).sum()  # the ball's centre lies in the vessel, the ball covers 21 px of its line
    assert centreline_dice(ball, vessel) == pytest.approx(2 * found / (1 + found))
    assert "cldice" not in case_metrics(np.ones((4, 4, 4)), np.ones((4, 4, 4)))


def test_summary_leaves_out_undefined_and_counts_failures():
    empty, full = np.zeros((8, 8), int), np.ones((8, 8), int)
    cases = {"good": case_metrics(full, full), "none": case_metrics(empty, empty), "missed": case_metrics(empty, full)}
    s = summarise(cases)
    assert s["dice"] == pytest.approx(0.5)  # of 1 and 0: the NaN is left out, the failure is not
    assert (s["n"], s["failures"], s["undefined"]) == (3, 1, 1)


def test_pooled_equals_metrics_of_all_pixels_side_by_side():
    rng = np.random.default_rng(0)
    pairs = [(_blob(rng, (30, 30)), _blob(rng, (30, 30))) for _ in range(3)]
    cases = {str(i): case_metrics(p, t) for i, (p, t) in enumerate(pairs)}
    p, t = (np.concatenate(x) for x in zip(*pairs, strict=True))
    found = pooled(cases)
    assert found["f1"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
    background = (~p & ~t).sum() / (~p | ~t).sum()
    assert found["miou"] == pytest.approx(((p & t).sum() / (p | t).sum() + background) / 2)
    assert found["accuracy"] == pytest.approx((p == t).mean())
    assert found["sensitivity"] == pytest.approx(p[t].mean()) and found["specificity"] == pytest.approx((~p)[~t].mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prediction=np.ones((3, 3)), truth=np.ones((3, 4))), r"prediction is \(3, 3\), truth is \(3, 4\)"),
        (dict(prediction=np.ones(3), truth=np.ones(3)), "two or three axes"),
        (dict(prediction=np.ones((3, 3)), truth=np.ones((3, 3)), labels=[]), "no label"),
        (dict(prediction=np.ones((3, 3)), truth=np.ones((3, 3)), fov=np.ones((2, 3))), "field of view"),
        (dict(prediction=np.ones((3, 3)), truth=np.ones((3, 3)), spacing=(1, 1, 1)), "spacing has 3"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        case_metrics(**arguments)


def test_surface_metrics_by_hand_and_of_empty_masks():
    truth = np.zeros((40, 40), bool)
    truth[10:20, 10:20] = True
    moved = np.roll(truth, 3, axis=1)
    found = surface_metrics(moved, truth, tolerance=2)
    # 36 surface pixels each: the two vertical sides of 10 lie 3 away at most, the rows in common 0
    there, back = directed_distances(moved, truth, (1, 1))
    assert len(there) == len(back) == 36 and there.max() == 3
    assert found["assd"] == pytest.approx((there.sum() + back.sum()) / 72)
    assert found["nsd"] == pytest.approx(((there <= 2).sum() + (back <= 2).sum()) / 72) and 0.5 < found["nsd"] < 1
    one = case_metrics(np.zeros_like(truth), truth)
    assert one["nsd"] == 0 and one["assd"] == one["hd95"] == pytest.approx(math.hypot(40, 40))
    assert math.isnan(case_metrics(np.zeros_like(truth), np.zeros_like(truth))["nsd"])


def test_one_slice_of_a_volume_is_measured_as_a_picture():
    rng = np.random.default_rng(0)
    p, t = _blob(rng, (40, 50)), _blob(rng, (40, 50))
    flat, volume = case_metrics(p, t, spacing=(0.5, 2.0)), case_metrics(p[None], t[None], spacing=(7.0, 0.5, 2.0))
    assert volume == flat
    tube = np.zeros((12, 12, 40), bool)
    tube[4:8, 4:8] = True
    assert case_metrics(tube[:, 1:], tube[:, 1:], cldice_3d=True)["cldice"] == 1


@pytest.mark.parametrize("labels", [(1,), (1, 2)])
def test_a_case_where_nothing_counts_has_no_auc_and_does_not_take_the_others_away(labels):
    """All ignored, or an empty field of view: NaN and counted as such, as for every other metric."""
    truth, score = np.zeros((6, 6), np.uint8), np.linspace(0, 1, 36).reshape(6, 6)
    truth[3:] = 1
    scores, total = [score] * len(labels), {}
    good = case_metrics(truth, truth, labels, probabilities=scores, rocs=total)
    assert total["1"].area() == 1
    nothing = {
        "ignored": case_metrics(truth, truth * 0 + 3, labels, ignore_label=3, probabilities=scores, rocs=(ignored := {})),
        "outside": case_metrics(truth, truth, labels, fov=truth > 1, probabilities=scores),
    }
    assert all(np.isnan(case["auc"]) and np.isnan(case["dice"]) for case in nothing.values())
    found = summarise({"good": good, **nothing})
    assert found["auc"] == good["auc"] == 1 and found["auc_undefined"] == found["undefined"] == 2
    assert (total["1"] + ignored["1"]).area() == 1
