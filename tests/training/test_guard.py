"""Steps with NaN or Inf: named, counted, skipped, and nothing remembers them."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import known_trainers, make, one_step, same, student, weights

from nnunet_kd.distillation import alignment
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.finite import LIMIT, SkipStep, StepGuard, all_finite, require_finite

CPU = torch.device("cpu")
WARM_UP, ACT, DISTIL = 0, 2, 9  # epochs of 10
QUEUE = "cirkd-memory@bottleneck"
BATCH = {"data": torch.zeros(2, 1, 4, 4), "keys": ["case_a", "case_b"]}


# the guard itself


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_number_is_found(bad, dtype):
    good = torch.full((3, 100), 60000.0, dtype=dtype)  # its sum overflows in float16
    assert all_finite([good, torch.zeros(())]) and all_finite([])
    damaged = good.clone()
    damaged[1, 5] = bad
    assert not all_finite([good, damaged])


def test_what_is_not_finite_is_named():
    require_finite({"kd": torch.tensor(1.0), "seg_loss": 2.0}, CPU)
    with pytest.raises(SkipStep, match="^kd is nan, intra is inf$"):
        require_finite({"kd": torch.tensor(math.nan), "seg_loss": 1.0, "intra": math.inf}, CPU)


def test_a_row_of_skipped_steps_ends_the_training_and_a_good_step_breaks_it():
    said = []
    guard = StepGuard(said.append)
    for _ in range(LIMIT - 1):
        guard.skipped("kd is nan", BATCH)
        guard.end_step()
    guard.end_step()  # a good one
    for _ in range(LIMIT - 1):
        guard.skipped("kd is nan", BATCH)
        guard.end_step()
    assert said == ["WARNING: step skipped: kd is nan (cases case_a, case_b)"] * 38
    with pytest.raises(KDError, match=r"20 training steps in a row .*kd is nan \(cases case_a, case_b\).*--c") as error:
        guard.skipped("kd is nan", BATCH)
    assert "\n" not in str(error.value)


def test_the_epochs_line_counts_them():
    said = []
    guard = StepGuard(said.append)
    guard.end_epoch(50)
    assert said == []
    guard.skipped("a", {}, quiet=True)
    guard.skipped("b", {}, quiet=True)
    guard.end_epoch(50)
    guard.end_epoch(50)
    assert said == ["2 of 50 steps skipped, the last one: b"]


def test_a_case_with_bad_images_is_named_alone():
    said = []
    data = BATCH["data"].clone()
    data[1, 0, 2, 2] = math.inf
    StepGuard(said.append).skipped("seg_loss is nan", {**BATCH, "data": data})
    assert said == ["WARNING: step skipped: seg_loss is nan (NaN or Inf in the images of case_b)"]


# in a training: cross-view has every term of GKD, and a queue of CIRKD beside them


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture(scope="module")
def started(tiny_teacher):
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        balanced = {"kd": {"balance": 1.0}}  # keeps a running mean of the teacher's class frequencies
        losses = {"bottleneck": {"cirkd-memory": {"pixel_memory": 50, "region_memory": 20}}}
        trainer = make("nnUNetTrainerGKDCrossView", student(tiny_teacher, "KDguard", losses=losses, terms=balanced, ramp=0))
        trainer.on_train_start()
        for epoch in (WARM_UP, ACT, DISTIL):
            one_step(trainer, epoch)
    return trainer


@pytest.fixture
def run(started):
    """The training, with a state in which every optimizer, queue and running mean holds something; put back afterwards."""
    trainer = started
    before = state(trainer)
    trainer.guard = StepGuard(trainer.print_to_log_file)
    for values in trainer.logger.local_logger.my_fantastic_logging.values():
        values.clear()
    yield trainer
    trainer.network.load_state_dict(before["student"])
    trainer.optimizer.load_state_dict(before["optimizer"])
    trainer.distiller.load_state_dict(before["distiller"])


def state(trainer) -> dict:
    kept = {"student": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    if getattr(trainer, "distiller", None) is not None:
        kept["distiller"] = trainer.distiller.state_dict()
    return copy.deepcopy(kept)


def flat(content, name="") -> dict[str, torch.Tensor]:
    """All tensors of a nested state by their path, the views' generator left out: it may move on."""
    if isinstance(content, torch.Tensor):
        return {} if "generator" in name else {name: content}
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {k: v for key, value in pairs for k, v in flat(value, f"{name}/{key}").items()}


def changed(before: dict, after: dict) -> set[str]:
    """First parts of the paths of what differs."""
    a, b = flat(before), flat(after)
    assert a.keys() == b.keys() and len(a) > 50
    return {"/".join(k.split("/")[1:4]) for k in a if not torch.equal(a[k], b[k])}


def log(trainer) -> str:
    return Path(trainer.log_file).read_text()


