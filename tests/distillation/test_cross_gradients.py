"""DICD: values rebuilt by hand, and which weights each of its two paths reaches, in 2-D and 3-D, at batch 1 and 2."""

import pytest
import torch
from distilling import SIZE, of_decoder, of_encoder, run, setup, touched

from nnunet_kd.losses import logit_kd
from nnunet_kd.networks.stages import StageTap, decode, swap

DIMS_AND_BATCH = [(2, 1), (2, 2), (3, 1), (3, 2)]
VIEWS = ["same", "cross"]


def cross(dims=2, batch=2, views="same", share=1.0, stages=("bottleneck",), every=None, **options):
    term = {"weight": 1.0, "views": views, "share": share, "every": every}
    section = {"msan": {"stages": list(stages)}, "terms": {"cross": term}}
    return setup("cross", dims, batch=batch, **section, **options)


def features_of(network, x):
    tap = StageTap(network, decoder=True)
    tap.enabled = True
    network(x)
    tap.remove()
    return tap.take()


@torch.no_grad()
def by_hand(distiller, student, step, mask=None, regions=False):
    """Both cross losses from the images alone, sample by sample: no batched forward, no kept feature."""
    settings, alignment, batch = distiller.config.terms.cross, distiller.alignment, step.batch
    teacher = distiller.teacher.network
    found = {"cross_ts": [], "cross_st": []}
    rows = step.order[: max(1, round(settings.share * batch))].tolist()
    weights = []
    for view in range(1, step.views + 1) if settings.views == "cross" else [0]:
        for b in rows:
            anchor, seen = step.data[b : b + 1], step.data[view * batch + b : view * batch + b + 1]
            t, s = features_of(teacher, anchor), features_of(student, seen)
            z_t, z_s = alignment.encode("teacher", t), alignment.encode("student", s)
            predictions = {
                "cross_ts": decode(student, swap(s, alignment.reconstruct("student", z_t, s))),
                "cross_st": decode(teacher, swap(t, alignment.reconstruct("teacher", z_s, t))),
            }
            own_mask = None if mask is None else mask[b : b + 1]
            weights.append(1.0 if mask is None else float(own_mask.sum()))
            for name, prediction in predictions.items():
                found[name].append(float(logit_kd(prediction, teacher(anchor), regions=regions, mask=own_mask)))
    return {n: sum(v * w for v, w in zip(vs, weights, strict=True)) / sum(weights) for n, vs in found.items()}


@pytest.mark.parametrize(("dims", "batch"), DIMS_AND_BATCH)
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("stages", [["bottleneck"], ["all"], [0, "decoder"]])
def test_values_by_hand(dims, batch, views, stages):
    distiller, student, data, onehot = cross(dims, batch, views, stages=stages)
    step, terms = run(distiller, student, data, onehot)
    expected = by_hand(distiller, student, step)
    for name, (_, value) in terms.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("views", VIEWS)
def test_a_share_reads_the_rows_it_says(views):
    orders = set()
    distiller, student, data, onehot = cross(batch=4, views=views, share=0.5)
    for _ in range(4):
        step, terms = run(distiller, student, data, onehot)
        orders.add(tuple(step.share(0.5).tolist()))
        expected = by_hand(distiller, student, step)
        for name, (_, value) in terms.items():
            assert value.item() == pytest.approx(expected[name], rel=1e-3), name
            # another half of the batch has another value
            step.order = step.order.flip(0)
            assert abs(by_hand(distiller, student, step)[name] / expected[name] - 1) > 1e-3
            step.order = step.order.flip(0)
    assert len(orders) > 1  # not always the same patches: nnU-Net puts forced foreground last
    assert all(len(set(order)) == 2 for order in orders)


def test_a_small_share_reads_one_patch_at_least():
    distiller, student, data, onehot = cross(batch=2, share=0.01)
    assert len(run(distiller, student, data, onehot)[0].share(0.01)) == 1


@pytest.mark.parametrize("views", VIEWS)
def test_every_third_step_counts_three_times(views):
    distiller, student, data, onehot = cross(views=views)
    weights = {n: w for n, (w, _) in run(distiller, student, data, onehot)[1].items()}
    assert set(weights) == {"cross_ts", "cross_st"}
    sparse, *_ = cross(views=views, every=3)
    found = [{n: w for n, (w, _) in run(sparse, student, data, onehot, iteration=i)[1].items()} for i in range(7)]
    assert [bool(terms) for terms in found] == [True, False, False, True, False, False, True]
    assert all(terms[n] == 3 * w for terms in found[::3] for n, w in weights.items())


