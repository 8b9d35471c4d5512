"""Pairs of stages between networks of other depth, width, family and number of convolutions; decoder stages; the tap."""

import pytest
import torch
from helpers import network

from nnunet_kd.config.terms import ACT, MSAN
from nnunet_kd.distillation.alignment import Alignment
from nnunet_kd.networks.stages import StageTap, decode, encode, pair_stages, stage_table, swap
from nnunet_kd.utils.errors import KDError

# another depth, width, family and number of convolutions at once
DEEP = dict(features=(4, 6, 8, 8), residual=True, convs=[1, 2, 1, 2], decoder_convs=2)
FLAT = dict(features=(2, 4, 6))


def names(pairs):
    return [(p.name, p.teacher, p.student, p.decoder) for p in pairs]


def taped(net, x, decoder=True):
    tap = StageTap(net, decoder=decoder)
    tap.enabled = True
    output = net(x)
    tap.remove()
    return tap.take(), output


def by_hand(net, features):
    """The decoder of dynamic_network_architectures, written out: its stages' features from high to low resolution."""
    x, found = features[-1], []
    for up, stage, skip in zip(net.decoder.transpconvs, net.decoder.stages, features[-2::-1], strict=True):
        x = stage(torch.cat([up(x), skip], 1))
        found.insert(0, x)
    return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("teacher", "student"), [(DEEP, FLAT), (FLAT, DEEP)])
def test_all_stages_pair_and_their_features_have_one_size(dims, teacher, student):
    torch.manual_seed(0)
    nets = [network(dims, **kind) for kind in (teacher, student)]
    tables = [stage_table(net) for net in nets]
    pairs = pair_stages(*tables, ["all", "decoder"])
    depths = [t.depth for t in tables]
    one, two = "x".join("1" * dims), "x".join("2" * dims)
    assert names(pairs) == [
        (one, 0, 0, False),
        (two, 1, 1, False),
        ("x".join("4" * dims), 2, 2, False),
        # the lowest resolution of the flatter network has no decoder stage
        (f"decoder_{one}", depths[0], depths[1], True),
        (f"decoder_{two}", depths[0] + 1, depths[1] + 1, True),
    ]
    x = torch.randn(2, 1, *[16] * dims)
    features = [taped(net, x)[0] for net in nets]
    for pair in pairs:
        for kept, table, stage in zip(features, tables, (pair.teacher, pair.student), strict=True):
            assert kept[stage].shape == (2, table.width(stage), *table.size(stage, [16] * dims)), pair
    assert len({p.name for p in pairs}) == len(pairs)  # MSANs are kept by name


def test_decoder_stages_are_chosen_one_by_one_by_the_students_resolution():
    # the student's second stage is at the teacher's third resolution
    teacher, student = stage_table(network(features=(2, 4, 6, 8))), stage_table(network(features=(2, 4, 6), strides=[1, 4, 2]))
    assert names(pair_stages(teacher, student, ["decoder1"])) == [("decoder_4x4", 6, 4, True)]
    assert names(pair_stages(teacher, student, ["decoder0", 2, "decoder0"])) == [
        ("8x8", 3, 2, False),
        ("decoder_1x1", 4, 3, True),
    ]
    assert names(pair_stages(teacher, student, ["bottleneck", "decoder"])) == [
        ("8x8", 3, 2, False),
        ("decoder_1x1", 4, 3, True),
        ("decoder_4x4", 6, 4, True),
    ]


def test_anisotropic_strides_pair_only_where_every_axis_agrees():
    teacher = stage_table(network(3, (2, 4, 6), strides=[1, [1, 2, 2], [2, 2, 2]]))
    student = stage_table(network(3, (2, 4, 6), strides=[1, [2, 2, 2], [1, 2, 2]]))
    assert names(pair_stages(teacher, student, ["all", "decoder"])) == [
        ("1x1x1", 0, 0, False),
        ("2x4x4", 2, 2, False),
        ("decoder_1x1x1", 3, 3, True),
    ]


