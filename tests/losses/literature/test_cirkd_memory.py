"""Cross-image relations to a memory of the teacher's pixels and regions."""

import pytest
import torch
import torch.nn.functional as F
from annotated import Annotated, labels
from loss_checks import (
    by_finite_differences,
    finite_at_1e4,
    gradient,
    half_inputs_in_float32,
    name,
    tensors,
    zero_at_equality,
)

from nnunet_kd.losses.literature.cirkd_memory import CIRKDMemory

GRIDS = [(3, 4), (2, 3, 2)]


def memory(student_channels=4, teacher_channels=5, dims=2, classes=3, **options):
    torch.manual_seed(0)
    loss = CIRKDMemory(
        classes=classes, student_channels=student_channels, teacher_channels=teacher_channels, dims=dims, **options
    )
    return loss.double()


def filled(grid, channels=(4, 5), batch=2, **options):
    """A module in eval mode that has seen one batch, with the labels for tensors of that shape."""
    loss, target = memory(*channels, len(grid), **options), labels(grid, 3, batch)
    loss(*tensors(grid, *channels, batch), target)
    return Annotated(loss.eval(), target)


@pytest.mark.parametrize("channels", [(4, 5), (4, 4)], ids=["adapter", "equal"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("check", [half_inputs_in_float32, finite_at_1e4], ids=name)
def test_contract(check, batch, grid, channels):
    check(filled(grid, channels, batch).float(), *tensors(grid, *channels, batch))


@pytest.mark.parametrize(("grid", "channels"), [((2, 3), (3, 4)), ((2, 3, 2), (3, 4)), ((3, 4), (3, 3))])
def test_gradient_by_finite_differences(grid, channels):
    by_finite_differences(filled(grid, channels), *tensors(grid, *channels))


@pytest.mark.parametrize("grid", GRIDS)
def test_zero_at_equality(grid):
    zero_at_equality(filled(grid, (4, 4)), *tensors(grid, 4, 4))


def _relations(features, entries):
    return F.normalize(features, dim=1) @ F.normalize(entries, dim=1).T / 0.1


def _divergence(student, teacher, entries):
    rows = [_relations(f, entries).log_softmax(1) for f in (student, teacher)]
    return F.kl_div(*rows, log_target=True, reduction="batchmean")


@pytest.mark.parametrize("grid", GRIDS)
def test_first_step_compares_with_all_annotated_pixels_and_regions_of_the_batch(grid):
    (student, teacher), target = tensors(grid, 4, 5), labels(grid, 3)
    target[1][target[1] == 2] = -1  # absent from one sample
    loss = memory(4, 5, len(grid), classes=4)  # class 3 is absent from all
    got = loss(student, teacher, target)
    s, t = (f.movedim(1, -1)[target >= 0] for f in (loss.adapter(student), teacher))
    regions = [F.normalize(teacher, dim=1)[b][:, target[b] == c].mean(1) for b, c in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]]
    expected = _divergence(s, t, t) + _divergence(s, t, torch.stack(regions))
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)


def test_later_steps_compare_with_earlier_batches_too():
    (student, teacher), target, loss = tensors((3, 4), 4, 5), labels((3, 4), 3), memory()
    earlier = teacher.flip(0, 2) + 1
    loss(student, earlier, target)
    got = loss(student, teacher, target)
    s, t, e = (f.movedim(1, -1)[target >= 0] for f in (loss.adapter(student), teacher, earlier))
    assert loss.pixel_count.sum() == 2 * len(t)
    regions = [
        F.normalize(f, dim=1)[b][:, target[b] == c].mean(1) for f in (earlier, teacher) for b in range(2) for c in range(3)
    ]
    expected = _divergence(s, t, torch.cat([t, e])) + _divergence(s, t, torch.stack(regions))
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
def test_pixels_are_stored_under_their_own_class(grid):
    # class c's pixels point along axis c, those without annotation along the last
    target, loss = labels(grid, 3), memory(4, 4, len(grid), pixels_per_class=2)
    teacher = F.one_hot(target % 4, 4).movedim(-1, 1).double() * 7
    loss(teacher, teacher, target)
    assert loss.pixel_count.tolist() == [4, 4, 4]
    assert loss.region_count.tolist() == [2, 2, 2]
    for stored, count in ((loss.pixel_memory, 4), (loss.region_memory, 2)):
        for c in range(3):
            torch.testing.assert_close(stored[c, :count], F.one_hot(torch.tensor([c] * count), 4).double())
            assert stored[c, count:].abs().max() == 0


def test_which_pixels_are_stored_is_drawn():
    target, loss = torch.zeros(1, 6, 6, dtype=torch.long), memory(36, 36, classes=1, pixels_per_class=4)
    teacher = torch.eye(36, dtype=torch.float64).view(1, 36, 6, 6)  # every pixel has a channel of its own
    for _ in range(30):
        loss(teacher, teacher, target)
    stored = loss.pixel_memory[0, :120]
    assert torch.equal(stored.sum(1), torch.ones(120).double())
    assert (stored.view(30, 4, 36).sum(1) <= 1).all()  # no pixel twice in a step
    assert (stored.sum(0) > 0).sum() > 30  # and others in other steps


def test_the_oldest_entries_are_replaced():
    target = torch.zeros(1, 1, 1, dtype=torch.long)
    loss = memory(6, 6, classes=1, pixel_memory=3, region_memory=2)
    for step in range(5):
        teacher = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
        teacher[0, step] = 1
        loss(teacher, teacher, target)
    assert loss.pixel_memory[0].argmax(1).tolist() == [3, 4, 2]
    assert loss.region_memory[0].argmax(1).tolist() == [4, 3]
    assert loss.pixel_count.tolist() == [5]