@pytest.mark.parametrize(("dims", "batch"), DIMS_AND_BATCH)
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("supervision", [False, True])
def test_ts_reaches_the_decoder_and_the_encoder_through_the_skips(dims, batch, views, supervision):
    distiller, student, data, onehot = cross(dims, batch, views, supervision=supervision)
    step, terms = run(distiller, student, data, onehot)
    names = touched(student, terms["cross_ts"][1])
    every = {n for n, p in student.named_parameters()}
    # the bottleneck was replaced; lower heads of deep supervision have no teacher. A bias before an instance norm has
    # no effect.
    expected = {n for n in of_decoder(every) if "seg_layers" not in n or "seg_layers.1" in n}
    biases = {n for n in every if n.endswith("conv.bias")}
    assert expected - biases - names == set()
    assert of_decoder(names) <= expected
    assert {n.split(".")[2] for n in of_encoder(names)} == {"0", "1"}
    # and it is the skips alone: cut, the encoder gets nothing
    step.student_features = [f.detach() for f in step.student_features]
    names = touched(student, distiller.terms(step)["cross_ts"][1])
    assert of_decoder(names) and not of_encoder(names)


@pytest.mark.parametrize(("dims", "batch"), DIMS_AND_BATCH)
@pytest.mark.parametrize("views", VIEWS)
def test_ts_with_all_stages_swapped_does_not_reach_the_encoder(dims, batch, views):
    distiller, student, data, onehot = cross(dims, batch, views, stages=["all"])
    names = touched(student, run(distiller, student, data, onehot)[1]["cross_ts"][1])
    assert of_decoder(names) and not of_encoder(names)


@pytest.mark.parametrize(("dims", "batch"), DIMS_AND_BATCH)
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("stages", [["bottleneck"], ["all"]])
@pytest.mark.parametrize("supervision", [False, True])
def test_st_reaches_the_encoder_through_the_vectors_and_no_decoder(dims, batch, views, stages, supervision):
    distiller, student, data, onehot = cross(dims, batch, views, stages=stages, supervision=supervision)
    step, terms = run(distiller, student, data, onehot)
    names = touched(student, terms["cross_st"][1])
    assert {n.split(".")[2] for n in of_encoder(names)} == {"0", "1", "2"} and not of_decoder(names)
    # stage by stage, the gradient reaches those that have a vector
    step.student_features = [f.detach().requires_grad_() for f in step.student_features]
    value = distiller.terms(step)["cross_st"][1]
    gradients = torch.autograd.grad(value, step.student_features, allow_unused=True)
    reached = {i for i, g in enumerate(gradients) if g is not None and g.abs().max() > 0}
    assert reached == {p.student for p in distiller.alignment.pairs}
    plain = distiller.alignment.encode
    distiller.alignment.encode = lambda *args: [z.detach() for z in plain(*args)]
    assert not distiller.terms(step)["cross_st"][1].requires_grad


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("after_act", ["frozen", "joint"])
@pytest.mark.parametrize("progress", [0.35, 0.9])
def test_no_term_reaches_teacher_or_msans(views, after_act, progress):
    graphs = {"intra": {"weight": 1.0}, "inter": {"weight": 1.0}}
    terms = {**graphs, "kd": {"weight": 1.0}, "cross": {"weight": 1.0, "views": views}}
    msan = {"stages": ["all", "decoder"], "after_act": after_act}
    distiller, student, data, onehot = setup("all", msan=msan, terms=terms)
    _, found = run(distiller, student, data, onehot, progress)
    assert set(found) == {"kd", "intra", "inter", "cross_ts", "cross_st"}
    sum(value for _, value in found.values()).backward()
    others = [*distiller.teacher.parameters(), *distiller.alignment.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in others)
    assert all(p.grad is not None for n, p in student.encoder.named_parameters())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("views", VIEWS)
def test_ignored_pixels_do_not_count(dims, regions, views):
    distiller, student, data, onehot = cross(dims, 2, views, regions=regions)
    mask = torch.rand(2, 1, *[SIZE] * dims) > 0.4
    step, terms = run(distiller, student, data, onehot, mask=mask)
    expected = by_hand(distiller, student, step, mask, regions)
    values = {n: v.item() for n, (_, v) in terms.items()}
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=1e-3), name
    step.teacher_logits = torch.where(mask, step.teacher_logits[:2], 7.0)
    assert {n: v.item() for n, (_, v) in distiller.terms(step).items()} == pytest.approx(values, rel=1e-5)
    step.mask = None
    assert {n: v.item() for n, (_, v) in distiller.terms(step).items()} != pytest.approx(values, rel=1e-2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("views", VIEWS)
def test_regions_take_the_sigmoid_form(dims, regions, views):
    distiller, student, data, onehot = cross(dims, 2, views, regions=regions)
    step, terms = run(distiller, student, data, onehot)
    for name, value in by_hand(distiller, student, step, regions=regions).items():
        assert terms[name][1].item() == pytest.approx(value, rel=1e-3)
    for name, value in by_hand(distiller, student, step, regions=not regions).items():
        assert terms[name][1].item() != pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("off", ["ts", "st"])
def test_one_path_alone(off):
    distiller, student, data, onehot = setup("cross", terms={"cross": {"weight": 2.0, off: 0, "views": "same"}})
    on = {"ts": "cross_st", "st": "cross_ts"}[off]
    terms = run(distiller, student, data, onehot)[1]
    assert set(terms) == {on} and terms[on][0] == 2.0
