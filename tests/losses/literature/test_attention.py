"""Attention transfer."""

import pytest
import torch
from loss_checks import CHECKS, golden_features, gradient, name, tensors, zero_at_equality

from nnunet_kd.losses.literature.attention import AT, attention_map

GRIDS = [(3, 4), (2, 3, 2)]


# computed once with the published implementations (CIRKD, KD-Zoo, EMKD; the last sums over the pixels) on these inputs
@pytest.mark.parametrize(
    ("p", "factor", "expected"), [(2, 1, 0.0036806196225511434), (1, 1, 0.0015099116608091683), (4, 64, 0.5775758949645817)]
)
def test_golden_at(p, factor, expected):
    student, teacher = golden_features()
    assert factor * AT(p=p)(student, teacher).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("check", [*CHECKS, zero_at_equality], ids=name)
def test_contract(check, grid, p):
    check(AT(p=p), *tensors(grid, 3, 5))


def test_declares_what_it_reads():
    assert (AT.reads, AT.weight, AT.needs_target) == ("features", 10000.0, False)
    assert not list(AT().parameters())


def test_by_hand():
    # one channel, two pixels: (3, 4) and (5, 0) have attention (9, 16) / |.| and (1, 0)
    student, teacher = (torch.tensor(f, dtype=torch.float64).view(1, 1, 1, 2) for f in ([3, -4], [-5, 0]))
    length = (81 + 256) ** 0.5
    expected = ((9 / length - 1) ** 2 + (16 / length) ** 2) / 2
    assert AT()(student, teacher).item() == pytest.approx(expected, abs=1e-12)


def test_the_scale_of_the_features_does_not_count():
    student, teacher = tensors((3, 4), 3, 5)
    assert AT()(1e-3 * student, 1e3 * teacher).item() == pytest.approx(AT()(student, teacher).item(), rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_largest_features_at_any_power_keep_their_gradient(p):
    student, teacher = tensors((3, 4), 3, 5)
    exact, got = gradient(AT(p=p), 1e4 * student, teacher), gradient(AT(p=p), (1e4 * student).float(), teacher.float())
    assert exact.abs().max() > 0
    torch.testing.assert_close(got.double() / exact.abs().max(), exact / exact.abs().max(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_dead_features_give_no_gradient_and_no_nan(p):
    _, teacher = tensors((3, 4), 3, 5)
    assert torch.equal(gradient(AT(p=p), torch.zeros(2, 3, 3, 4).double(), teacher), torch.zeros(2, 3, 3, 4).double())


def test_maps_have_length_one():
    maps = attention_map(tensors((2, 3, 2), 3, 5)[1], 2)
    assert maps.shape == (2, 12)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_mistakes_are_refused():
    student, teacher = tensors((3, 4), 3, 5)
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(2, 5, 3, 3\)"):
        AT()(student, teacher[..., :3])
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*\(1, 5, 3, 4\)"):
        AT()(student, teacher[:1])
    for p in (0, 1.5, 9):
        with pytest.raises(ValueError, match="p must be"):
            AT(p=p)