def test_a_stage_without_a_partner_is_named_with_those_that_have_one():
    teacher, student = stage_table(network(features=(2, 4, 6))), stage_table(network(features=(2, 4, 6), strides=[1, 4, 2]))
    with pytest.raises(KDError, match="student stage decoder2 has no teacher stage.*decoder0"):
        pair_stages(teacher, student, ["decoder2"])  # the lowest resolution has no decoder stage
    with pytest.raises(KDError, match=r"student stage 1 has no teacher stage.*\{0: '1x1', 'decoder0'"):
        pair_stages(stage_table(network(features=(2, 4))), stage_table(network(features=(2, 4), strides=[1, 4])), [1])
    with pytest.raises(KDError, match="student stage decoder has no teacher stage"):
        pair_stages(stage_table(network(features=(2, 4))), stage_table(network(features=(2, 4), strides=[2, 1])), ["decoder"])
    with pytest.raises(KDError, match="student stage decoderX has no teacher stage"):
        pair_stages(teacher, student, ["decoderX"])


def test_two_stages_of_one_resolution_keep_msans_of_their_own_or_are_one_pair():
    # a student's stage of stride 1 behind another: widths 4 and 6 at one cumulative stride
    nets = network(features=(2, 4, 6)), network(features=(2, 4, 6), strides=[1, 2, 1])
    tables = dict(zip(("teacher", "student"), map(stage_table, nets), strict=True))
    pairs = pair_stages(*tables.values(), ["all", "decoder"])
    alignment = Alignment(MSAN(dim=4), ACT(), pairs, tables, [16, 16], 2)
    assert len(alignment.msans) == 2 * len(pairs)
    features, _ = taped(nets[1], torch.randn(1, 1, 16, 16))
    assert all(z.shape == (1, 4) for z in alignment.encode("student", features))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", [DEEP, FLAT])
@pytest.mark.parametrize("supervision", [False, True])
def test_the_tap_keeps_what_the_decoder_computes(dims, batch, kind, supervision):
    torch.manual_seed(0)
    net = network(dims, supervision=supervision, **kind)
    x = torch.randn(batch, 1, *[16] * dims)
    kept, output = taped(net, x)
    features = encode(net, x)
    expected = [*features, *by_hand(net, features)]
    assert len(kept) == 2 * len(features) - 1
    assert all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True))
    logits = output[0] if supervision else output
    assert torch.equal(net.decoder.seg_layers[-1](kept[len(features)]), logits)
    # a list with decoder features behind it decodes as the encoder's alone
    assert torch.equal(decode(net, kept), logits)


def test_decoding_a_combined_list_reads_swapped_encoder_stages_and_no_decoder_stage():
    torch.manual_seed(0)
    net = network()
    kept, _ = taped(net, torch.randn(1, 1, 16, 16))
    other = swap(kept, {3: torch.zeros_like(kept[3]), 4: torch.zeros_like(kept[4])})
    assert torch.equal(decode(net, other), decode(net, kept))
    assert not torch.equal(decode(net, swap(kept, {1: torch.zeros_like(kept[1])})), decode(net, kept))


def test_a_taken_tap_ignores_decoder_passes_until_it_is_enabled_again():
    torch.manual_seed(0)
    net = network()
    tap = StageTap(net, decoder=True)
    x = torch.randn(1, 1, 16, 16)
    tap.enabled = True
    net(x)
    kept = tap.take()
    decode(net, kept)  # DICD's and ACT's passes
    assert tap.features is None and len(kept) == 5
    tap.enabled = True
    net(x)
    assert len(tap.take()) == 5
    tap.remove()
    tap.enabled = True
    net(x)
    assert tap.features is None


def test_gradients_flow_through_kept_decoder_features():
    torch.manual_seed(0)
    net = network()
    kept, _ = taped(net, torch.randn(1, 1, 16, 16))
    kept[3].square().mean().backward()
    assert net.encoder.stages[2][0].convs[0].conv.weight.grad.abs().sum() > 0
    assert net.decoder.stages[-1].convs[0].conv.weight.grad.abs().sum() > 0


def test_the_tap_works_inside_a_compiled_network():
    """nnU-Net compiles on CUDA; the tap has to survive the tracing."""
    torch.manual_seed(0)
    net = network(features=(2, 4))
    compiled = torch.compile(net, backend="eager")
    tap = StageTap(compiled, decoder=True)
    for _ in range(2):
        x = torch.randn(1, 1, 8, 8)
        tap.enabled = True
        out = compiled(x)
        kept = tap.take()
        features = encode(net, x)
        expected = [*features, *by_hand(net, features)]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept, expected, strict=True))
        assert torch.allclose(decode(compiled, features), out, atol=1e-6)
        net.zero_grad()
        kept[-1].square().mean().backward()
        assert net.encoder.stages[0][0].convs[0].conv.weight.grad.abs().sum() > 0
        tap.enabled = False
        compiled(x)
        assert tap.features is None
