"""Semantic vectors of a run whose MSANs sit at encoder and decoder stages: the same as by hand, for both networks."""

import pytest
import torch
from helpers import network

from nnunet_kd.config.terms import ACT, MSAN
from nnunet_kd.distillation.alignment import Alignment
from nnunet_kd.evaluation.fsd.vectors import AlignedRun
from nnunet_kd.networks.stages import encode, pair_stages, stage_table


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["vector", "spatial", "map"])
@pytest.mark.parametrize("stages", [["bottleneck"], [1, "decoder0"]])
@torch.no_grad()
def test_vectors_of_all_paired_stages_side_by_side(dims, kind, stages):
    torch.manual_seed(0)
    networks = {"teacher": network(dims, (4, 6, 8, 8)), "student": network(dims, (2, 4, 6), residual=True)}
    tables = {n: stage_table(m) for n, m in networks.items()}
    pairs = pair_stages(tables["teacher"], tables["student"], stages)
    alignment = Alignment(MSAN(kind=kind, dim=64), ACT(), pairs, tables, [16] * dims, 2)
    run = AlignedRun(None, networks["student"], networks["teacher"], alignment)
    x = torch.randn(2, 1, *[16] * dims)
    for name, net in networks.items():
        features = encode(net, x)
        if len(stages) == 2:
            up = features[-1]
            for transposed, stage, skip in zip(net.decoder.transpconvs, net.decoder.stages, features[-2::-1], strict=True):
                up = stage(torch.cat([transposed(up), skip], 1))
            features.append(up)  # the decoder's stage of full resolution
            tapped = [features[1], features[-1]]
        else:
            tapped = [features[2]]  # of the stride that both networks have
        expected = []
        for pair, feature in zip(pairs, tapped, strict=True):
            msan = alignment.msans[f"{name}_{pair.name}"]
            z = msan.encode(feature)
            expected.append(z.view(2, 64, -1).mean(2) if kind == "map" else z)
        for _ in range(2):  # no hook is left behind
            assert torch.allclose(run.vectors(name, x), torch.cat(expected, 1), atol=1e-5)
        assert not any(m._forward_hooks for m in net.modules())
