"""A teacher's prediction without its classes' frequencies, and KD that reads the views while nnU-Net's loss does not."""

import math

import pytest
import torch
from distilling import run, setup, touched
from small_runs import known_trainers, make, one_step, student

from nnunet_kd.losses import balanced_logits, class_frequencies, cross_prediction_loss, logit_kd

SHAPES = [(2, 3, 5, 4), (1, 3, 5, 4), (2, 3, 3, 4, 2)]


def logits_of(shape, seed=0, rare=3.0):
    """Logits of a teacher that hardly sees the last class."""
    logits = 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[:, -1] -= rare
    return logits


def mean(probabilities):
    return probabilities.transpose(0, 1).flatten(1).mean(1)


def balanced(logits, balance, regions=False, mask=None):
    """With the frequencies of the very logits."""
    return balanced_logits(logits, class_frequencies(logits, regions, mask), balance, regions)


# balanced_logits


def test_softmax_by_hand():
    # two pixels, p = (.9, .1) and (.7, .3): the prior is (.8, .2)
    p = torch.tensor([[0.9, 0.7], [0.1, 0.3]], dtype=torch.float64).view(1, 2, 1, 2)
    full = balanced(p.log(), 1.0).softmax(1)[0, 1].flatten()
    assert full.tolist() == pytest.approx([(0.1 / 0.2) / (0.1 / 0.2 + 0.9 / 0.8), (0.3 / 0.2) / (0.3 / 0.2 + 0.7 / 0.8)])
    half = balanced(p.log(), 0.5)
    assert (half - p.log())[0, :, 0, 1].tolist() == pytest.approx([-0.5 * math.log(0.8), -0.5 * math.log(0.2)])


def test_regions_by_hand():
    # one region, p = .1 and .3: a prior of odds 1 to 4 is taken out
    logits = torch.tensor([0.1, 0.3], dtype=torch.float64).logit().view(1, 1, 1, 2)
    p = balanced(logits, 1.0, regions=True).sigmoid().flatten()
    assert p.tolist() == pytest.approx([4 / 9 / (4 / 9 + 1), 12 / 7 / (12 / 7 + 1)])


def test_the_regions_do_not_mix():
    logits = logits_of((2, 3, 5, 4))
    other = logits.clone()
    other[:, 0] += 2
    a, b = (balanced(x, 1.0, regions=True) for x in (logits, other))
    assert torch.equal(a[:, 1:], b[:, 1:]) and not torch.equal(a[:, 0], b[:, 0])


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_channel_moves_by_one_number_that_grows_with_balance(shape, regions):
    logits = logits_of(shape)
    assert torch.equal(balanced(logits, 0.0, regions), logits)
    prior = mean(logits.sigmoid() if regions else logits.softmax(1))
    moves = prior.logit() if regions else prior.log()
    for balance in (0.5, 1.0):
        moved = (logits - balanced(logits, balance, regions)).transpose(0, 1).flatten(1)
        assert torch.allclose(moved, balance * moves[:, None].expand_as(moved))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_balance_1_the_prior_is_uniform(shape, regions):
    # where every pixel looks alike, the prediction is the prior and nothing else
    logits = torch.linspace(1, -2, 3, dtype=torch.float64).view(1, 3, *[1] * (len(shape) - 2)).expand(shape)
    p = balanced(logits, 1.0, regions)
    p = p.sigmoid() if regions else p.softmax(1)
    assert torch.allclose(p, torch.full_like(p, 0.5 if regions else 1 / shape[1]))
    # softmax: p / prior, divided by its sum over the classes
    varied = logits_of(shape)
    p = varied.sigmoid() if regions else varied.softmax(1)
    prior = mean(p).view(1, -1, *[1] * (len(shape) - 2))
    if regions:
        odds = p / (1 - p) / (prior / (1 - prior))
        assert torch.allclose(balanced(varied, 1.0, True).sigmoid(), odds / (1 + odds))
    else:
        assert torch.allclose(balanced(varied, 1.0).softmax(1), p / prior / (p / prior).sum(1, keepdim=True))
    # the rare class gains
    gained = balanced(varied, 1.0, regions)
    assert mean(gained.sigmoid() if regions else gained.softmax(1))[-1] > 1.5 * mean(p)[-1]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_ignored_pixels_do_not_count(shape, dtype, regions):
    logits = logits_of(shape)
    mask = torch.zeros(shape[0], 1, *shape[2:], dtype=dtype)
    mask[:, :, 1:] = 1
    expected = balanced(logits[:, :, 1:], 1.0, regions)
    got = balanced(logits, 1.0, regions, mask)
    assert torch.allclose(got[:, :, 1:], expected)
    assert not torch.allclose(balanced(logits, 1.0, regions)[:, :, 1:], expected)
    logits[:, :, 0] = 50 * logits[:, :, 0].flip(1)
    assert torch.allclose(balanced(logits, 1.0, regions, mask)[:, :, 1:], expected)
    everything = balanced(logits, 1.0, regions, torch.ones_like(mask))
    assert torch.allclose(everything, balanced(logits, 1.0, regions))


