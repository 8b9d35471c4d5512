"""The losses of the literature as trainers: what they learn is trained, clipped, saved and continued like the student."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import continued, known_trainers, make, one_step, same, student, weights

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.utils.errors import KDError

TRAINERS = ["AT", "FitNets", "FSP", "SKD", "IFVD", "CWD", "DIST", "DML", "EMKD", "CIRKD"]
LEARNED = {"losses": {"bottleneck": {"fitnets": {}}, "decoder0": {"cirkd-memory": {}}, "encoder1": {"cwd-features": {}}}}
# a tiny training's smallest patch has a bottleneck of a few pixels


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_trains_the_student_and_leaves_the_teacher(tiny_teacher, name):
    trainer = make(f"nnUNetTrainer{name}", student(tiny_teacher, f"Rival{name}", epochs=2, iterations=4))
    trainer.on_train_start()
    before, teacher = weights(trainer), trainer.teacher.digest()
    values = one_step(trainer, 1)
    own = {k: v for k, v in values.items() if "@" in k}
    assert own and all(v > 0 for v in own.values()), own
    assert not same(before, weights(trainer))
    assert trainer.teacher.digest() == teacher


def test_adapters_are_in_the_optimizer_and_change(tiny_teacher):
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "RivalLearned", epochs=2, iterations=4, **LEARNED))
    trainer.on_train_start()
    learned = trainer.distiller.learned
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert learned and all(id(p) in held for p in learned)
    assert not any(id(p) in {id(q) for q in trainer.network.parameters()} for p in learned)
    before = copy.deepcopy(trainer.distiller.pair_losses.state_dict())
    one_step(trainer, 1)
    after = trainer.distiller.pair_losses.state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before if before[k].is_floating_point()), "something did not train"


def test_the_gradient_of_adapters_is_clipped(tiny_teacher):
    losses = {"bottleneck": {"fitnets": {"weight": 1e6}}}
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "RivalClip", epochs=2, iterations=4, ramp=0, losses=losses))
    trainer.on_train_start()
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([p.grad.norm() for p in trainer.distiller.learned]).norm().item())
    )
    one_step(trainer, 1)
    assert norms == [pytest.approx(12.0, rel=1e-4)]


def test_a_stopped_training_continues_with_the_same_adapters_and_queue(tiny_teacher):
    schedule = {"epochs": 4, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}
    plans = student(tiny_teacher, "RivalResume", schedule=schedule, **LEARNED)
    whole = make("nnUNetTrainerKD", plans)
    whole.run_training()
    final = Path(whole.output_folder) / "checkpoint_final.pth"
    expected, state = weights(whole), load_checkpoint(final)["nnunet_kd"]["distiller"]["losses"]
    assert load_checkpoint(final)["network_weights"].keys() == whole.network.state_dict().keys()
    second = continued(whole, 2, partial(make, "nnUNetTrainerKD", plans))
    assert same(weights(second), expected)
    assert same(load_checkpoint(final)["nnunet_kd"]["distiller"]["losses"], state)


def test_several_folds_teach_as_one(tiny_dataset, tiny_teacher, train):
    train(tiny_dataset, fold=1)
    plans = student(tiny_teacher, "RivalFolds", epochs=1, iterations=1)
    trainer = make("nnUNetTrainerKD", plans)
    object.__setattr__(trainer.kd.teacher, "fold", ["same", 1])
    trainer.on_train_start()
    assert len(trainer.teacher.network) == 2
    assert "teacher is of fold 1, the student trains fold 0" in Path(trainer.log_file).read_text()
    assert one_step(trainer, 0)["kd"] > 0


def test_an_impossible_place_is_an_error_before_training(tiny_teacher):
    trainer = make("nnUNetTrainerKD", student(tiny_teacher, "RivalPlace", losses={"encoder9": {"at": {}}}))
    with pytest.raises(KDError, match="encoder9.*no teacher stage"):
        trainer.initialize()
