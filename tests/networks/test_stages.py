import pytest
import torch
from helpers import network
from torch import nn

from nnunet_kd.networks.stages import StageTable, StageTap, decode, encode, pair_stages, stage_table, swap
from nnunet_kd.utils.errors import KDError


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_decode_of_encode_is_the_forward(dims, residual):
    torch.manual_seed(0)
    net = network(dims, residual=residual, supervision=True).eval()
    x = torch.randn(2, 1, *[16] * dims)
    features = encode(net, x)
    table = stage_table(net)
    assert [tuple(f.shape[2:]) for f in features] == [table.size(i, [16] * dims) for i in range(3)]
    assert [f.shape[1] for f in features] == list(table.channels)
    assert torch.equal(decode(net, features), net(x)[0])


def test_swapping_a_stage_changes_only_that_entry_and_the_prediction():
    torch.manual_seed(0)
    net = network()
    features = encode(net, torch.randn(1, 1, 16, 16))
    swapped = swap(features, {2: torch.zeros_like(features[2])})
    assert swapped[0] is features[0] and swapped[1] is features[1]
    assert not torch.equal(decode(net, swapped), decode(net, features))


def test_stages_pair_by_cumulative_stride_across_depth_and_family():
    teacher = stage_table(network(features=(4, 8, 16, 16), residual=True))
    student = stage_table(network(features=(2, 4, 8)))
    assert [(p.name, p.teacher, p.student) for p in pair_stages(teacher, student, ["all"])] == [
        ("1x1", 0, 0),
        ("2x2", 1, 1),
        ("4x4", 2, 2),
    ]
    assert pair_stages(teacher, student, ["bottleneck"])[0].teacher == 2  # the deepest that both have
    skipping = stage_table(network(features=(2, 4), strides=[1, 4]))
    assert [(p.teacher, p.student) for p in pair_stages(teacher, skipping, ["all"])] == [(0, 0), (2, 1)]


def test_impossible_pairs_name_what_there_is():
    a = StageTable("A", (1, 2), ((1, 1), (2, 2)))
    b = StageTable("B", (1,), ((3, 3),))
    with pytest.raises(KDError, match="none in common"):
        pair_stages(a, b, ["bottleneck"])
    with pytest.raises(KDError, match="student stage 5"):
        pair_stages(a, a, [5])
    with pytest.raises(KDError, match="unknown stage"):
        pair_stages(a, a, ["neck"])


def test_a_network_without_stages_is_refused_with_the_reason():
    with pytest.raises(KDError, match="no encoder stages"):
        stage_table(nn.Linear(1, 1))


def test_the_tap_hands_over_the_features_of_the_last_forward_once():
    net = network()
    tap = StageTap(net)
    x = torch.randn(1, 1, 16, 16)
    net(x)
    with pytest.raises(RuntimeError, match="has not run"):
        tap.take()  # it was not enabled
    tap.enabled = True
    out = net(x)
    taken = tap.take()
    assert torch.equal(decode(net, taken), out)
    with pytest.raises(RuntimeError, match="has not run"):
        tap.take()
