"""ACT in the distiller: whose parameters it changes, which part moves which half, the alignment part, shares."""

import copy

import pytest
import torch
import torch.distributions as distributions
from distilling import SIZE, run, setup

from nnunet_kd.losses import reconstruction
from nnunet_kd.networks.stages import decode, swap

ACT_TIME = 0.2
KINDS = [{"kind": "vector"}, {"kind": "spatial", "dim": 64}, {"kind": "map", "dim": 6}]
STAGES = [["bottleneck"], ["all", "decoder"]]
DIMS_AND_BATCH = [(2, 1), (2, 2), (3, 1), (3, 2)]


def gradients_of_act(distiller, step, monkeypatch):
    """One ACT step and the gradient it took at every MSAN parameter, before clipping (None where there was none)."""
    taken = {}

    def keep(parameters, limit):
        del parameters
        for name, parameter in distiller.alignment.msans.named_parameters():
            taken[name] = None if parameter.grad is None else parameter.grad.clone()

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
        values = distiller.align(step)
    return taken, values


def moved(gradients):
    return {n for n, g in gradients.items() if g is not None and g.abs().max() > 0}


@pytest.mark.parametrize(("dims", "batch"), DIMS_AND_BATCH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", STAGES)
def test_act_changes_every_msan_and_leaves_both_networks_and_their_gradients(dims, batch, kind, stages):
    section = {"msan": {**kind, "stages": stages}, "act": {"alignment": 1.0}}
    distiller, student, data, onehot = setup("paper", dims, batch=batch, **section)
    networks = {"student": student, "teacher": distiller.teacher.network}
    step, _ = run(distiller, student, data, onehot, ACT_TIME)
    for p in student.parameters():
        p.grad = torch.full_like(p, 0.25)  # the student's optimizer has yet to read, or has just read, these
    before = {n: copy.deepcopy(m.state_dict()) for n, m in networks.items()}
    autoencoder = copy.deepcopy(distiller.alignment.autoencoder.state_dict())
    msans = copy.deepcopy(distiller.alignment.msans.state_dict())
    values = distiller.align(step)
    for name, network in networks.items():
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items()), name
    assert all(torch.equal(p.grad, torch.full_like(p, 0.25)) for p in student.parameters())
    assert all(p.grad is None for p in [*distiller.teacher.parameters(), *distiller.alignment.parameters()])
    assert all(torch.equal(v, autoencoder[k]) for k, v in distiller.alignment.autoencoder.state_dict().items())
    unchanged = [k for k, v in distiller.alignment.msans.state_dict().items() if torch.equal(v, msans[k])]
    assert not unchanged
    assert not any(p.requires_grad for p in distiller.alignment.parameters())
    assert all(torch.isfinite(torch.tensor(v)) for v in values.values())
    assert set(values) <= set(distiller.log_keys)


PARTS = {
    # which half of an MSAN a part moves: the encoder (vector) or the header too
    "reconstruction": {"encoder", "header"},
    "semantic": {"encoder"},
    "consistency": {"encoder"},
    "decoded": {"encoder", "header"},
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_moves_its_half_of_both_msans(dims, part, kind, monkeypatch):
    weights = dict.fromkeys(PARTS, 0.0) | {part: 1.0}
    distiller, student, data, onehot = setup("paper", dims, msan=kind, act=weights)
    step, _ = run(distiller, student, data, onehot, ACT_TIME)
    gradients, _ = gradients_of_act(distiller, step, monkeypatch)
    names = moved(gradients)
    headers = ("expand", "restore")
    found = {"header" if n.split(".")[1] in headers else "encoder" for n in names}
    assert found == PARTS[part]
    assert {n.split("_")[0] for n in names} == {"teacher", "student"}


@pytest.mark.parametrize(("dims", "batch"), DIMS_AND_BATCH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sees", ["views", "anchor"])
def test_alignment_by_hand_and_for_the_student_alone(dims, batch, kind, sees, monkeypatch):
    found = {}
    for weight in (0.0, 3.0):
        act = {"alignment": weight, "consistency": 0.0 if sees == "anchor" else 1.0}
        section = {"msan": {**kind, "stages": ["all"]}, "act": act}
        distiller, student, data, onehot = setup("cross", dims, batch=batch, **section)
        step, _ = run(distiller, student, data, onehot, ACT_TIME)
        assert len(step.teacher_features[0]) == (batch if sees == "anchor" else 3 * batch)
        alignment = distiller.alignment
        with torch.no_grad():
            teacher = alignment.encode("teacher", [f[:batch] for f in step.teacher_features])
            student_vectors = alignment.encode("student", step.student_features)
            # per stage: squared differences of anchor's and views' vectors from the teacher's anchor, over its variance
            parts = [
                ((z.view(3, batch, -1) - t) ** 2).mean() / t.var(unbiased=False)
                for z, t in zip(student_vectors, teacher, strict=True)
            ]
        gradients, values = gradients_of_act(distiller, step, monkeypatch)
        found[weight] = gradients
        if weight:
            assert values["act_alignment_student"] == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)
            assert "act_alignment_teacher" not in values and "act_alignment_student" in distiller.log_keys
        else:
            assert "act_alignment_student" not in values and "act_alignment_student" not in distiller.log_keys
    changed = {n for n in found[0] if not torch.allclose(found[0][n], found[3][n], rtol=1e-4, atol=1e-7)}
    headers = {n for n in changed if n.split(".")[1] in ("expand", "restore")}
    assert changed and not headers and all(n.startswith("student_") for n in changed)


@pytest.mark.parametrize("regions", [False, True])
def test_decoded_and_agreement_by_hand_where_pixels_count(regions):
    """Regions by a sigmoid each, classes by a softmax; ignored pixels are in the divergence's mean no more."""
    distiller, student, data, onehot = setup("paper", regions=regions)
    mask = torch.rand(2, 1, SIZE, SIZE) > 0.4
    step, _ = run(distiller, student, data, onehot, ACT_TIME, mask)
    alignment, expected = distiller.alignment, {}
    for name, network in (("teacher", distiller.teacher.network), ("student", student)):
        features, logits = getattr(step, f"{name}_features"), getattr(step, f"{name}_logits")[:2]
        with torch.no_grad():
            rebuilt = alignment.reconstruct(name, alignment.encode(name, features), features)
            decoded = decode(network, swap([f[:2] for f in features], {k: v[:2] for k, v in rebuilt.items()}))
            if regions:
                pair = (distributions.Bernoulli(logits=z) for z in (logits, decoded))
                divergence, same = distributions.kl_divergence(*pair).sum(1), (logits > 0) == (decoded > 0)
            else:
                pair = (distributions.Categorical(logits=z.movedim(1, -1)) for z in (logits, decoded))
                divergence, same = distributions.kl_divergence(*pair), logits.argmax(1) == decoded.argmax(1)
        expected[f"act_decoded_{name}"] = divergence[mask[:, 0]].mean().item()
        expected[f"act_agreement_{name}"] = same.float().mean().item()
    values = distiller.align(step)
    assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-3)


