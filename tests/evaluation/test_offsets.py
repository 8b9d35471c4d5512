"""Dice over an offset of the logits, against nnU-Net's own decision on logits with the offset added."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.evaluation.metrics.overlap import case_metrics
from nnunet_kd.evaluation.offsets import OFFSETS, CaseLogits, best_offset

BINARY = {"background": 0, "vessel": 1}
ORGANS = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
REGIONS = {"background": 0, "whole": (1, 2, 3), "core": (2, 3), "middle": 3}


@pytest.mark.parametrize("labels", [BINARY, ORGANS, REGIONS], ids=["one label", "three labels", "regions"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_offset_is_as_if_nnunet_had_decided_on_raised_logits(labels, masked):
    random = np.random.default_rng(0)
    order = [1, 2, 3] if labels is REGIONS else None
    manager = LabelManager(labels, order)
    wanted = manager.foreground_regions if order else manager.foreground_labels
    # half precision as nnU-Net accumulates it: coarse, so that some logits are equal
    logits = torch.from_numpy(np.round(random.normal(size=(manager.num_segmentation_heads, 6, 5, 7)) * 2, 1)).half()
    logits[0] += 0 if order else 1
    box, transpose = (slice(1, 7), slice(0, 5), slice(2, 9)), (2, 0, 1)
    truth = random.integers(0, len(labels), size=(6, 10, 8))  # in nnU-Net's axes (8, 6, 10)
    counted = random.random(truth.shape) < 0.7 if masked else None
    found = CaseLogits(logits, box, transpose, order and tuple(order)).dice(truth, wanted, counted)
    for j in range(0, len(OFFSETS), 8):
        raised = logits.float()
        raised[slice(None) if order else slice(1, None)] += float(OFFSETS[j])
        whole = np.zeros(truth.transpose(transpose).shape, int)
        whole[box] = np.asarray(manager.convert_logits_to_segmentation(raised))
        values = case_metrics(whole.transpose(np.argsort(transpose)), truth, wanted, counted)
        for name, one in (values.get("labels") or {"1": values}).items():
            assert found[name][j] == pytest.approx(one["dice"], nan_ok=True), (OFFSETS[j], name)
    assert len({round(float(v), 6) for v in found[next(iter(found))]}) > 20  # the offset changes something


def test_dice_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.2, 0.4, -0.2, -2.2]]).reshape(2, 1, 1, 4)
    truth = np.array([[[1, 1, 1, 0]]])
    case = CaseLogits(logits, (slice(0, 1), slice(0, 1), slice(0, 4)), (0, 1, 2))
    # 0: marks two of three; +1: all three; -1: one; +4: the false one too
    assert case.dice(truth, [1], offsets=[-1, 0, 1, 4])["1"] == pytest.approx([2 / 4, 4 / 5, 1, 6 / 7])
    assert best_offset(case.dice(truth, [1]), 4 / 5) == pytest.approx((1.0, 0.3))  # the smallest of those that give it
    nothing = case.dice(truth * 0, [1], offsets=[-4, 0])["1"]
    assert math.isnan(nothing[0]) and nothing[1] == 0
    missed = CaseLogits(logits[..., :1], (slice(0, 1), slice(0, 1), slice(0, 1)), (0, 1, 2))
    assert missed.dice(truth, [1], offsets=[0])["1"] == pytest.approx([2 / 4])  # what is cut off is missed


def test_the_best_is_never_below_nnunets_own():
    curves = {"1": np.array([0.5, 0.6, math.nan]), "2": np.array([math.nan, 0.4, math.nan])}
    assert best_offset(curves, 0.45, [-1, 1, 2]) == (0.5, -1.0)  # means 0.5, 0.5, none
    assert best_offset({"1": np.array([0.7, 0.4, 0.7])}, 0.4, [-2, 0, 1]) == (0.7, 1.0)  # the nearer to 0
    assert best_offset(curves, 0.55, [-1, 0, 1]) == (0.55, 0.0)
    assert all(map(math.isnan, best_offset(curves, math.nan, [-1, 0, 1])))
