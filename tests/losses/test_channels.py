"""Adapters between numbers of channels, and the check of shapes."""

import pytest
import torch
from torch import nn

from nnunet_kd.losses.channels import check_features, match_channels, pointwise


def test_equal_channels_need_nothing():
    assert isinstance(match_channels(4, 4, 2), nn.Identity)


@pytest.mark.parametrize(("dims", "kind"), [(2, nn.Conv2d), (3, nn.Conv3d)])
def test_unequal_channels_get_a_convolution_without_bias(dims, kind):
    adapter = match_channels(3, 5, dims)
    assert isinstance(adapter, kind)
    assert adapter.bias is None
    features = torch.rand(2, 3, *[4] * dims)
    out = adapter(features)
    assert out.shape == (2, 5, *[4] * dims)
    by_hand = torch.einsum("oi,bi->bo", adapter.weight.flatten(1), features.flatten(2)[..., 0])
    torch.testing.assert_close(out.flatten(2)[..., 0], by_hand)


def test_pointwise_convolves_equal_channels_too():
    assert pointwise(4, 4, 3).weight.shape == (4, 4, 1, 1, 1)


def test_mistakes_are_refused():
    for dims in (1, 4):
        with pytest.raises(ValueError, match="dims must be 2 or 3"):
            match_channels(3, 5, dims)
    for channels in ((0, 5), (3, 0), (0, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            match_channels(*channels, 2)


def test_shapes_are_compared():
    student, teacher = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)
    check_features(student, teacher)
    check_features(student, teacher, 3, 5)
    check_features(student.unsqueeze(-1), teacher.unsqueeze(-1))
    for s, t in (
        (student[:1], teacher),
        (student, teacher[..., :3]),
        (student, teacher.unsqueeze(-1)),
        (student[0], teacher[0]),
    ):
        with pytest.raises(ValueError) as error:
            check_features(s, t)
        assert str(tuple(s.shape)) in str(error.value) and str(tuple(t.shape)) in str(error.value)
    for channels in ((4, 5), (3, 4), (None, 3)):
        with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 5, 4, 4\)"):
            check_features(student, teacher, *channels)
