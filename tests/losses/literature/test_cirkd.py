"""Cross-image relations within the batch."""

import pytest
import torch
import torch.nn.functional as F
from loss_checks import (
    CHECKS,
    by_finite_differences,
    golden_features,
    gradient,
    mean_over_samples,
    name,
    tensors,
    zero_at_equality,
)

from nnunet_kd.losses.literature.cirkd import CIRKD

GRIDS = [(3, 4), (2, 3, 2)]
# pairs of samples: no mean over the samples
HELD = [*(check for check in CHECKS if check not in (mean_over_samples, by_finite_differences)), zero_at_equality]


# computed once with the published implementation on these inputs
def test_golden_cirkd_minibatch():
    assert CIRKD()(*golden_features()).item() == pytest.approx(9.122663343287558, abs=1e-9)


@pytest.mark.parametrize("max_nodes", [1024, 6])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("check", HELD, ids=name)
def test_contract(check, batch, grid, max_nodes):
    check(CIRKD(max_nodes=max_nodes), *tensors(grid, 4, 5, batch))


@pytest.mark.parametrize(("grid", "batch", "max_nodes"), [((2, 3), 2, 9), ((2, 3, 2), 2, 6), ((3, 4), 1, 99)])
def test_gradient_by_finite_differences(grid, batch, max_nodes):
    by_finite_differences(CIRKD(max_nodes=max_nodes), *tensors(grid, 3, 4, batch))


def _pair_by_pair(student, teacher, temperature):
    s, t = (F.normalize(f.flatten(2), dim=1) for f in (student, teacher))
    found = []
    for i in range(len(s)):
        for j in range(len(s)):
            rows = [(f[i].T @ f[j] / temperature).log_softmax(1) for f in (s, t)]
            found.append(F.kl_div(*rows, log_target=True, reduction="batchmean"))
    return sum(found) / len(found)


@pytest.mark.parametrize(("batch", "temperature"), [(1, 0.1), (3, 0.1), (2, 0.5), (2, 0.03)])
@pytest.mark.parametrize("grid", GRIDS)
def test_all_ordered_pairs_of_samples(grid, batch, temperature):
    student, teacher = tensors(grid, 4, 5, batch)
    loss, expected = CIRKD(temperature=temperature), _pair_by_pair(student, teacher, temperature)
    assert loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-9)
    wanted = gradient(lambda s, t: _pair_by_pair(s, t, temperature), student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.03, 0.1])
def test_single_precision_at_the_coldest_temperature(temperature):
    # opposite directions: similarities of 1 / temperature and of -1 / temperature in one row
    student, teacher = tensors((3, 4), 4, 5)
    student[0], teacher[1] = -student[1], -teacher[0]
    loss = CIRKD(temperature=temperature)
    exact, got = gradient(loss, student, teacher), gradient(loss, student.float(), teacher.float())
    assert loss(student.float(), teacher.float()).item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-5 * exact.abs().max().item())


def test_duplicated_batch_leaves_the_value():
    (student, teacher), loss = tensors((3, 4), 4, 5), CIRKD()
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert twice.item() == pytest.approx(loss(student, teacher).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("grid", "max_nodes", "kernel"),
    [((5, 4), 6, (2, 2)), ((5, 4), 5, (4, 4)), ((1, 5, 4), 6, (1, 2, 2)), ((2, 3, 8), 2, (2, 3, 4)), ((5, 4), 20, (1, 1))],
)
def test_large_grids_are_averaged_in_blocks(grid, max_nodes, kernel):
    student, teacher = tensors(grid, 4, 5)
    pool = F.avg_pool2d if len(grid) == 2 else F.avg_pool3d
    pooled = [pool(f, kernel, ceil_mode=True) for f in (student, teacher)]
    assert 1 < pooled[0][0, 0].numel() <= max_nodes
    expected = CIRKD()(*pooled)
    assert CIRKD(max_nodes=max_nodes)(student, teacher).item() == pytest.approx(expected.item(), rel=1e-9)


def test_nothing_of_the_size_of_the_pairs_is_kept():
    student, teacher = (f.float() for f in tensors((16, 16), 3, 4))
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.numel()) or x, lambda x: x):
        loss = CIRKD()(student.requires_grad_(), teacher)
    loss.backward()
    assert 0 < max(seen) <= student.numel()
    assert student.grad.isfinite().all()


def test_a_pixel_without_features_has_no_direction_and_no_gradient():
    student, teacher = tensors((3, 4), 4, 5)
    student[0, :, 0, 0] = 0
    slope = gradient(CIRKD(), student, teacher)
    assert slope[0, :, 0, 0].abs().max() == 0
    assert slope.abs().max() > 0


def test_declares_what_it_reads():
    assert (CIRKD.reads, CIRKD.weight, CIRKD.needs_target) == ("features", 1.0, False)
    assert not list(CIRKD().parameters())


def test_mistakes_are_refused():
    student, teacher = tensors((3, 4), 4, 5)
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 4\).*\(2, 5, 3, 3\)"):
        CIRKD()(student, teacher[..., :3])
    with pytest.raises(ValueError, match="temperature of CIRKD must be at least 0.03, got 0.01"):
        CIRKD(temperature=0.01)
    with pytest.raises(ValueError, match="max_nodes"):
        CIRKD(max_nodes=0)
