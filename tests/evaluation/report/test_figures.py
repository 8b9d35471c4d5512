"""Pictures: files of the right make, and the choices behind them."""

import math
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread

from nnunet_kd.evaluation.report import contours, figures
from nnunet_kd.evaluation.report.contours import CasePicture
from nnunet_kd.utils.errors import KDError


def _near(picture: np.ndarray, colour: str) -> int:
    """Pixels of almost this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture[..., :3].astype(int) - wanted).max(-1) < 12).sum())


def _case(predictions: dict[str, np.ndarray], truth: np.ndarray) -> CasePicture:
    image = np.random.default_rng(0).normal(100, 10, truth.shape)
    return CasePicture("best: a", image, truth, predictions, dict.fromkeys(predictions, 0.5))


def test_best_median_worst():
    dice = {"a": 0.5, "b": 0.9, "c": math.nan, "d": 0.7, "e": 0.1}
    assert contours.best_median_worst(dice) == [("best", "b"), ("median", "a"), ("worst", "e")]
    assert contours.best_median_worst({"a": 0.1, "b": 0.2}) == [("best", "b"), ("worst", "a")]
    assert contours.best_median_worst({"a": 0.1}) == [("only case", "a")]
    assert contours.best_median_worst({"a": math.nan}) == []


def test_models_differ_in_colour_and_marker():
    styles = figures.model_styles([("kd", "student"), ("teacher", "teacher"), ("gkd", "student")])
    assert len(set(styles.values())) == 3 and styles["teacher"][0] == figures.TEACHER
    assert len({marker for _, marker in styles.values()}) == 3


def test_an_organ_is_enlarged_whole_and_vessels_where_models_err():
    organ = np.zeros((120, 160), np.uint8)
    organ[30:60, 90:130] = 1
    top, left, side = contours._window(organ, [organ])
    assert top <= 30 and left <= 90 and top + side >= 60 and left + side >= 130 and side < 100
    vessels = np.zeros((120, 160), np.uint8)
    vessels[::20] = 1
    wrong = vessels.copy()
    wrong[100:102, 120:150] = 0
    wrong[104:106, 120:150] = 1
    top, left, side = contours._window(vessels, [vessels, wrong])
    assert side < 80 and top <= 100 and top + side >= 106 and left <= 125 and left + side >= 145
    assert contours._window(np.zeros((20, 30)), [np.zeros((20, 30))]) == (0, 0, 30)


@pytest.mark.parametrize("shape", [(64, 64), (6, 64, 64)])
def test_contours_show_truth_and_prediction(tmp_path: Path, shape):
    truth = np.zeros(shape, np.uint8)
    truth[..., 20:40, 20:40] = 1
    if len(shape) == 3:
        truth[:3] = 0
    shifted = np.roll(truth, 6, axis=-1)
    empty = np.zeros_like(truth)

    def drawn(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int]:
        picture = imread(contours.contour_figure([_case({"gkd": prediction}, truth)], tmp_path / "new" / "x.png"))
        return _near(picture, contours.TRUTH), _near(picture, contours.PREDICTION)

    both, only_truth, only_prediction = drawn(truth, shifted), drawn(truth, empty), drawn(empty, shifted)
    assert both[0] > only_prediction[0] + 150 and only_truth[0] > only_prediction[0] + 150
    assert both[1] > only_truth[1] + 150


def test_no_dice_and_colour_images(tmp_path: Path):
    truth = np.zeros((32, 32), np.uint8)
    row = CasePicture("only case: a", np.zeros((32, 32, 3), np.uint8), truth, {"m": truth}, {"m": math.nan})
    assert contours.contour_figure([row], tmp_path / "x.png").stat().st_size > 1000


def test_dots_take_undefined_and_missing_values(tmp_path: Path):
    styles = figures.model_styles([("teacher", "teacher"), ("kd", "student")])
    dice = {"teacher": {"A": [0.8, math.nan], "B": [0.7]}, "kd": {"A": [math.nan]}}
    picture = imread(figures.dice_dots(dice, styles, tmp_path / "d.png"))
    assert _near(picture, figures.TEACHER) > 100


def test_curves_sort_keys_into_panels():
    curves = {
        "student": {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.6], "ema_fg_dice": [0.1, 0.2], "mean_fg_dice": [0, 0.2]},
        "gkd": {
            "train_losses": [9.0, 9.0],
            "kd/seg_loss": [1.0, 0.4],
            "kd/intra": [None, 0.2],
            "kd/inter": [None, math.nan],
            "kd/act_agreement_teacher": [0.5, 0.4],
            "kd/act_agreement_student": [0.3, 0.2],
        },
    }
    panels = figures._panels(curves)
    assert set(panels) == {"seg_loss", "val_losses", "mean_fg_dice", "intra", "act_agreement"}
    assert [(n, list(v)) for n, _, v in panels["seg_loss"]] == [("student", [1.0, 0.5]), ("gkd", [1.0, 0.4])]
    assert [network for _, network, _ in panels["act_agreement"]] == ["teacher", "student"]
    assert figures._alignment_phase(curves["gkd"]) == (0.5, 1.5) and figures._alignment_phase(curves["student"]) is None


def test_no_curves_no_picture(tmp_path: Path):
    styles = figures.model_styles([("a", "student")])
    assert figures.training_curves({"a": {"val_losses": [None, math.nan]}}, styles, tmp_path / "c.png") is None
    assert figures.training_curves({}, styles, tmp_path / "c.png") is None and not (tmp_path / "c.png").exists()
    assert figures.training_curves({"a": {"kd/kd": [1.0]}}, styles, tmp_path / "c.png").is_file()


def test_fsd_bars_take_what_could_not_be_computed(tmp_path: Path):
    whole = {
        "model": "gkd",
        "network": "student",
        "target": "DRIVE",
        "relative": 0.4,
        "relative_extrapolated": 0.2,
        "relative_interval": (0.1, 0.3),
        "relative_null95": 0.15,
    }
    nothing = {
        "model": "gkd",
        "network": "teacher",
        "target": "DRIVE",
        "relative": None,
        "relative_extrapolated": math.nan,
        "relative_interval": (math.nan, math.nan),
        "relative_null95": None,
    }
    with_dot = imread(figures.fsd_bars([whole, nothing], tmp_path / "f.png"))
    without = imread(figures.fsd_bars([{**nothing, "network": "student"}, nothing], tmp_path / "g.png"))
    assert _near(with_dot, figures.STUDENTS[0]) > _near(without, figures.STUDENTS[0]) + 50


@pytest.mark.parametrize("shape", [(9, 1, 7), (9, 7, 1), (1, 9, 7), (9, 7)])
def test_a_single_slice_is_shown_whole_along_any_axis(shape):
    truth = np.zeros(shape, np.uint8)
    truth[tuple(slice(2, 5) if n > 1 else 0 for n in shape)] = 1
    image, plane, predictions = contours._plane(CasePicture("case", 2.0 * truth, truth, {"m": truth}, {"m": 1.0}))
    np.testing.assert_array_equal(plane, truth.squeeze())
    np.testing.assert_array_equal(image, 2 * plane)
    np.testing.assert_array_equal(predictions["m"], plane)


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 7, 1), (7, 1, 1), (1, 7), (7, 1)])
def test_a_line_has_no_outlines(shape, tmp_path):
    line = np.ones(shape, np.uint8)
    row = CasePicture("best: a", line, line, {"m": line}, {"m": 1.0})
    with pytest.raises(KDError, match=f"best: a is a line of {'x'.join(map(str, shape))}"):
        contours.contour_figure([row], tmp_path / "x.png")
