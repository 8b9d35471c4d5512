"""The pixel-wise and the pair-wise part of SKD."""

import pytest
import torch
import torch.nn.functional as F
from loss_checks import (
    CHECKS,
    by_finite_differences,
    golden_features,
    golden_logits,
    gradient,
    name,
    tensors,
    wave,
    zero_at_equality,
)

from nnunet_kd.losses.kd import KD
from nnunet_kd.losses.literature.skd import SKDPairwise, SKDPairwise2x2, SKDPixelwise

PAIRWISE = [SKDPairwise(), SKDPairwise(scale=0.25), SKDPairwise2x2()]
# finite differences see the lengths of the nodes change, the published gradient does not: tested on its own
PAIRWISE_CHECKS = [*(check for check in CHECKS if check is not by_finite_differences), zero_at_equality]


# computed once with the published implementation, which sums over the two samples
def test_golden_pixelwise():
    student, teacher = golden_logits()
    assert 2 * SKDPixelwise()(student, teacher).item() == pytest.approx(3.2336674613156857, abs=1e-9)


# computed once with the published implementations (SKD, CIRKD), which cast to float32
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SKDPairwise(), 0.09264203906059265),
        (SKDPairwise(scale=0.25), 0.7710585594177246),
        (SKDPairwise2x2(), 0.7710586244764347),
    ],
)
def test_golden_pairwise(loss, expected):
    student, teacher = golden_features()
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_pixelwise_is_kd_and_the_teachers_entropy(regions):
    student, teacher = tensors((3, 4), 3, 3)
    own, kd = SKDPixelwise(regions=regions), KD(regions=regions)
    entropy = own(teacher, teacher)
    assert entropy > 0.1
    assert own(student, teacher).item() == pytest.approx((kd(student, teacher) + entropy).item(), rel=1e-9)
    torch.testing.assert_close(gradient(own, student, teacher), gradient(kd, student, teacher))


@pytest.mark.parametrize("grid", [(5, 6), (4, 3, 5)])
@pytest.mark.parametrize("loss", PAIRWISE, ids=["half", "quarter", "2x2"])
@pytest.mark.parametrize("check", PAIRWISE_CHECKS, ids=name)
def test_contract_pairwise(check, loss, grid):
    check(loss, *tensors(grid, 3, 4))


def _by_pairs(student, teacher, kernel, lengths):
    """All cosines, one matrix of nodes by nodes each; ``lengths`` of the student's nodes are held fixed."""
    pool = F.max_pool2d if student.ndim == 4 else F.max_pool3d
    s, t = (pool(f, kernel, ceil_mode=True).flatten(2) for f in (student, teacher))
    s, t = s / lengths, t / t.norm(dim=1, keepdim=True)
    cosines = [torch.einsum("bki,bkj->bij", nodes, nodes) for nodes in (s, t)]
    return (cosines[0] - cosines[1]).square().mean()


@pytest.mark.parametrize(
    ("loss", "grid", "channels", "kernel"),
    [
        (SKDPairwise(), (5, 6), (10, 12), (2, 3)),  # 3 x 2 nodes: pairs
        (SKDPairwise(), (5, 6), (3, 4), (2, 3)),  # more nodes than channels: products of channels
        (SKDPairwise(), (5, 6), (3, 12), (2, 3)),
        (SKDPairwise(scale=0.3), (5, 3, 7), (3, 4), (1, 1, 2)),
        (SKDPairwise2x2(), (5, 6), (3, 4), (2, 2)),
        (SKDPairwise2x2(), (5, 6), (10, 12), (2, 2)),
        (SKDPairwise2x2(), (1, 4, 6), (3, 4), (1, 2, 2)),
    ],
)
def test_pairwise_value_and_gradient_are_those_of_the_pairs(loss, grid, channels, kernel):
    student, teacher = tensors(grid, *channels)
    pool = F.max_pool2d if len(grid) == 2 else F.max_pool3d
    lengths = pool(student, kernel, ceil_mode=True).flatten(2).norm(dim=1, keepdim=True)
    expected = _by_pairs(student, teacher, kernel, lengths)
    assert expected > 1e-3
    assert loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = gradient(lambda s, t: _by_pairs(s, t, kernel, lengths), student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("grid", "channels"),
    [
        ((256, 256), (2, 3)),  # 16384 nodes: their cosines alone would take 1 GiB in float32
        ((4, 4), (1024, 1280)),  # 4 nodes: products of channels would take more than the features
    ],
)
def test_pairwise_memory_grows_with_the_features_only(grid, channels):
    student, teacher = (f.float() for f in tensors(grid, *channels, batch=1))
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.numel()) or x, lambda x: x):
        loss = SKDPairwise2x2()(student.requires_grad_(), teacher)
    loss.backward()
    assert 0 < max(seen) <= 2 * student.numel()
    assert student.grad.isfinite().all()


def test_single_precision_near_equality_stays_near_zero():
    student, _ = tensors((16, 16), 4, 4)
    value = SKDPairwise2x2()(student.float(), (student + 1e-3 * wave(student.shape, 0.3, 0.7, 1.0)).float())
    assert abs(value.item()) < 1e-5


def test_declare_what_they_read():
    assert (SKDPixelwise.reads, SKDPixelwise.weight) == ("logits", 80.0)
    assert (SKDPairwise.reads, SKDPairwise.weight) == ("features", 1.0)
    assert (SKDPairwise2x2.reads, SKDPairwise2x2.weight) == ("features", 10.0)


def test_mistakes_are_refused():
    student, teacher = tensors((3, 4), 3, 4)
    for loss in (SKDPairwise(), SKDPairwise2x2()):
        with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 4, 3, 3\)"):
            loss(student, teacher[..., :3])
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 4, 3, 4\)"):
        SKDPixelwise()(student, teacher)
    for scale in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="scale"):
            SKDPairwise(scale=scale)