def test_more_pixels_than_the_memory_holds():
    target, loss = torch.zeros(1, 2, 3, dtype=torch.long), memory(6, 6, classes=1, pixel_memory=4)
    teacher = torch.eye(6, dtype=torch.float64).view(1, 6, 2, 3)
    loss(teacher, teacher, target)
    assert loss.pixel_count.tolist() == [6]
    assert len(set(loss.pixel_memory[0].argmax(1).tolist())) == 4


def test_a_draw_of_the_memory_per_class(monkeypatch):
    loss, target = memory(pixel_contrast=5, region_contrast=2), labels((3, 4), 3)
    seen = []
    entries = loss._entries
    monkeypatch.setattr(loss, "_entries", lambda *a: seen.append(entries(*a)) or seen[-1])
    student, teacher = tensors((3, 4), 4, 5)
    for step in range(6):
        assert loss(student, teacher + 0.1 * step, target) > 0
    # 5 // 3 + 1 and 2 // 3 + 1 for each of three classes
    assert [len(x) for x in seen[-2:]] == [6, 3]
    where = [(row == loss.pixel_memory).all(2).nonzero()[0].tolist() for row in seen[-2]]
    assert [c for c, _ in where] == [0, 0, 1, 1, 2, 2]
    assert len({tuple(index) for index in where}) == 6
    assert len({(x[0] == loss.pixel_memory[0]).all(1).nonzero()[0].item() for x in seen[::2]}) > 1  # others each time


def test_at_most_so_many_anchors():
    student, teacher = tensors((3, 4), 4, 5)
    target = labels((3, 4), 3)
    loss = Annotated(memory(max_anchors=7), target)
    reached = gradient(loss, student, teacher).abs().sum(1) > 0
    assert reached.sum() == 7
    assert (target[reached] >= 0).all()


def test_only_training_stores():
    loss, target = memory().eval(), labels((3, 4), 3)
    assert loss(*tensors((3, 4), 4, 5), target).item() == 0  # nothing stored yet
    assert loss.pixel_count.sum() == 0
    loss.train()(*tensors((3, 4), 4, 5), target)
    before = loss.pixel_count.clone()
    assert before.sum() > 0
    assert loss.eval()(*tensors((3, 4), 4, 5), target) > 0
    assert torch.equal(loss.pixel_count, before)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_nothing_annotated_is_zero_with_a_gradient_of_zero(steps_before):
    (student, teacher), loss = tensors((3, 4), 4, 5), memory()
    for _ in range(steps_before):
        loss(student, teacher, labels((3, 4), 3))
    before = loss.pixel_count.clone()
    value = loss(student.requires_grad_(), teacher, torch.full((2, 6, 8), -1))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    assert torch.equal(loss.pixel_count, before)


def test_a_single_entry_says_nothing():
    target, loss = torch.full((2, 3, 4), -1), memory()
    target[0, 0, 0] = 1
    assert loss(*tensors((3, 4), 4, 5), target).item() == pytest.approx(0, abs=1e-12)


def test_a_resumed_memory_goes_on_alike_and_leaves_torchs_random_state_alone():
    target, options = labels((3, 4), 3), {"pixels_per_class": 2, "pixel_contrast": 4, "max_anchors": 9}
    loss, resumed = memory(**options), memory(**options)
    loss(*tensors((3, 4), 4, 5), target)
    resumed.load_state_dict(loss.state_dict())
    state = torch.get_rng_state()
    once = loss(*tensors((3, 4), 4, 5), target)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert resumed(*tensors((3, 4), 4, 5), target).item() == once.item() > 0
    assert torch.equal(resumed.pixel_memory, loss.pixel_memory)


def test_adapter_learns_and_memory_does_not():
    loss, target = memory(), labels((3, 4), 3)
    student, teacher = (f.requires_grad_() for f in tensors((3, 4), 4, 5))
    loss(student, teacher, target).backward()
    assert teacher.grad is None
    assert loss.adapter.weight.grad.abs().max() > 0
    assert set(loss.state_dict()) == {"adapter.weight", "pixel_memory", "pixel_count", "region_memory", "region_count"}
    assert not any(buffer.requires_grad for buffer in loss.buffers())
    assert not list(memory(4, 4).parameters())


def test_published_sizes_and_weight():
    loss = CIRKDMemory(classes=2, student_channels=1, teacher_channels=1, dims=2)
    assert loss.pixel_memory.shape == (2, 20000, 1)
    assert loss.region_memory.shape == (2, 2000, 1)
    assert loss.contrasts == {"pixel": 2049, "region": 513}
    assert (loss.reads, loss.weight, loss.needs_target) == ("features", 0.1, True)


def test_mistakes_are_refused():
    (student, teacher), target, loss = tensors((3, 4), 4, 5), labels((3, 4), 3), memory()
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 4\).*\(2, 5, 3, 3\)"):
        loss(student, teacher[..., :3], target)
    with pytest.raises(ValueError, match="4 and 5 channels"):
        loss(teacher, teacher, target)
    with pytest.raises(ValueError, match="pass target"):
        loss(student, teacher)
    for option in ("pixel_memory", "region_memory", "pixel_contrast", "region_contrast", "pixels_per_class", "max_anchors"):
        with pytest.raises(ValueError, match=f"{option} of CIRKDMemory must be at least 1"):
            memory(**{option: 0})
    with pytest.raises(ValueError, match="classes"):
        memory(classes=0)
    with pytest.raises(ValueError, match="temperature"):
        memory(temperature=0.0)
