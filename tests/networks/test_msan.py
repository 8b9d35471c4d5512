"""MSANs and the semantic autoencoder: shapes, exchange of headers, and that they learn."""

import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.losses import reconstruction
from nnunet_kd.networks.msan import KINDS, SpatialMSAN, VectorMSAN, build_msan
from nnunet_kd.networks.semantic_autoencoder import SemanticAutoencoder

SPATIAL = [(8, 6), (4, 4), (5, 7, 4), (1, 8, 8)]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(kind, channels, spatial, per_node=2):
    nodes = 1
    for n in spatial:
        nodes *= min(4, n)
    return build_msan(kind, channels, spatial, dim=per_node * nodes, hidden=16)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_shapes_and_gradients(kind, spatial, batch):
    msan = build(kind, 6, spatial)
    feature = torch.randn(batch, 6, *spatial, requires_grad=True)
    vector = msan.encode(feature)
    assert vector.shape == (batch, msan.length)
    rebuilt = msan.reconstruct(vector)
    assert rebuilt.shape == feature.shape
    rebuilt.square().sum().backward()
    assert feature.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in msan.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_see_each_other(kind):
    msan = build(kind, 6, (8, 6))
    feature = torch.randn(3, 6, 8, 6)
    assert torch.allclose(msan.encode(feature)[1:2], msan.encode(feature[1:2]), atol=1e-6)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_headers_can_be_exchanged(kind, spatial):
    teacher, student = build(kind, 12, spatial), build(kind, 5, spatial)
    z = teacher.encode(torch.randn(2, 12, *spatial))
    assert student.reconstruct(z).shape == (2, 5, *spatial)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_another_size(kind):
    msan = build(kind, 6, (8, 6))
    vector = msan.encode(torch.randn(2, 6, 11, 3))
    assert vector.shape == (2, msan.length)
    assert msan.reconstruct(vector, (11, 3)).shape == (2, 6, 11, 3)
    assert torch.equal(msan.reconstruct(vector, (8, 6)), msan.reconstruct(vector))


def test_vector_msan_pools_large_features():
    msan = VectorMSAN(3, (16, 40, 40), dim=8, max_nodes=2000)
    assert msan.pooled == (16, 10, 10)
    assert msan.expand[-1].out_features == 1600
    feature = torch.randn(1, 3, 16, 40, 40)
    pooled = F.adaptive_avg_pool3d(feature, msan.pooled)
    assert torch.equal(msan.encode(feature), msan.encode(pooled))
    assert msan.reconstruct(msan.encode(feature)).shape == feature.shape


def test_vector_msan_is_the_published_mlp():
    """EVIDENCE: one MLP 256-64-1 over the pixels for all channels, and back."""
    msan = VectorMSAN(512, (16, 16), dim=512)
    assert [(m.in_features, m.out_features) for m in msan.modules() if isinstance(m, torch.nn.Linear)] == [
        (256, 64),
        (64, 1),
        (1, 64),
        (64, 256),
    ]
    feature = torch.randn(1, 512, 16, 16)
    with torch.no_grad():
        msan.project.weight.copy_(torch.eye(512)[:, :, None, None])
        single = msan.squeeze(feature[0, 17].flatten())
        assert torch.allclose(msan.encode(feature)[0, 17], single[0], atol=1e-6)


def test_spatial_msan_knows_where():
    """Two features with equal channel statistics but other places give other vectors, at the right nodes only."""
    msan = SpatialMSAN(1, (8, 8), dim=16)
    left, right = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    left[..., :2, :2], right[..., :2, 6:] = 1, 1
    change = (msan.encode(left) - msan.encode(right)).view(4, 4).abs() > 1e-6
    assert change.nonzero().tolist() == [[0, 0], [0, 3]]


