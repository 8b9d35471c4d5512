"""Which weights each term changes, at nnU-Net's batch size of 2, in 2-D and 3-D."""

import copy

import pytest
import torch
from distilling import SIZE, run, setup, touched


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("preset", ["paper", "cross-view"])
def test_every_term_is_finite_and_non_zero_at_batch_2_and_trains_the_student_only(preset, dims):
    distiller, student, data, onehot = setup(preset, dims)
    step, terms = run(distiller, student, data, onehot, progress=0.9)
    expected = {"intra", "inter", "cross_ts", "cross_st"} | ({"kd"} if preset == "cross-view" else set())
    assert set(terms) == expected
    for name, (weight, value) in terms.items():
        assert weight > 0 and torch.isfinite(value) and value > 0, name
        assert touched(student, value), name
        assert not any(p.requires_grad for p in distiller.teacher.parameters())
        assert not any(p.requires_grad for p in distiller.alignment.parameters())


def test_ts_trains_the_decoder_and_the_encoder_through_the_skips_only():
    distiller, student, data, onehot = setup("cross")
    _, terms = run(distiller, student, data, onehot, 0.9)
    names = touched(student, terms["cross_ts"][1])
    assert any("decoder.stages" in n for n in names)
    bottleneck = {n for n in names if "encoder.stages.2" in n}
    assert not bottleneck  # the bottleneck's own feature was replaced
    assert {n for n in names if "encoder.stages.0" in n}


def test_st_trains_the_encoder_through_its_vector_and_no_decoder():
    distiller, student, data, onehot = setup("cross")
    _, terms = run(distiller, student, data, onehot, 0.9)
    names = touched(student, terms["cross_st"][1])
    assert any("encoder.stages.2" in n for n in names)
    assert not [n for n in names if n.startswith("decoder.") and not n.startswith("decoder.encoder")]


@pytest.mark.parametrize("name", ["intra", "inter"])
def test_graphs_train_the_encoder_only(name):
    distiller, student, data, onehot = setup(name)
    _, terms = run(distiller, student, data, onehot, 0.9)
    names = touched(student, terms[name][1])
    assert names and not [n for n in names if n.startswith("decoder.") and not n.startswith("decoder.encoder")]


def test_phases_switch_terms_on_in_their_order():
    distiller, student, data, onehot = setup("cross-view")
    assert set(run(distiller, student, data, onehot, 0.0)[1]) == {"kd"}
    assert distiller.phase(0.0) == "warm-up" and distiller.phase(0.2) == "act" and distiller.phase(0.3) == "distil"
    step, terms = run(distiller, student, data, onehot, 0.2)
    assert set(terms) == {"kd"} and step.teacher_features is not None


def test_act_changes_the_msans_and_nothing_else():
    distiller, student, data, onehot = setup("paper")
    before = {k: copy.deepcopy(m.state_dict()) for k, m in (("s", student), ("t", distiller.teacher))}
    msans = copy.deepcopy(distiller.alignment.msans.state_dict())
    step, _ = run(distiller, student, data, onehot, 0.2)
    values = distiller.align(step)
    assert all(torch.equal(v, before["s"][k]) for k, v in student.state_dict().items())
    assert all(torch.equal(v, before["t"][k]) for k, v in distiller.teacher.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    for name, module in distiller.alignment.msans.items():
        changed = {k for k, v in module.state_dict().items() if not torch.equal(v, msans[f"{name}.{k}"])}
        assert changed == set(module.state_dict()), f"{name}: only {changed} changed"
    assert {"act_reconstruction_teacher", "act_consistency_student", "act_decoded_teacher"} <= set(values)
    assert set(values) <= set(distiller.log_keys)


def test_act_lowers_the_reconstruction_error_and_frozen_msans_stay_as_they_are():
    distiller, student, data, onehot = setup("paper", act={"lr": 3e-3})
    first = last = None
    for i in range(60):
        step, _ = run(distiller, student, data, onehot, 0.1 + 0.2 * i / 60)
        last = distiller.align(step)
        first = first or last
    assert last["act_reconstruction_teacher"] < first["act_reconstruction_teacher"]
    frozen = copy.deepcopy(distiller.alignment.state_dict())
    step, _ = run(distiller, student, data, onehot, 0.9)
    assert distiller.align(step) == {}
    assert all(torch.equal(v, frozen[k]) for k, v in distiller.alignment.state_dict().items())


def test_joint_msans_go_on_training():
    distiller, student, data, onehot = setup("cross-view")
    before = copy.deepcopy(distiller.alignment.msans.state_dict())
    step, _ = run(distiller, student, data, onehot, 0.9)
    assert distiller.align(step)
    assert any(not torch.equal(v, before[k]) for k, v in distiller.alignment.msans.state_dict().items())


def test_the_autoencoder_trains_in_the_warm_up_only():
    distiller, student, data, onehot = setup("paper")
    before = copy.deepcopy(distiller.alignment.state_dict())
    step, _ = run(distiller, student, data, onehot, 0.0)
    assert set(distiller.align(step)) == {"act_autoencoder"}
    changed = {k.split(".")[0] for k, v in distiller.alignment.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"autoencoder"}


def test_kd_is_zero_for_a_student_that_predicts_like_its_teacher():
    distiller, _, data, onehot = setup("kd")
    step = distiller.prepare(data, onehot, None, 0.5)
    step.student_logits = step.teacher_logits.clone().requires_grad_()
    assert distiller.terms(step)["kd"][1].abs() < 1e-6


def test_an_ignore_mask_takes_pixels_out_of_every_pixel_term():
    distiller, student, data, onehot = setup("cross-view")
    mask = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    _, terms = run(distiller, student, data, onehot, 0.9, mask)
    assert all(terms[k][1] == 0 for k in ("kd", "cross_ts", "cross_st"))
    assert terms["inter"][1] > 0


def test_regions_use_the_sigmoid_form():
    distiller, student, data, onehot = setup("cross-view", regions=True)
    _, terms = run(distiller, student, data, onehot, 0.9)
    assert all(torch.isfinite(v) and v > 0 for _, v in terms.values())
    assert distiller.align(run(distiller, student, data, onehot, 0.2)[0])


def test_views_leave_the_global_random_numbers_alone():
    distiller, _, data, onehot = setup("cross-view")
    state = torch.get_rng_state()
    distiller.prepare(data, onehot, None, 0.5)
    assert torch.equal(state, torch.get_rng_state())


def test_the_state_restores_msans_optimizers_and_the_views_generator():
    distiller, student, data, onehot = setup("cross-view")
    step, _ = run(distiller, student, data, onehot, 0.2)
    distiller.align(step)
    state = copy.deepcopy(distiller.state_dict())
    other, *_ = setup("cross-view", seed=5)
    other.load_state_dict(state)
    assert torch.equal(other.prepare(data, onehot, None, 0.0).data, distiller.prepare(data, onehot, None, 0.0).data)
    step, _ = run(distiller, student, data, onehot, 0.2)
    other.generator.set_state(distiller.generator.get_state())
    assert distiller.align(copy.copy(step)) == other.align(copy.copy(step))
    a, b = distiller.alignment.state_dict(), other.alignment.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