def skips(trainer, epoch=DISTIL, batch=None) -> tuple[str, set[str]]:
    """A step that must be skipped: what the log says of it, and what changed."""
    at(trainer, epoch)
    batch = batch or next(trainer.dataloader_train)
    before, said = state(trainer), len(log(trainer))
    result = trainer.train_step(batch)
    assert trainer.guard.in_a_row == trainer.guard.in_epoch == 1
    lines = re.findall("WARNING: step skipped: (.*)", log(trainer)[said:])
    assert len(lines) == 1
    assert all_finite(v for v in flat(state(trainer)).values() if v.is_floating_point())
    assert set(result) == {"loss", *trainer._log_keys}
    return lines[0].strip(), changed(before, state(trainer))


def at(trainer, epoch: int) -> None:
    """Begin this epoch, again and in any order."""
    trainer.logger.local_logger.my_fantastic_logging["lrs"].clear()
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()


def goes_on(trainer, epoch=DISTIL) -> None:
    before = state(trainer)
    at(trainer, epoch)
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert {"student", "optimizer"} <= {part.split("/")[0] for part in changed(before, state(trainer))}
    assert trainer.guard.in_a_row == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("term", ["kd", "intra", "inter", "cross_ts", "cross_st", QUEUE])
def test_a_term_is_named_and_its_step_changes_nothing(run, monkeypatch, term, bad):
    terms, found = run.distiller.terms, []

    def damaged(step):
        values = terms(step)
        found.append(set(values))
        weight, value = values[term]
        return {**values, term: (weight, value * bad)}

    with monkeypatch.context() as patch:
        patch.setattr(run.distiller, "terms", damaged)
        said, moved = skips(run)
    assert found == [{"kd", "intra", "inter", "cross_ts", "cross_st", QUEUE}]
    assert re.fullmatch(rf"{re.escape(term)} is (nan|inf) \(cases case_\d\d(, case_\d\d)?\)", said), said
    # numbers of the teacher that are all right were seen before: its frequencies, and the queue
    assert moved <= {
        "distiller/frequencies",
        "distiller/losses/losses.0.pixel_memory",
        "distiller/losses/losses.0.pixel_count",
        "distiller/losses/losses.0.region_memory",
        "distiller/losses/losses.0.region_count",
    }
    goes_on(run)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_case_is_named_and_its_step_changes_nothing(run, bad):
    batch = next(run.dataloader_train)
    batch["keys"] = np.array(["case_good", "case_bad"])
    batch["data"][1, 0, 3, 3] = bad
    said, moved = skips(run, batch=batch)
    assert said == "the teacher's prediction is not finite (NaN or Inf in the images of case_bad)"
    assert moved == set()
    goes_on(run)


@pytest.mark.parametrize("epoch", [WARM_UP, ACT, DISTIL])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_teacher_is_named_and_its_step_changes_nothing(run, epoch, bad):
    bias = next(p for n, p in run.teacher.network.named_parameters() if n.endswith("seg_layers.1.bias"))
    kept = bias[1].clone()
    try:
        bias[1] = bad
        said, moved = skips(run, epoch)
    finally:
        bias[1] = kept
    assert said.startswith("the teacher's prediction is not finite (cases ") and moved == set()
    goes_on(run, epoch)


def test_a_teachers_stage_that_nobody_sees_in_its_logits(run):
    stage = run.teacher.network.encoder.stages[1]
    hook = stage.register_forward_hook(lambda m, i, o: o.index_fill(1, torch.tensor(0), math.inf))
    said, moved = skips(run)
    hook.remove()
    assert said.startswith("the teacher's prediction is not finite") and moved == set()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_alone(run, bad):
    parameter = run.network.encoder.stages[0][0].convs[0].conv.weight
    hook = parameter.register_hook(lambda g: g * bad)
    said, moved = skips(run)
    hook.remove()
    assert said.startswith("the gradient is not finite (cases ")
    assert {m.split("/")[0] for m in moved} <= {"distiller"} and not any("alignment" in m or "optimizers" in m for m in moved)
    goes_on(run)


def test_the_gradient_of_what_a_loss_learns(run):
    hook = run.distiller.learned[0].register_hook(lambda g: g * math.nan)
    said, moved = skips(run)
    hook.remove()
    assert said.startswith("the gradient is not finite (cases ") and "student" not in {m.split("/")[0] for m in moved}


def test_the_msans_step_alone(run, monkeypatch):
    real = alignment.reconstruction
    for bad in (math.nan, math.inf):
        run.guard = StepGuard(run.print_to_log_file)
        with monkeypatch.context() as patch:
            patch.setattr(alignment, "reconstruction", lambda a, b, bad=bad: real(a, b) * bad)
            said, moved = skips(run, ACT)
        assert said.startswith("the MSANs' loss or gradient is not finite (cases ")
        parts = {m.split("/")[0] for m in moved}
        assert {"student", "optimizer"} <= parts  # the student's own step stands
        assert not any("alignment" in m or "optimizers" in m for m in moved)
    goes_on(run, ACT)


def test_the_autoencoders_step_alone(run, monkeypatch):
    autoencoder = run.distiller.alignment.autoencoder
    real = autoencoder.loss
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder, "loss", lambda *a: real(*a) * math.nan)
        said, moved = skips(run, WARM_UP)
    assert said.startswith("the P-SAE's loss or gradient is not finite (cases ")
    assert not any("alignment" in m or "optimizers" in m for m in moved)  # its statistics are among them
    goes_on(run, WARM_UP)


