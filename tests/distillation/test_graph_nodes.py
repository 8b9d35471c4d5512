"""DCGD's nodes: classes by hand, centring, the teacher's anchor as target, and what is left to learn once ACT converged."""

import pytest
import torch
from distilling import of_decoder, of_encoder, run, setup, touched

from nnunet_kd.losses import class_prototypes, inter_graph_loss, intra_graph_loss

LOSSES = [intra_graph_loss, inter_graph_loss]
FORMS = ["softmax", "squared"]
MAP = {"kind": "map", "dim": 6}


def vectors(views, batch, dim, seed):
    return torch.randn(views + 1, batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def converged(views, batch, dim, seed):
    """Vectors of views that equal their anchor's: own-view cosines are 1, as ACT wants them."""
    return vectors(0, batch, dim, seed).repeat(views + 1, 1, 1)


# class prototypes


def test_prototypes_by_hand():
    # one patch of 2x2, q = 2, an anchor and a view; class 0 holds the left column, class 1 the lower right pixel
    anchor = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 8.0], [2.0, 6.0]]])
    maps = torch.stack([anchor, -10 * anchor])
    onehot = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]])  # upper right: ignored
    assert class_prototypes(maps, onehot).tolist() == [[[2, 1], [4, 6]], [[-20, -10], [-40, -60]]]
    maps[:, :, 0, 1] = 99  # an ignored pixel counts nowhere
    assert class_prototypes(maps, onehot)[0].tolist() == [[2, 1], [4, 6]]


def test_prototypes_weigh_the_grids_nodes_by_the_classs_share():
    # annotation 2x4 over a grid of 1x2: class 1 fills the left node and a quarter of the right one
    onehot = torch.zeros(1, 2, 2, 4)
    onehot[0, 1, :, :2] = onehot[0, 1, 0, 2] = 1
    onehot[0, 0] = 1 - onehot[0, 1]
    maps = torch.tensor([10.0, 20.0]).view(1, 1, 1, 2)
    nodes = class_prototypes(maps, onehot)
    assert nodes.flatten().tolist() == pytest.approx([20, (10 + 20 / 4) / 1.25])


