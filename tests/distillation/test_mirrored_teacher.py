"""The teacher that reads patches mirrored at random: what it says lies as the patch does, its mean is nnU-Net's own."""

import pytest
import torch
from distilling import run, setup, touched
from helpers import network, plans
from small_runs import continues_to_the_same, known_trainers, make, same, student, weights

from nnunet_kd.augmentation.mirroring import draw_rows, mirror_rows, mirrorings_of
from nnunet_kd.config.run import read_config
from nnunet_kd.losses import logit_kd
from nnunet_kd.networks.stages import encode
from nnunet_kd.networks.teacher import FrozenTeacher
from nnunet_kd.utils.errors import KDError

ON = {"mirrored_teacher": True}


def test_rows_are_mirrored_as_drawn_by_hand():
    x = torch.arange(8.0).view(2, 1, 2, 2)
    drawn = torch.tensor([[True, False], [True, True]])  # row 0 along both axes, row 1 along the last
    assert mirror_rows(x, (0, 1), drawn).flatten().tolist() == [3, 2, 1, 0, 5, 4, 7, 6]
    assert mirror_rows(x, (1,), drawn[:1]).flatten().tolist() == [1, 0, 3, 2, 4, 5, 6, 7]
    assert mirror_rows(x[:1], (0, 1), drawn).flatten().tolist() == [3, 2, 1, 0]  # fewer rows than were drawn
    assert mirror_rows(x, (), drawn[:0]) is x


@pytest.mark.parametrize("dims", [2, 3])
def test_mirrored_twice_all_is_as_it_was(dims):
    x, drawn = torch.randn(5, 3, *[4, 6, 5][:dims]), draw_rows(range(dims), 5, torch.Generator().manual_seed(0))
    assert drawn.shape == (dims, 5)
    once = mirror_rows(x, range(dims), drawn)
    assert not torch.equal(once, x) and torch.equal(mirror_rows(once, range(dims), drawn), x)


def test_every_mirroring_is_drawn_equally_often():
    drawn = draw_rows((0, 1), 4000, torch.Generator().manual_seed(0)).long()
    counts = torch.bincount(drawn[0] * 2 + drawn[1], minlength=4)
    assert counts.min() > 900


# in the distiller


def _said(distiller, data, axes):
    return distiller.teacher(data.flip(axes)).flip(axes)


