"""The MSAN that keeps every pixel: values by hand, its summary, exchange of headers, 2-D and 3-D."""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.networks.msan import MapMSAN

SPATIAL = [(3, 2), (2, 3, 2)]


def by_hand(msan, feature):
    """1x1 convolutions written as sums over channels."""
    z = torch.einsum("dc,bc...->bd...", msan.project.weight.flatten(1), feature)
    z = z + msan.project.bias.view(1, -1, *[1] * (z.ndim - 2))
    hidden = torch.einsum("hd,bd...->bh...", msan.restore[0].weight.flatten(1), z)
    hidden = F.gelu(hidden + msan.restore[0].bias.view(1, -1, *[1] * (z.ndim - 2)))
    rebuilt = torch.einsum("ch,bh...->bc...", msan.restore[2].weight.flatten(1), hidden)
    return z, rebuilt + msan.restore[2].bias.view(1, -1, *[1] * (z.ndim - 2))


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("batch", [1, 2])
def test_encode_and_reconstruct_by_hand(spatial, batch):
    torch.manual_seed(0)
    msan = MapMSAN(3, spatial, dim=2, hidden=4)
    for p in msan.parameters():
        torch.nn.init.normal_(p)  # biases too
    feature = torch.randn(batch, 3, *spatial)
    z, rebuilt = by_hand(msan, feature)
    vector = msan.encode(feature)
    assert msan.length == 2 * math.prod(spatial) and vector.shape == (batch, msan.length)
    assert torch.allclose(vector.view(batch, 2, *spatial), z, atol=1e-5)
    assert torch.allclose(msan.reconstruct(vector), rebuilt, atol=1e-5)


def test_two_numbers_by_hand():
    msan = MapMSAN(2, (1, 2), dim=1)
    with torch.no_grad():
        msan.project.weight.copy_(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
        msan.project.bias.fill_(0.5)
    feature = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    assert msan.encode(feature).tolist() == [[1 - 4 + 0.5, 3 + 0.5]]
    assert msan.summary(msan.encode(feature)).tolist() == [[0.5]]


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_summary_is_the_mean_over_the_pixels(spatial, batch):
    torch.manual_seed(0)
    msan = MapMSAN(3, spatial, dim=2)
    vector = msan.encode(torch.randn(batch, 3, *spatial))
    summary = msan.summary(vector)
    assert summary.shape == (batch, 2)
    assert torch.allclose(summary, vector.view(batch, 2, *spatial).flatten(2).mean(2))


@pytest.mark.parametrize("spatial", SPATIAL)
def test_a_header_reads_the_other_networks_map_pixel_by_pixel(spatial):
    torch.manual_seed(0)
    teacher, student = MapMSAN(5, spatial, dim=2, hidden=4), MapMSAN(3, spatial, dim=2, hidden=8)
    feature = torch.randn(2, 5, *spatial)
    exchanged = student.reconstruct(teacher.encode(feature))
    assert exchanged.shape == (2, 3, *spatial)
    changed = feature.clone()
    changed[..., -1] += 1
    difference = (student.reconstruct(teacher.encode(changed)) - exchanged).abs().amax(1)
    assert difference[..., :-1].max() == 0 and difference[..., -1].min() > 0
