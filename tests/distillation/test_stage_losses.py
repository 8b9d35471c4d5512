"""Losses between stages inside a distilling step: which stages, whose gradients, which rows."""

import math
import os

import pytest
import torch
import torch.distributed as dist
from distilling import of_decoder, of_encoder, run, setup, touched
from helpers import network
from ranks import on_two_ranks

from nnunet_kd.config.stage_losses import read_losses
from nnunet_kd.distillation.stage_losses import SectionLosses
from nnunet_kd.losses.registry import LOSSES
from nnunet_kd.networks.stages import StageTable, stage_table
from nnunet_kd.networks.teacher import FrozenTeacher, TeacherEnsemble
from nnunet_kd.utils.errors import KDError

VIEWS = {"preset": "light", "count": 1, "student_loss": "anchor"}
RIVALS = ["at", "fitnets", "fsp", "skd", "ifvd", "cwd", "dist", "dml", "emkd", "cirkd"]


def build(section, teacher=(8, 16, 16), student=(4, 4, 8), **options):
    tables = {"teacher": stage_table(network(2, teacher, **options)), "student": stage_table(network(2, student))}
    return SectionLosses(read_losses(section), tables, 2, 2, False)


@pytest.mark.parametrize(
    ("place", "name", "stages"),
    [
        ("bottleneck", "at", [((2,), (2,))]),
        ("encoder1", "at", [((1,), (1,))]),
        ("decoder0", "at", [((3,), (3,))]),
        ("all", "at", [((0,), (0,)), ((1,), (1,)), ((2,), (2,))]),
        ("decoder", "at", [((3,), (3,)), ((4,), (4,))]),
        ("encoder2:encoder1", "at", [((2,), (1,))]),
        ("decoder1:bottleneck", "at", [((4,), (2,))]),
        ("encoder0+bottleneck", "fsp", [((0, 2), (0, 2))]),
        ("all", "fsp", [((0, 1), (0, 1)), ((1, 2), (1, 2))]),
        ("encoder0+encoder1:encoder1+encoder2", "fsp", [((0, 1), (1, 2))]),
    ],
)
def test_places(place, name, stages):
    assert build({place: {name: {}}}).stages == stages


def test_stages_are_paired_by_stride_when_the_networks_differ_in_depth():
    deep = build({"bottleneck": {"at": {}}}, teacher=(8, 8, 8, 8), student=(4, 4, 4))
    assert deep.stages == [((2,), (2,))]
    coarse = build({"encoder1": {"at": {}}}, teacher=(8, 8), student=(4, 4, 4), strides=[1, 2])
    assert coarse.stages == [((1,), (1,))]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"encoder7": {"at": {}}}, '"nnunet_kd.losses.encoder7".*no teacher stage'),
        ({"encoder7:encoder0": {"at": {}}}, "encoder0 to encoder2, no encoder7"),
        ({"encoder0:decoder2": {"at": {}}}, "decoder0 to decoder1, no decoder2"),
    ],
)
def test_stages_that_do_not_exist(section, message):
    with pytest.raises(KDError, match=message):
        build(section)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("preset", RIVALS)
def test_every_rival_trains_the_student_at_batch_two_and_one_and_nothing_else(preset, dims):
    for batch in (2, 1):
        distiller, student, data, onehot = setup(preset, dims, batch=batch)
        step, terms = run(distiller, student, data, onehot)
        own = {k: v for k, v in terms.items() if "@" in k}
        assert own and set(distiller.log_keys) >= set(terms)
        for name, (weight, value) in own.items():
            assert weight > 0 and torch.isfinite(value), name
            if not (batch == 1 and name.startswith("cirkd@")):  # one sample has no cross-image relation to itself
                assert value > 0, name
        for p in [*student.parameters(), *distiller.learned]:
            p.grad = None
        sum(weight * value for weight, value in own.values()).backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
        assert all(p.grad is None for p in distiller.teacher.parameters())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.learned)
        assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_losses_on_encoder_stages_leave_the_decoder_alone():
    distiller, student, data, onehot = setup("at")
    _, terms = run(distiller, student, data, onehot)
    names = touched(student, terms["at@bottleneck"][1])
    assert of_encoder(names) and not of_decoder(names)


def test_the_ramp_starts_the_weights_at_zero():
    distiller, student, data, onehot = setup("cwd")
    object.__setattr__(distiller.config, "ramp", 0.5)
    _, early = run(distiller, student, data, onehot, progress=0.25)
    assert early["cwd-logits@logits"][0] == pytest.approx(0.5 * LOSSES["cwd-logits"].weight)