@pytest.mark.parametrize(("dims", "batch"), [(2, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("preset", ["kd", "kd+views", "default"])  # default: through encoder and decoder, for the probe
def test_each_row_is_one_of_the_mirrored_predictions(preset, dims, batch):
    section = {} if preset == "default" else {"terms": {"kd": {"weight": 1.0}}}
    distiller, _, data, onehot = setup(preset, dims=dims, batch=batch, **section, **ON)
    ways = [(), *mirrorings_of(range(dims))]
    with torch.no_grad():
        possible = torch.stack([_said(distiller, data, axes) for axes in ways])
    found = set()
    for iteration in range(30):
        said = distiller.prepare(data, onehot, None, 0.9, iteration=iteration).teacher_logits[:batch]
        for row in range(batch):
            fits = [i for i in range(len(ways)) if torch.allclose(possible[i, row], said[row], atol=1e-5)]
            assert len(fits) == 1
            found.add((row, fits[0]))
    assert len({way for _, way in found}) == len(ways)


def test_their_mean_is_the_mirrored_mean():
    distiller, _, data, onehot = setup("kd", **ON)
    with torch.no_grad():
        mean = torch.stack([_said(distiller, data, axes) for axes in [(), *mirrorings_of((0, 1))]]).mean(0)
        plain = distiller.teacher(data)
    drawn = torch.stack([distiller.prepare(data, None, None, 0.9, iteration=i).teacher_logits for i in range(400)]).mean(0)
    assert (drawn - mean).abs().mean() < 0.15 * (plain - mean).abs().mean()


def test_features_lie_as_the_patch_does():
    distiller, _, data, onehot = setup("default", **ON)
    with torch.no_grad():
        ways = [
            [stage.flip(axes) for stage in encode(distiller.teacher.network, data.flip(axes))]
            for axes in [(), *mirrorings_of((0, 1))]
        ]
    found = set()
    for iteration in range(30):
        step = distiller.prepare(data, onehot, None, 0.9, iteration=iteration)
        pairs = [list(zip(step.teacher_features, way, strict=True)) for way in ways]
        fits = [i for i, way in enumerate(pairs) if all(torch.allclose(a[0], b[0], atol=1e-5) for a, b in way)]
        assert len(fits) == 1
        found.add(fits[0])
    assert found == {0, 1, 2, 3}


def test_losses_read_what_lies_as_the_student_does():
    distiller, net, data, onehot = setup("kd+views", **ON)
    step, found = run(distiller, net, data, onehot, iteration=1)
    expected = logit_kd(step.student_logits, step.teacher_logits.repeat(2, 1, 1, 1), 1.0, False)
    assert found["kd"][1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert {n.split(".")[0] for n in touched(net, found["kd"][1])} == {"encoder", "decoder"}
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())


def test_views_and_order_stay_those_of_the_controls():
    mirrored, _, data, onehot = setup("kd+views", **ON)
    plain, *_ = setup("kd+views")
    for iteration in range(3):
        a, b = (d.prepare(data, onehot, None, 0.9, iteration=iteration) for d in (mirrored, plain))
        assert torch.equal(a.data, b.data) and torch.equal(a.order, b.order)
    assert torch.equal(mirrored.generator.get_state(), plain.generator.get_state())


def test_a_seed_and_a_step_have_their_own_draw(monkeypatch):
    def draws(seed=0, rank=0):
        monkeypatch.setattr("nnunet_kd.utils.distributed.rank", lambda: rank)
        distiller, _, data, onehot = setup("kd", batch=4, seed=seed, **ON)
        return [distiller.prepare(data, onehot, None, 0.9, iteration=i).teacher_logits for i in range(6)]

    first = draws()
    assert all(torch.equal(a, b) for a, b in zip(first, draws(), strict=True))
    assert len({tuple(logits.flatten().tolist()) for logits in first}) > 3
    for other in (draws(seed=1), draws(rank=1)):
        assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_one_forward_a_step():
    distiller, net, data, onehot = setup("kd+views", **ON)
    read = []
    distiller.teacher.network.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    run(distiller, net, data, onehot)
    assert read == [2]


def test_a_teacher_trained_without_mirroring_reads_the_patches_as_they_are():
    distiller, _, data, onehot = setup("kd", **ON)
    distiller.attach(FrozenTeacher(distiller.teacher.network))
    with torch.no_grad():
        plain = distiller.teacher(data)
    for iteration in range(8):
        assert torch.equal(distiller.prepare(data, onehot, None, 0.9, iteration=iteration).teacher_logits, plain)


# settings


@pytest.mark.parametrize(
    ("preset", "section", "message"),
    [
        ("paper", {}, '"terms.cross" decodes the teacher\'s features.*"terms.cross" to null or "mirrored_teacher" to false'),
        ("cross-view", {"terms": {"cross": None}}, '"act.decoded" decodes.*set "act.decoded" to 0'),
        ("kd", {"msan": {}}, '"act.decoded" decodes'),
        (
            "kd+views",
            {"terms": {"kd": {"mirrorings": 1}}},
            '"terms.kd.mirrorings" are both set.*to false or remove "mirrorings"',
        ),
        ("views-only", {}, "nothing reads a teacher: set it to false"),
        ("kd", {"mirrored_teacher": "yes"}, "mirrored_teacher"),
        ("kd", {"mirrored_teacher": 1}, "mirrored_teacher"),
    ],
)
def test_settings_that_cannot_be(preset, section, message):
    with pytest.raises(KDError, match=message):
        read_config(plans(**{**ON, **section}), preset, "T")


def test_the_undistilled_control_does_not_read_it():
    assert read_config(plans(**ON), "student", "nnUNetTrainerScheduled").mirrored_teacher is None


# in a training

SECTION = {"schedule": {"epochs": 4, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}, **ON}


@pytest.fixture
def trainers(monkeypatch):
    known_trainers(monkeypatch)


def test_a_stopped_training_continues_to_the_same_result(tiny_teacher, trainers):
    continues_to_the_same("nnUNetTrainerKDViews", student(tiny_teacher, "KDmirroredteacher", **SECTION))


def test_it_changes_what_the_student_becomes(tiny_teacher, trainers):
    found = []
    for name, on in (("KDmirroredyes", True), ("KDmirroredno", False)):
        trainer = make("nnUNetTrainerKDViews", student(tiny_teacher, name, **{**SECTION, "mirrored_teacher": on}))
        trainer.run_training()
        found.append(weights(trainer))
    assert not same(*found)


def test_a_teacher_without_mirroring_is_named_in_the_log(tiny_teacher, trainers, monkeypatch):
    monkeypatch.setattr("nnunet_kd.nnunet_io.trained_fold.TrainedFold.mirror_axes", ())
    trainer = make("nnUNetTrainerKDViews", student(tiny_teacher, "KDunmirrored", **SECTION))
    lines = []
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *args, **kwargs: lines.append(" ".join(map(str, args))))
    trainer.on_train_start()
    assert any("trained without mirroring: it reads the patches as they are" in line for line in lines)


def test_networks_are_not_symmetric_by_themselves():
    """What makes the tests above able to fail: a mirrored patch is another patch to a network."""
    torch.manual_seed(0)
    teacher, data = FrozenTeacher(network(2, (8, 16, 16)), (0, 1)), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert (teacher(data) - teacher(data.flip(3)).flip(3)).abs().mean() > 0.05


def test_what_is_drawn_for_the_anchors_does_not_depend_on_whether_the_views_are_read():
    said = []
    for target in ("anchor", "view"):
        distiller, _, data, onehot = setup("kd+views", terms={"kd": {"target": target}}, **ON)
        said.append([distiller.prepare(data, onehot, None, 0.9, iteration=i).teacher_logits for i in range(8)])
    for anchors, everything in zip(*said, strict=True):
        assert len(everything) == 2 * len(anchors)
        assert torch.allclose(anchors, everything[: len(anchors)], atol=1e-5)
