"""Graph distillation: values by hand, gradients, the degenerate cases, and the gathering over ranks."""

import math

import pytest
import torch
from ranks import on_two_ranks

from nnunet_kd.losses import inter_graph_loss, intra_graph_loss
from nnunet_kd.utils.distributed import gather_with_gradient

LOSSES = [intra_graph_loss, inter_graph_loss]
FORMS = ["softmax", "squared"]


def vectors(views, batch, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views + 1, batch, dim, generator=generator, dtype=torch.float64)


def planar(*angles):
    """Unit vectors in the plane `(K+1, B, 2)` from rows of angles in degrees, of any length > 0."""
    angle = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1) * torch.linspace(1, 3, angle.numel()).view(*angle.shape, 1)


def kl_of_rows(teacher, student, tau):
    def softmax(row):
        weights = [math.exp(c / tau) for c in row]
        return [w / sum(weights) for w in weights]

    rows = [
        sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True))
        for t, s in zip(teacher, student, strict=True)
    ]
    return sum(rows) / len(rows)


def cosines(*degrees):
    return [math.cos(math.radians(d)) for d in degrees]


def test_intra_by_hand():
    # two samples, one view: anchors at 0 and 90 degrees, views at 30 and 60 (teacher) or 30 and 90 (student)
    teacher, student = planar([0, 90], [30, 60]), planar([0, 90], [30, 90])
    rows_t = [cosines(30, 60), cosines(60, 30)]
    rows_s = [cosines(30, 90), cosines(60, 0)]
    expected = kl_of_rows(rows_t, rows_s, 0.5)
    assert intra_graph_loss(student, teacher, tau=0.5).item() == pytest.approx(expected, abs=1e-12)
    squared = sum((a - b) ** 2 for t, s in zip(rows_t, rows_s, strict=True) for a, b in zip(t, s, strict=True)) / 4
    assert intra_graph_loss(student, teacher, form="squared").item() == pytest.approx(squared, abs=1e-12)


def test_inter_by_hand():
    # one sample, two views: a complete graph of three nodes, self excluded
    teacher, student = planar([0], [30], [90]), planar([0], [60], [90])
    rows_t = [cosines(30, 90), cosines(30, 60), cosines(90, 60)]
    rows_s = [cosines(60, 90), cosines(60, 30), cosines(90, 30)]
    expected = kl_of_rows(rows_t, rows_s, 0.5)
    assert inter_graph_loss(student, teacher, tau=0.5).item() == pytest.approx(expected, abs=1e-12)
    squared = sum((a - b) ** 2 for t, s in zip(rows_t, rows_s, strict=True) for a, b in zip(t, s, strict=True)) / 6
    assert inter_graph_loss(student, teacher, form="squared").item() == pytest.approx(squared, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("views", "batch"), [(1, 1), (1, 2), (4, 1), (2, 2)])
def test_zero_at_equality_gradient_to_the_student_alone(loss, form, views, batch):
    student, teacher = vectors(views, batch, 5, 0).requires_grad_(), vectors(views, batch, 8, 1).requires_grad_()
    assert loss(teacher, teacher, form=form).abs() < 1e-12
    assert loss(3 * teacher, teacher, form=form).abs() < 1e-12  # only directions count
    value = loss(student, teacher, form=form)
    value.backward()
    assert value > 0
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    # nnU-Net's usual batch is 2: not one of the vectors may be left without a gradient
    assert (student.grad.abs().sum(-1) > 1e-9).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("views", "batch"), [(1, 1), (1, 2), (2, 2)])
def test_gradcheck(loss, form, views, batch):
    student, teacher = vectors(views, batch, 4, 2).requires_grad_(), vectors(views, batch, 6, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, tau=0.5, form=form), student)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_one_edge_take_the_squared_form(loss):
    # K = B = 1: a softmax over one edge is 1 whatever the edge, and would teach nothing
    student, teacher = planar([0], [60]), planar([0], [0])
    assert loss(student, teacher, form="softmax").item() == pytest.approx(0.25)