@pytest.mark.parametrize("grid", [(4, 4), (2, 4, 4)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("regions", [False, True])
def test_prototypes_are_means_over_their_class_in_order_without_absent_ones(grid, batch, regions):
    torch.manual_seed(0)
    views, labels = 2, 3
    maps = torch.randn((views + 1) * batch, 5, *grid)
    if regions:
        onehot = (torch.rand(batch, labels, *grid) > 0.5).float()  # overlapping, and some pixels in none
    else:
        onehot = torch.nn.functional.one_hot(torch.randint(3, (batch, *grid)), 3).movedim(-1, 1).float()
    onehot[0, 1] = 0  # absent in the first patch
    expected = [
        [maps[k * batch + b][:, onehot[b, c] > 0].mean(1) for b in range(batch) for c in range(labels) if (b, c) != (0, 1)]
        for k in range(views + 1)
    ]
    nodes = class_prototypes(maps, onehot)
    assert nodes.shape == (views + 1, batch * labels - 1, 5)
    assert torch.allclose(nodes, torch.stack([torch.stack(view) for view in expected]), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("centred", [False, True])
def test_a_batch_without_any_class_gives_zero_not_nan(loss, form, centred):
    # regions: a batch of background; an ignore label: a batch without annotation
    maps = torch.randn(4, 3, 2, 2, requires_grad=True)
    nodes = class_prototypes(maps, torch.zeros(2, 2, 2, 2))
    value = loss(nodes, nodes.detach(), form=form, centred=centred)
    assert value == 0
    value.backward()
    assert maps.grad is None or not maps.grad.any()


# centring


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("views", "batch"), [(1, 3), (2, 3), (2, 4)])
def test_centred_graphs_do_not_see_what_all_vectors_share(loss, form, views, batch):
    student, teacher = vectors(views, batch, 5, 0), vectors(views, batch, 7, 1)
    shifted = student + 50 * vectors(0, 1, 5, 2), teacher + 20 * vectors(0, 1, 7, 3)
    value = loss(student, teacher, form=form, centred=True)
    assert value > 1e-3
    assert loss(*shifted, form=form, centred=True).item() == pytest.approx(value.item(), rel=1e-6)
    # the plain form hardly sees anything else
    assert loss(*shifted, form=form).item() < 0.05 * loss(student, teacher, form=form).item()


@pytest.mark.parametrize("loss", LOSSES)
def test_centred_by_hand(loss):
    # after centring the teacher's lie on one line, -1, 2, -4 and views 3, -5, 5; the student's views on the other axis
    teacher = torch.tensor([[[5.0, 5], [8, 5], [2, 5]], [[9, 5], [1, 5], [11, 5]]])
    student = torch.tensor([[[4.0, 5], [7, 5], [4, 5]], [[5, 6], [5, 2], [5, 7]]])
    # star: student's edges are all 0, teacher's +-1; complete: 12 of 30 edges agree (anchor-anchor, view-view)
    expected = {intra_graph_loss: 1.0, inter_graph_loss: 18 / 30}[loss]
    assert loss(student, teacher, form="squared", centred=True).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck_centred(loss):
    student, teacher = vectors(1, 3, 4, 2).requires_grad_(), vectors(1, 3, 6, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, tau=0.5, centred=True), student)


# after ACT has converged


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("views", [1, 2, 4])
def test_at_batch_2_all_vectors_learn_after_act_has_converged(loss, form, views):
    student, teacher = converged(views, 2, 5, 0).requires_grad_(), converged(views, 2, 8, 1)
    value = loss(student, teacher, form=form)
    value.backward()
    assert value > 1e-3
    assert (student.grad.abs().sum(-1) > 1e-4).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
def test_at_batch_1_nothing_is_left_once_both_have_converged(loss, form):
    # what holds: every edge of either network is 1. Class nodes (below) are the remedy.
    student, teacher = converged(2, 1, 5, 0).requires_grad_(), converged(2, 1, 8, 1)
    value = loss(student, teacher, form=form)
    value.backward()
    assert value.abs() < 1e-12 and student.grad.abs().max() < 1e-6
    # while the student has not, its own views are pulled together
    student = vectors(2, 1, 5, 0).requires_grad_()
    value = loss(student, teacher, form=form)
    value.backward()
    assert value > 1e-3 and student.grad.abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_centred_graphs_of_three_nodes_learn_after_act_has_converged(loss, form, batch):
    # class nodes: three classes at batch 1, two classes at batch 2 and more
    nodes = 3 if batch == 1 else 4
    student, teacher = converged(2, nodes, 5, 0).requires_grad_(), converged(2, nodes, 8, 1)
    # at tau 0.1 the own views' edges of 1 outweigh three nodes' others, which lie near -0.5, by e^15
    value = loss(student, teacher, tau=0.5, form=form, centred=True)
    value.backward()
    assert value > 1e-3 and student.grad.abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("views", "batch"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_below_three_nodes_per_view_nothing_is_centred(loss, form, views, batch):
    # two centred vectors were opposite whatever they are (batch 2 of patches; batch 1 with two classes)
    student, teacher = vectors(views, batch, 5, 0), vectors(views, batch, 8, 1)
    assert loss(student, teacher, form=form, centred=True) == loss(student, teacher, form=form) > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["intra", "inter"])
@pytest.mark.parametrize(("nodes", "batch"), [("patch", 2), ("class", 1), ("class", 2)])
@pytest.mark.parametrize("target", ["view", "anchor"])
def test_the_encoder_learns_after_act_has_converged(name, dims, nodes, batch, target):
    term = {"weight": 1.0, "nodes": nodes, "target": target}
    kind = MAP if nodes == "class" else {"kind": "vector"}
    distiller, student, data, onehot = setup(name, dims, batch=batch, msan=kind, terms={name: term})
    # views that equal the anchor give the vectors of converged MSANs exactly
    distiller.views = lambda anchor, generator: anchor.clone()
    step, terms = run(distiller, student, data, onehot)
    assert torch.equal(step.student_features[-1][:batch], step.student_features[-1][batch : 2 * batch])
    names = touched(student, terms[name][1])
    assert terms[name][1] > 1e-6
    assert of_encoder(names) and not of_decoder(names)


def test_patch_nodes_at_batch_1_leave_nothing_to_the_encoder_after_act_has_converged():
    distiller, student, data, onehot = setup("intra+inter", batch=1)
    distiller.views = lambda anchor, generator: anchor.clone()
    _, terms = run(distiller, student, data, onehot)
    assert all(value.abs() < 1e-6 for _, value in terms.values())


# in the distiller


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("nodes", ["patch", "class"])
@pytest.mark.parametrize("target", ["view", "anchor"])
def test_the_distillers_graphs_by_hand(dims, batch, nodes, target):
    both = {g: {"nodes": nodes, "target": target, "tau": 0.3} for g in ("intra", "inter")}
    distiller, student, data, onehot = setup("intra+inter", dims, batch=batch, msan={**MAP, "stages": [1, 2]}, terms=both)
    step, terms = run(distiller, student, data, onehot)
    views = 3
    values = {"intra": [], "inter": []}
    for pair in distiller.alignment.pairs:
        z = {}
        for network in ("teacher", "student"):
            msan, features = distiller.alignment.msans[f"{network}_{pair.name}"], getattr(step, f"{network}_features")
            maps = msan.project(features[getattr(pair, network)])
            if network == "teacher" and target == "anchor":
                assert len(maps) == batch  # the teacher has not seen the views
                maps = maps.repeat(views, *[1] * (dims + 1))
            if nodes == "class":
                z[network] = class_prototypes(maps, onehot)
            else:
                z[network] = maps.flatten(2).mean(2).view(views, batch, -1)
        values["intra"].append(intra_graph_loss(z["student"], z["teacher"], 0.3))
        values["inter"].append(inter_graph_loss(z["student"], z["teacher"], 0.3))
    for name, (_, value) in terms.items():
        assert value.item() == pytest.approx(torch.stack(values[name]).mean().item(), rel=1e-4, abs=1e-7), name


def test_settings_of_a_graph_reach_its_loss():
    def value(**settings):
        distiller, student, data, onehot = setup("inter", batch=3, msan=MAP, terms={"inter": {"weight": 1.0, **settings}})
        return run(distiller, student, data, onehot)[1]["inter"][1].item()

    plain = value()
    assert value(tau=0.1) == plain
    changes = ({"tau": 1.0}, {"form": "squared"}, {"centred": True}, {"target": "anchor"}, {"nodes": "class"})
    found = [plain, *(value(**c) for c in changes)]
    assert len({round(v, 7) for v in found}) == len(found), found