def test_progress_counts_skipped_steps(run, monkeypatch):
    at(run, 4)
    seen, prepare = [], run.distiller.prepare
    monkeypatch.setattr(run.distiller, "prepare", lambda *a: seen.append(a[3]) or prepare(*a))
    for i in range(2):
        batch = next(run.dataloader_train)
        if i == 0:
            batch["data"][:] = math.nan
        run.train_step(batch)
    assert seen == [0.4, 0.45]


def test_twenty_in_a_row_end_the_training_with_the_reason_and_an_intact_checkpoint(tiny_teacher, monkeypatch):
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "KDrow", epochs=40, iterations=80))
    object.__setattr__(trainer.kd.schedule, "save_every", 1)
    trainer.save_every = 1
    real, calls = trainer.train_step, []

    def later(batch):
        calls.append(1)
        if len(calls) > 4:
            batch["data"][:] = math.nan
        return real(batch)

    monkeypatch.setattr(trainer, "train_step", later)
    with pytest.raises(KDError, match="20 training steps in a row .*teacher's prediction.*NaN or Inf in the images of case"):
        trainer.run_training()
    assert len(calls) == 24
    saved = load_checkpoint(Path(trainer.output_folder) / "checkpoint_latest.pth")
    assert all(all_finite([v]) for v in saved["network_weights"].values())
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(logged["train_losses"][:2]).all() and np.isnan(logged["train_losses"][2:]).all()
    assert np.isfinite(logged["ema_fg_dice"]).all() and np.isfinite(logged["val_losses"]).all()


def test_an_epoch_with_a_skipped_step_logs_the_others(run):
    at(run, 0)
    outputs = []
    for i in range(3):
        batch = next(run.dataloader_train)
        if i == 1:
            batch["data"][:] = math.nan
        outputs.append(run.train_step(batch))
    run.on_train_epoch_end(outputs)
    good = [o for o in outputs if np.isfinite(o["loss"])]
    assert len(good) == 2
    logged = run.logger.local_logger.my_fantastic_logging
    assert logged["train_losses"][0] == pytest.approx(np.mean([o["loss"] for o in good]))
    assert logged["kd/kd"][0] == pytest.approx(np.mean([o["kd"] for o in good]))
    assert "1 of 3 steps skipped, the last one: the teacher's prediction is not finite (NaN" in log(run)


def test_a_bad_validation_batch_does_not_hide_the_others(run):
    run.network.eval()
    outputs = []
    with torch.no_grad():
        for i in range(3):
            batch = next(run.dataloader_val)
            if i == 1:
                batch["data"][:] = math.nan
            outputs.append(run.validation_step(batch))
    run.current_epoch = len(run.logger.local_logger.my_fantastic_logging["val_losses"])
    run.on_validation_epoch_end(outputs)
    expected = np.mean([outputs[0]["loss"], outputs[2]["loss"]])
    assert np.isnan(outputs[1]["loss"]) and run.logger.get_value("val_losses", -1) == pytest.approx(expected)
    assert "1 validation batches with NaN or Inf" in log(run)


def test_a_plain_training_is_guarded_too(tiny_teacher):
    """nnUNetTrainerScheduled: a bad case, and the running statistics that a batch norm would have."""
    trainer = make("nnUNetTrainerScheduled", student(tiny_teacher, "KDplain"))
    trainer.on_train_start()
    trainer.network.register_buffer("seen", torch.zeros(()))

    def remember(module, args):
        module.seen += args[0].mean()

    trainer.network.register_forward_pre_hook(remember)
    one_step(trainer, 0)
    batch = next(trainer.dataloader_train)
    batch["data"][0, 0, 0, 0], batch["keys"] = math.inf, np.array(["case_bad", "case_good"])
    said, moved = skips(trainer, 0, batch)
    assert said == "seg_loss is nan (NaN or Inf in the images of case_bad)" and moved == set()
    goes_on(trainer, 0)


def test_with_a_gradient_scaler(tiny_teacher):
    """nnU-Net's scaler does not step on overflowing gradients; a bad batch must not lower its scale."""
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "KDscaler"))
    trainer.on_train_start()
    trainer.grad_scaler = scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    one_step(trainer, 0)
    assert (trainer.guard.in_a_row, scaler.get_scale()) == (0, 8.0)

    batch = next(trainer.dataloader_train)
    batch["data"][:] = math.nan
    before = weights(trainer)
    trainer.train_step(batch)
    assert (trainer.guard.in_a_row, scaler.get_scale()) == (1, 8.0) and same(weights(trainer), before)

    hook = next(trainer.network.parameters()).register_hook(lambda g: g * math.inf)
    assert np.isfinite(one_step(trainer, 0)["loss"])
    hook.remove()
    assert (trainer.guard.in_a_row, scaler.get_scale()) == (2, 4.0) and same(weights(trainer), before)
    one_step(trainer, 0)
    assert trainer.guard.in_a_row == 0 and not same(weights(trainer), before)