def test_alignment_is_zero_for_equal_vectors():
    z = torch.randn(3, 5)
    assert reconstruction(z, z) == 0


def test_alignment_pulls_the_students_vectors_to_the_teachers():
    act = {"alignment": 1.0, "decoded": 0.0, "lr": 2e-2}
    distiller, student, data, onehot = setup("cross", msan={"kind": "map", "dim": 4}, act=act)
    values = []
    for _ in range(40):
        step, _ = run(distiller, student, data, onehot, ACT_TIME)
        values.append(distiller.align(step)["act_alignment_student"])
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize(("dims", "batch"), [(2, 4), (3, 2)])
@pytest.mark.parametrize("sees", ["views", "anchor"])
def test_a_share_of_the_batch_trains_on_the_rows_it_says(dims, batch, sees):
    """Equal to a step on a batch of these rows alone."""
    act = {"share": 0.5, "consistency": 0.0 if sees == "anchor" else 1.0}
    distiller, student, data, onehot = setup("cross", dims, batch=batch, act=act)
    mask = torch.rand(batch, 1, *data.shape[2:]) > 0.3
    step, _ = run(distiller, student, data, onehot, ACT_TIME, mask)
    rows = step.order[: batch // 2]
    whole = copy.deepcopy(distiller.alignment)
    values = distiller.align(step)
    after = copy.deepcopy(distiller.alignment.msans.state_dict())

    other, *_ = setup("cross", dims, batch=batch, act={**act, "share": 1.0})
    other.alignment.load_state_dict(whole.state_dict())
    part = copy.copy(step)
    part.order = torch.arange(batch // 2)
    part.onehot, part.mask = onehot[rows], mask[rows]

    def pick(features):
        views = len(features) // batch
        return features.unflatten(0, (views, batch))[:, rows].flatten(0, 1)

    part.data = pick(step.data)
    assert part.batch == batch // 2
    for name in ("teacher", "student"):
        setattr(part, f"{name}_features", [pick(f) for f in getattr(step, f"{name}_features")])
        setattr(part, f"{name}_logits", pick(getattr(step, f"{name}_logits")))
    other.student, other.teacher = student, distiller.teacher
    assert other.align(part) == pytest.approx(values, rel=1e-5)
    assert all(torch.allclose(v, after[k], atol=1e-6) for k, v in other.alignment.msans.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after_act", ["frozen", "joint"])
def test_frozen_msans_are_bit_identical_after_distilling_and_joint_ones_are_not(kind, after_act):
    section = {"msan": {**kind, "stages": ["bottleneck", "decoder"], "after_act": after_act}, "act": {"alignment": 0.5}}
    distiller, student, data, onehot = setup("paper", **section)
    optimizer = torch.optim.SGD(student.parameters(), 1e-2)
    teacher = distiller.teacher.digest()
    for progress in (0.2, 0.25):
        step, _ = run(distiller, student, data, onehot, progress)
        distiller.align(step)
    kept = copy.deepcopy(distiller.alignment.state_dict())
    before = copy.deepcopy(student.state_dict())
    for progress in (0.3, 0.5, 0.99):
        step, terms = run(distiller, student, data, onehot, progress)
        optimizer.zero_grad()
        sum(weight * value for weight, value in terms.values()).backward()
        optimizer.step()
        distiller.align(step)
    now = distiller.alignment.state_dict()
    msans = {k for k in now if k.startswith("msans.") and torch.equal(now[k], kept[k])}
    assert msans == ({k for k in now if k.startswith("msans.")} if after_act == "frozen" else set())
    assert all(torch.equal(now[k], kept[k]) for k in now if k.startswith("autoencoder."))
    assert distiller.teacher.digest() == teacher
    assert any(not torch.equal(v, before[k]) for k, v in student.state_dict().items())