@pytest.mark.parametrize("regions", [False, True])
def test_nothing_valid_is_finite(regions):
    logits, mask = logits_of((2, 3, 5, 4)), torch.zeros(2, 1, 5, 4, dtype=torch.bool)
    target = balanced(logits, 1.0, regions, mask)
    assert target.isfinite().all()
    assert logit_kd(logits_of((2, 3, 5, 4), 1), target, regions=regions, mask=mask) == 0


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_an_absent_class_and_huge_logits_stay_finite(regions, balance):
    sharp = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]).view(2, 2, 1, 1)
    absent = torch.full((2, 2, 4, 4), -1e4)
    absent[:, 0] = 1e4
    for logits in (sharp, absent):
        target = balanced(logits, balance, regions)
        assert target.isfinite().all()
        assert torch.equal(target > 0, logits > 0)  # an absent class is not made up
        assert logit_kd(torch.zeros_like(logits), target, regions=regions).isfinite()
    # the prior stops at 1e-4
    assert (absent - balanced(absent, balance, regions)).abs().max() <= balance * -math.log(1e-4) + 0.01


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_logits_under_autocast_are_computed_in_float32(half, regions):
    # more pixels than float16 can count (65504): a mean in half precision would overflow
    logits = logits_of((1, 2, 300, 300)).to(half)
    mask = torch.ones(1, 1, 300, 300, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = [balanced(logits, 1.0, regions), balanced(logits, 1.0, regions, mask)]
    for values in got:
        assert values.dtype == torch.float32
        assert torch.allclose(values.double(), balanced(logits.double(), 1.0, regions), atol=1e-4)


# in the distiller

KD = {"kd": {"weight": 1.0, "balance": 1.0}}


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("target", ["view", "anchor"])
def test_the_distillers_balanced_kd_by_hand(regions, masked, target):
    distiller, network, data, onehot = setup("kd+views", regions=regions, terms={"kd": {"balance": 0.7, "target": target}})
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[:, :, :5] = False
    mask = mask if masked else None
    distiller.teacher.network.decoder.seg_layers[-1].bias.data[1] -= 2  # a rare class
    step, terms = run(distiller, network, data, onehot, mask=mask)
    with torch.no_grad():
        teacher = distiller.teacher(step.data if target == "view" else data.repeat(step.views + 1, 1, 1, 1))
    assert teacher.softmax(1)[:, 1].mean() < 0.2
    # the frequencies of the first batch are its anchors'
    target_logits = balanced_logits(teacher, class_frequencies(teacher[: step.batch], regions, mask), 0.7, regions)
    mask = None if mask is None else mask.repeat(step.views + 1, 1, 1, 1)
    expected = logit_kd(step.student_logits, target_logits, 1.0, regions, mask)
    assert terms["kd"][1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != pytest.approx(logit_kd(step.student_logits, teacher, 1.0, regions, mask).item(), rel=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_balance_reaches_the_cross_predictions(masked):
    # what DICD compares is tested elsewhere: here, that the teacher's side is the balanced one
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[:, :, :5] = False
    mask = mask if masked else None
    crossed = 2 * torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    distiller, network, data, onehot = setup("cross", terms={"cross": {"balance": 0.7}})
    step, terms = run(distiller, network, data, onehot, mask=mask)
    rows = torch.tensor([0, 1])
    expected = cross_prediction_loss(crossed, balanced(step.teacher_logits[rows], 0.7, False, mask), False, mask)
    assert distiller.msan_terms._against_teacher(distiller.config.terms.cross, step, crossed, rows).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    plain, network, data, onehot = setup("cross")
    without = run(plain, network, data, onehot, mask=mask)[1]
    for name in ("cross_ts", "cross_st"):
        assert terms[name][1].item() != pytest.approx(without[name][1].item(), rel=1e-3)


def test_frequencies_are_a_running_mean_that_a_batch_without_the_class_hardly_moves():
    distiller, network, data, onehot = setup("kd+views", terms={"kd": {"balance": 1.0}})
    step, _ = run(distiller, network, data, onehot)
    first = class_frequencies(step.teacher_logits[: step.batch])
    assert torch.allclose(distiller.frequencies, first)
    distiller.teacher.network.decoder.seg_layers[-1].bias.data[1] -= 20  # the teacher sees nothing of the class now
    run(distiller, network, data, onehot)
    assert torch.allclose(distiller.frequencies[1], 0.95 * first[1], rtol=1e-3)
    other = setup("kd+views", terms={"kd": {"balance": 1.0}})[0]
    other.load_state_dict(distiller.state_dict())
    assert torch.equal(other.frequencies, distiller.frequencies)


def test_the_gradient_of_balanced_kd_reaches_the_student_only():
    distiller, network, data, onehot = setup("kd+views", terms=KD)
    for parameter in distiller.teacher.parameters():
        parameter.requires_grad_(True)
    _, terms = run(distiller, network, data, onehot)
    assert {n.split(".")[0] for n in touched(network, terms["kd"][1])} == {"encoder", "decoder"}
    terms["kd"][1].backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())


# student_loss "anchor"


@pytest.mark.parametrize("target", ["view", "anchor"])
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_with_student_loss_anchor_kd_reads_the_views_and_nnunets_loss_does_not(tiny_teacher, monkeypatch, target, balance):
    known_trainers(monkeypatch)
    count = 2
    section = {
        "views": {"preset": "light", "count": count, "student_loss": "anchor"},
        "terms": {"kd": {"target": target, "balance": balance}},
        "ramp": 0,
    }
    trainer = make("nnUNetTrainerDistillation", student(tiny_teacher, "KDanchor", preset="kd+views", **section))
    trainer.on_train_start()
    seen, steps = {}, []
    total, terms = trainer._distillation_loss, trainer.distiller.terms

    def watched(plain, output, target):
        return total(lambda o, t: seen.update(output=o, target=t) or plain(o, t), output, target)

    trainer._distillation_loss = watched
    trainer.distiller.terms = lambda step: steps.append(step) or terms(step)
    values = one_step(trainer, 5)
    step, batch = steps[0], trainer.batch_size
    assert {len(t) for t in seen["output"]} == {len(t) for t in seen["target"]} == {batch}
    assert torch.equal(seen["output"][0], step.student_logits[:batch])
    rows = (count + 1) * batch
    assert len(step.student_logits) == len(step.data) == rows
    assert not torch.equal(step.data[:batch], step.data[batch : 2 * batch])
    with torch.no_grad():
        teacher = trainer.teacher(step.data if target == "view" else step.data[:batch].repeat(count + 1, 1, 1, 1))
        teacher = balanced_logits(teacher, class_frequencies(teacher[:batch]), balance)
        log_s, log_t = step.student_logits.log_softmax(1), teacher.log_softmax(1)
        expected = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    assert values["kd"] == pytest.approx(expected.item(), rel=1e-5)
    assert values["loss"] == pytest.approx(values["seg_loss"] + values["kd"], rel=1e-5)
