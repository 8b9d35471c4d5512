"""The runner against nnU-Net's predictor, feature by feature, on random networks with spread logits (runner_models.py).

PARITY_CASES=20 in the environment makes the figures of docs/deploy.md (pytest -s prints them).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from runner_models import assert_agree, compare, images, model_folder, nnunet_predicts, plans

from nnunet_kd.deploy.runner import Predictor

REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def settings(scheme: str, mask: bool = False) -> dict:
    return {"normalization_schemes": [scheme], "use_mask_for_norm": [mask]}


CASES = {
    # name: plans, folder's options, images' options, prediction's options
    "2-D PNG, mirrored": (
        plans((32, 48), (1.0, 1.0), reader="NaturalImage2DIO"),
        {"ending": ".png"},
        {"size": (1, 70, 61), "ending": ".png"},
        {},
    ),
    "2-D TIFF, fewer mirrored axes": (
        plans((32, 32), (1.0, 1.0), reader="NaturalImage2DIO"),
        {"ending": ".tif", "mirror": (1,)},
        {"size": (1, 50, 61), "ending": ".tif"},
        {},
    ),
    "3-D, resampled along all axes": (
        plans((16, 24, 16), (1.0, 1.0, 1.0)),
        {},
        {"size": (21, 30, 25), "spacing": (0.8, 1.3, 1.1)},
        {},
    ),
    "3-D, not mirrored, as it is": (plans((16, 16, 16), (1.0, 1.0, 1.0)), {}, {"size": (20, 30, 25)}, {"mirroring": False}),
    "thick slices along z": (
        plans((8, 32, 32), (4.0, 0.8, 0.8)),
        {"mirror": ()},
        {"size": (11, 40, 36), "spacing": (5.0, 1.0, 1.0)},
        {},
    ),
    "thick slices in the image only, along y": (
        plans((16, 16, 16), (1.0, 2.0, 1.0)),
        {"mirror": ()},
        {"size": (25, 9, 30), "spacing": (1.2, 5.0, 1.1)},
        {},
    ),
    "transposed, two channels, cropped, z-score inside the mask": (
        plans((24, 16, 16), (1.0, 1.0, 1.0), channels=2, transpose=(1, 0, 2), use_mask_for_norm=[True, False]),
        {"mirror": (0,)},
        {"size": (18, 30, 25), "channels": 2, "empty": 3, "spacing": (1.0, 0.9, 1.0)},
        {},
    ),
    "smaller than the patch": (plans((16, 32, 32), (1.0, 1.0, 1.0)), {"mirror": ()}, {"size": (9, 21, 40)}, {}),
    "regions, CT": (
        plans((16, 16, 16), (1.0, 1.0, 1.0), **settings("CTNormalization")),
        {"labels": REGIONS, "order": [1, 2], "mirror": ()},
        {"size": (20, 22, 18), "spacing": (1.1, 0.9, 1.0)},
        {},
    ),
    "two folds, ignore label, values from 0 to 1": (
        plans((16, 16, 16), (1.0, 1.0, 1.0), **settings("RescaleTo01Normalization")),
        {"folds": 2, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}, "mirror": ()},
        {"size": (20, 22, 18), "spacing": (1.1, 0.9, 1.0)},
        {"folds": 2},
    ),
    "2-D model, 3-D image": (
        plans((32, 24), (1.0, 1.0), **settings("NoNormalization")),
        {"mirror": (1,)},
        {"size": (7, 40, 36), "spacing": (2.5, 0.8, 1.2)},
        {},
    ),
    "MHA, torch's resampling": (
        plans(
            (8, 16, 16),
            (3.5, 1.0, 1.0),
            resampling_fn_probabilities="resample_torch_fornnunet",
            resampling_fn_probabilities_kwargs={"is_seg": False, "force_separate_z": None},
        ),
        {"ending": ".mha", "mirror": ()},
        {"size": (11, 22, 18), "spacing": (5.0, 0.9, 1.0), "ending": ".mha"},
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_nnunet(name, tmp_path):
    plan, folder, image, options = CASES[name]
    model = model_folder(tmp_path / "model", plan, **folder)
    source = images(tmp_path / "images", cases=int(os.environ.get("PARITY_CASES", 1)), **image)
    compare(tmp_path, model, source, **options)


def test_probabilities_and_temporary_files_give_the_same(tmp_path):
    """Arrays beyond the limit lie in temporary files; slabs and tiles are written in parts."""
    model = model_folder(tmp_path / "model", plans((16, 16, 16), (1.0, 1.0, 1.0)), mirror=())
    source = images(tmp_path / "images", (20, 22, 26), spacing=(1.1, 0.9, 1.0), empty=2)
    Predictor(model, threads=1, memory_limit=100).predict_folder(source, tmp_path / "ours", probabilities=True)
    nnunet_predicts(model, source, tmp_path / "theirs", probabilities=True)
    assert_agree(tmp_path / "ours", tmp_path / "theirs")
    ours, theirs = (np.load(tmp_path / folder / "case_0.npz")["probabilities"] for folder in ("ours", "theirs"))
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() < 5e-3


def test_openvino(tmp_path):
    pytest.importorskip("openvino")
    model = model_folder(tmp_path / "model", plans((16, 16, 16), (1.0, 1.0, 1.0)), mirror=(0,))
    source = images(tmp_path / "images", (20, 30, 25))
    compare(tmp_path, model, source, backend="openvino")