def test_own_views_alone_degenerate_in_the_softmax_form():
    # what ACT strives for: all of the teacher's views coincide. Student's views coincide too, away from its anchor.
    teacher, student = planar([0], [0], [0]), planar([0], [60], [60]).requires_grad_()
    degenerate = intra_graph_loss(student, teacher, form="softmax")
    degenerate.backward()
    assert degenerate.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12
    student.grad = None
    squared = intra_graph_loss(student, teacher, form="squared")
    squared.backward()
    assert squared.item() == pytest.approx(0.25)
    assert student.grad.abs().max() > 0.1


def test_views_of_other_samples_lift_the_degeneration():
    teacher = planar([0, 90], [0, 90], [0, 90])
    student = planar([0, 90], [60, 90], [60, 90]).requires_grad_()
    loss = intra_graph_loss(student, teacher)
    loss.backward()
    assert loss > 0.01
    assert student.grad.abs().max() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_order_of_samples_and_views_does_not_matter(form):
    student, teacher = vectors(2, 3, 5, 4), vectors(2, 3, 5, 5)
    for loss in LOSSES:
        expected = loss(student, teacher, form=form).item()
        assert loss(student[:, [2, 0, 1]], teacher[:, [2, 0, 1]], form=form).item() == pytest.approx(expected)
        assert loss(student[[0, 2, 1]], teacher[[0, 2, 1]], form=form).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_vanishing_and_duplicate_vectors_stay_finite(loss):
    student = torch.ones(3, 2, 4).index_fill(1, torch.tensor([1]), 0).requires_grad_()
    value = loss(student, torch.ones(3, 2, 4))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_half_vectors_under_autocast(loss):
    student, teacher = vectors(2, 2, 16, 6), vectors(2, 2, 16, 7)
    exact = loss((student * 100).half().double(), (teacher * 100).half().double(), tau=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss((student * 100).half(), (teacher * 100).half(), tau=0.05)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_wrong_arguments_are_refused(loss):
    z = vectors(1, 2, 4, 0)
    with pytest.raises(ValueError, match='unknown form "soft"'):
        loss(z, z, form="soft")
    with pytest.raises(ValueError, match="same K, B"):
        loss(z, z[:, :1])
    with pytest.raises(ValueError, match="K = 0"):
        loss(z[:1], z[:1])


def test_gather_is_applied_to_both():
    local_s, local_t = vectors(1, 1, 4, 0), vectors(1, 1, 4, 1)
    others = {4: vectors(1, 2, 4, 2), 6: vectors(1, 2, 6, 3)}
    local_t = torch.cat([local_t, local_t[..., :2]], -1)

    def gather(x):
        return torch.cat([x, others[x.shape[-1]]], 1)

    for loss in LOSSES:
        got = loss(local_s, local_t, gather=gather).item()
        assert got == loss(gather(local_s), gather(local_t)).item()


def test_gather_in_one_process_is_the_identity():
    z = vectors(1, 2, 4, 0).requires_grad_()
    assert gather_with_gradient(z) is z


def _rank(rank, file, counts, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=len(counts))
    student, teacher = vectors(1, sum(counts), 4, 0), vectors(1, sum(counts), 6, 1)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    local = student[:, own].clone().requires_grad_()
    loss = inter_graph_loss(local, teacher[:, own], gather=gather_with_gradient)
    loss.backward()
    torch.save((loss.detach(), local.grad), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_with_uneven_batches_equal_one_process(tmp_path):
    counts = [2, 1]
    on_two_ranks(_rank, str(tmp_path / "store"), counts, str(tmp_path))
    student, teacher = vectors(1, 3, 4, 0).requires_grad_(), vectors(1, 3, 6, 1)
    loss = inter_graph_loss(student, teacher)
    loss.backward()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for value, _ in results:
        assert value.item() == pytest.approx(loss.item(), abs=1e-12)
    # DDP averages over ranks, so each rank must hold the sum over both ranks' losses
    gradient = torch.cat([grad for _, grad in results], 1) / len(counts)
    assert torch.allclose(gradient, student.grad, atol=1e-12)
