"""The four ACT losses."""

import math

import pytest
import torch

from nnunet_kd.losses import decoded_consistency, logit_kd, reconstruction, regularisation, view_consistency


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (2, 3, 5, 4), (1, 3, 2, 5, 4), (2, 3, 2, 5, 4)])
def test_reconstruction_is_relative(shape):
    feature = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7 + 3
    assert reconstruction(feature, feature) == 0
    assert reconstruction(feature.mean().expand(shape), feature).item() == pytest.approx(1, abs=1e-12)
    # the scale of a stage does not change its value
    other = feature + 1
    small = reconstruction(other / 100, feature / 100).item()
    assert reconstruction(other, feature).item() == pytest.approx(small, rel=1e-9)


def test_reconstruction_by_hand_and_gradient():
    feature = torch.tensor([0.0, 0.0, 4.0, 4.0], dtype=torch.float64).view(1, 1, 2, 2).requires_grad_()
    guess = torch.tensor([1.0, 0.0, 4.0, 2.0], dtype=torch.float64).view(1, 1, 2, 2).requires_grad_()
    loss = reconstruction(guess, feature)
    assert loss.item() == pytest.approx((1 + 4) / 4 / 4)
    loss.backward()
    assert feature.grad is None
    # d/dg of (g - f)^2 / (4 pixels * variance 4)
    assert guess.grad.flatten().tolist() == pytest.approx([2 / 16, 0, 0, -4 / 16])
    assert torch.autograd.gradcheck(lambda g: reconstruction(g, feature), guess)


def test_reconstruction_of_a_flat_feature_is_finite():
    guess = torch.full((1, 2, 4, 4), 0.1, requires_grad=True)
    loss = reconstruction(guess, torch.zeros(1, 2, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert guess.grad.isfinite().all()


def test_regularisation_by_hand():
    vectors = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    semantic = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = regularisation(vectors, semantic)
    assert loss.item() == pytest.approx(2)
    loss.backward()
    assert vectors.grad.flatten().tolist() == [0, 1, 0, -1]
    assert semantic.grad is None
    assert regularisation(semantic, semantic) == 0
    assert torch.autograd.gradcheck(lambda v: regularisation(v, semantic), vectors)


def test_view_consistency_by_hand():
    anchor = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    views = torch.tensor([[[3.0, 0.0], [0.0, -1.0]], [[1.0, 1.0], [5.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    loss = view_consistency(anchor, views)
    assert loss.item() == pytest.approx((0 + 2 + 1 - math.sqrt(0.5) + 1) / 4)
    loss.backward()
    assert anchor.grad.abs().sum() > 0
    assert views.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(view_consistency, (anchor, views))


@pytest.mark.parametrize("batch", [1, 2])
def test_view_consistency_ignores_length_and_vanishes_at_equality(batch):
    anchor = torch.randn(batch, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert view_consistency(anchor, torch.stack([anchor, 3 * anchor])).abs() < 1e-12


@pytest.mark.parametrize("regions", [False, True])
def test_decoded_consistency_is_kl_from_the_original_decoding(regions):
    generator = torch.Generator().manual_seed(2)
    rebuilt = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[0] = False
    loss = decoded_consistency(rebuilt, logits, regions, mask)
    assert loss.item() == pytest.approx(logit_kd(rebuilt[1:], logits[1:], regions=regions).item())
    loss.backward()
    assert logits.grad is None
    assert rebuilt.grad[0].abs().max() == 0
    assert rebuilt.grad[1].abs().max() > 0


def test_half_inputs_under_autocast_are_finite():
    feature = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)).half() * 300
    vectors = feature[0].flatten(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # squares of 300 and their sums leave float16's range
        losses = [
            reconstruction(feature + 300, feature),
            regularisation(vectors, vectors + 300),
            view_consistency(vectors, vectors.flip(0)[None]),
            decoded_consistency(feature, feature.flip(1)),
        ]
    assert all(loss.isfinite() and loss > 0 and loss.dtype == torch.float32 for loss in losses)