def test_until_takes_the_weight_back_to_zero():
    losses = {"logits": {"dml": {"weight": 2.0, "until": 0.8}, "cwd-logits": {"weight": 3.0}}}
    distiller, student, data, onehot = setup("kd", losses=losses, terms={"kd": None})
    weights = []
    for progress in (0.0, 0.2, 0.6, 0.8, 0.9):
        _, terms = run(distiller, student, data, onehot, progress=progress)
        assert terms["dml@logits"][1] > 0 and terms["cwd-logits@logits"][0] == 3.0
        weights.append(terms["dml@logits"][0])
    assert weights == pytest.approx([2.0, 1.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("target", ["anchor", "view"])
def test_who_the_teacher_sees(target):
    losses = {"logits": {"dist": {"target": target}}, "bottleneck": {"at": {"target": target}}}
    distiller, student, data, onehot = setup("kd", views=VIEWS, losses=losses, terms={"kd": None})
    step, terms = run(distiller, student, data, onehot)
    rows = len(data) * (2 if target == "view" else 1)
    assert len(step.teacher_logits) == len(step.teacher_features[0]) == rows
    at = LOSSES["at"]()
    features = step.teacher_features[2]
    expected = at(step.student_features[2], features if target == "view" else features.repeat(2, 1, 1, 1))
    assert terms["at@bottleneck"][1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_features_of_both_targets_in_one_run():
    losses = {"bottleneck": {"at": {"target": "anchor"}}, "decoder0": {"at": {"target": "view"}}}
    distiller, student, data, onehot = setup("kd", views=VIEWS, losses=losses, terms={"kd": None})
    step, terms = run(distiller, student, data, onehot)
    at = LOSSES["at"]()
    expected = at(step.student_features[2], step.teacher_features[2][:2].repeat(2, 1, 1, 1))
    assert terms["at@bottleneck"][1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["at@decoder0"][1].item() == pytest.approx(
        at(step.student_features[3], step.teacher_features[3]).item(), rel=1e-5
    )


def test_losses_join_msan_terms_without_changing_them():
    alone, student, data, onehot = setup("default")
    both, student2, _, _ = setup("default", losses={"bottleneck": {"at": {"target": "anchor"}}, "logits": {"dist": {}}})
    _, before = run(alone, student, data, onehot)
    _, after = run(both, student2, data, onehot)
    assert set(after) - set(before) == {"at@bottleneck", "dist@logits"}
    for name in before:
        assert after[name][1].item() == pytest.approx(before[name][1].item(), rel=1e-5), name


def test_a_stage_of_another_stride_is_resized():
    distiller, student, data, onehot = setup("kd", losses={"encoder1:encoder0": {"at": {}}}, terms={"kd": None})
    _, terms = run(distiller, student, data, onehot)
    assert terms["at@encoder1:encoder0"][1] > 0


def test_adapters_and_queue_survive_a_checkpoint():
    section = {"bottleneck": {"fitnets": {}}, "decoder0": {"cirkd-memory": {}}}
    first, student, data, onehot = setup("kd", losses=section)
    run(first, student, data, onehot)
    second, _, _, _ = setup("kd", losses=section)
    state = first.state_dict()
    assert any(
        not torch.equal(a, b) for a, b in zip(state["losses"].values(), second.state_dict()["losses"].values(), strict=True)
    )
    second.load_state_dict(state)
    assert all(torch.equal(a, second.state_dict()["losses"][k]) for k, a in state["losses"].items())


@pytest.mark.parametrize("regions", [False, True])
def test_an_ensemble_predicts_the_mean_probability(regions):
    torch.manual_seed(1)
    networks = [network(2), network(2)]
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        ensemble = TeacherEnsemble(networks, regions)
        probability = (lambda z: z.sigmoid()) if regions else (lambda z: z.softmax(1))
        expected = torch.stack([probability(n(x)) for n in networks]).mean(0)
        assert torch.allclose(probability(ensemble(x)), expected, atol=1e-6)
        assert torch.allclose(probability(FrozenTeacher(networks[0])(x)), probability(networks[0](x)))
    assert not any(p.requires_grad for p in ensemble.parameters())
    assert math.isfinite(float(ensemble(1e4 * x).sum()))


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    table = StageTable("PlainConvUNet", (4, 8), ((1, 1), (2, 2)))
    losses = SectionLosses(read_losses({"encoder0": {"fitnets": {}}}), {"teacher": table, "student": table}, 2, 2, False)
    wrapped = torch.nn.parallel.DistributedDataParallel(losses)
    features = [torch.full((1, 4, 4, 4), float(rank + 1)), torch.zeros(1, 8, 2, 2)]
    logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    values = wrapped(features, [f + 1 for f in features], logits, logits, labels, 1)
    values["fitnets@encoder0"].backward()
    torch.save([p.grad for p in losses.parameters()], f"{folder}/{rank}.pt")
    dist.barrier()
    # torch's reducer can wait for ever for gloo's thread when Python takes it down after the process group
    os._exit(0)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_ranks_average_the_gradient_of_adapters(tmp_path):
    on_two_ranks(_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first and all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(first, second, strict=True))