def test_spatial_msan_names_the_fix():
    with pytest.raises(ValueError, match=r"dim 250 .* 4x4 = 16 nodes .* multiple of 16, e.g. 256"):
        SpatialMSAN(8, (8, 8), dim=250)
    assert SpatialMSAN(8, (2, 8, 8), dim=64).grid == (2, 4, 4)


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(ValueError, match='unknown msan kind "vektor", use one of vector, spatial, map'):
        build_msan("vektor", 8, (8, 8), 16)
    assert build_msan("vector", 8, (8, 8), 16, hidden=4, max_nodes=16).pooled == (4, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_learns_to_reconstruct(kind):
    msan = build(kind, 8, (8, 8), per_node=4)
    # smooth features of four samples: a blob per sample and channel
    feature = F.interpolate(torch.randn(4, 8, 3, 3), (8, 8), mode="bilinear")
    optimiser = torch.optim.Adam(msan.parameters(), 1e-2)
    first = None
    for _ in range(150):
        loss = reconstruction(msan.reconstruct(msan.encode(feature)), feature)
        first = first or loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert first < 3  # starts near "as bad as the mean", not far off
    assert loss.item() < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_float32_under_autocast(kind):
    msan = build(kind, 6, (8, 6))
    feature = torch.randn(2, 6, 8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vector = msan.encode(feature)
        assert msan.reconstruct(vector.half()).dtype == torch.float32
    assert torch.equal(vector, msan.encode(feature))


def labels(size, batch=2):
    """One-hot maps of three labels: half planes and a corner that differ between the samples."""
    label = torch.zeros(batch, *size, dtype=torch.long)
    label[0, ..., : size[-1] // 2] = 1
    label[-1, ..., size[-1] // 2 :] = 1
    label[:, ..., : size[-2] // 2, : size[-1] // 4] = 2
    return F.one_hot(label, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("size", [(16, 16, 16), (3, 20, 17), (1, 9, 9), (64, 40), (5, 4), (2, 3)])
def test_autoencoder_takes_any_patch(size):
    model = SemanticAutoencoder(3, len(size), dim=10, width=4)
    onehot = labels(size)
    vector = model.encode(onehot)
    assert vector.shape == (2, 10)
    assert model.decode(vector, size).shape == (2, 3, *size)
    assert model(onehot).shape == onehot.shape
    loss = model.loss(onehot)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(17, 9), (5, 9, 17)])
def test_autoencoder_sees_the_last_pixels_of_odd_axes(size):
    model, onehot = SemanticAutoencoder(2, len(size), dim=10, width=4), torch.zeros(1, 2, *size)
    onehot[:, 0] = 1
    for axis in range(2, onehot.ndim):
        changed = onehot.clone()
        changed.narrow(axis, size[axis - 2] - 1, 1).copy_(1 - onehot.narrow(axis, 0, 1))
        assert (model.encode(changed) - model.encode(onehot)).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(32, 32), (8, 16, 16)])
def test_autoencoder_learns_and_tells_samples_apart(size):
    model, onehot = SemanticAutoencoder(3, len(size), dim=16, width=8), labels(size)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    first = model.loss(onehot).item()
    for _ in range(60):
        loss = model.loss(onehot)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < first / 3
    predicted = model(onehot).argmax(1)
    assert (predicted == onehot.argmax(1)).float().mean() > 0.9


def test_autoencoder_loss_by_hand():
    """Head alone, all weights 0: uniform probabilities 1/2 over two labels."""
    model = SemanticAutoencoder(2, 2, dim=4, width=4)
    with torch.no_grad():
        model.head.weight.zero_()
    onehot = torch.zeros(1, 2, 4, 4)
    onehot[:, 0, :1], onehot[:, 1, 1:] = 1, 1  # 4 and 12 pixels
    dice = ((2 * 2 + 1) / (8 + 4 + 1) + (2 * 6 + 1) / (8 + 12 + 1)) / 2
    assert model.loss(onehot).item() == pytest.approx(torch.log(torch.tensor(2.0)).item() + 1 - dice, abs=1e-6)
    # pixels without a label count nowhere: the same over the top two rows only
    onehot[:, :, 2:] = 0
    dice = ((2 * 2 + 1) / (4 + 4 + 1) + (2 * 2 + 1) / (4 + 4 + 1)) / 2
    assert model.loss(onehot).item() == pytest.approx(torch.log(torch.tensor(2.0)).item() + 1 - dice, abs=1e-6)


def test_standardisation_is_exact_over_equal_batches():
    model = SemanticAutoencoder(2, 2, dim=5)
    z = torch.randn(40, 5) * torch.tensor([0.1, 1, 10, 100, 3]) + torch.tensor([1000.0, -5, 0, 7, 1])
    assert torch.equal(model.standardise(z), z)  # nothing observed yet
    for batch in z.split(2):
        model.observe(batch)
    assert torch.allclose(model.mean, z.mean(0), rtol=1e-4)
    assert torch.allclose(model.std, z.std(0, unbiased=False), rtol=1e-3)
    standard = model.standardise(z)
    assert standard.mean(0).abs().max() < 1e-2
    assert (standard.std(0, unbiased=False) - 1).abs().max() < 1e-2
    assert {"mean", "std", "batches"} <= set(model.state_dict())


def test_standardisation_follows_a_drift():
    model = SemanticAutoencoder(2, 2, dim=1)
    for _ in range(100):
        model.observe(torch.randn(8, 1))
    for _ in range(700):
        model.observe(torch.randn(8, 1) * 2 + 50)
    assert model.mean.item() == pytest.approx(50, abs=0.6)
    assert 1.5 < model.std.item() < 3


def test_standardisation_of_equal_vectors_is_finite():
    # patches of background alone all have the same vector
    model = SemanticAutoencoder(2, 2, dim=3)
    z = torch.ones(2, 3) * 5
    model.observe(z)
    assert torch.equal(model.standardise(z), torch.zeros(2, 3))
    other = z + 1
    model.observe(other)
    assert model.standardise(other).abs().max() < 3


def test_observing_leaves_no_graph():
    model = SemanticAutoencoder(2, 2, dim=3)
    model.observe(model.encode(torch.rand(2, 2, 8, 8)))
    assert not model.mean.requires_grad and not model.std.requires_grad


def test_autoencoder_of_regions_learns_where_no_region_is():
    torch.manual_seed(0)
    whole = torch.zeros(1, 2, 16, 16)
    whole[:, 0, 4:12, 4:12] = 1  # region 0 holds region 1; the rest is background and has no channel
    whole[:, 1, 6:9, 6:9] = 1
    net = SemanticAutoencoder(2, 2, dim=16, regions=True)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        net.loss(whole).backward()
        optimizer.step()
    found = net(whole).sigmoid()
    assert found[0, 0][whole[0, 0] == 0].mean() < 0.2 and found[0, 0][whole[0, 0] == 1].mean() > 0.8
