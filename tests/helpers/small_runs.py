"""nnU-Net trainers on the tiny data set, shared by the tests of whole trainings."""

import json
import shutil
from pathlib import Path

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.training import distillation as trainer_module

TRAINERS = str(Path(__file__).parents[2] / "trainers")


def known_trainers(patch, pictures: bool = False) -> None:
    """Our trainers in nnU-Net's look-up, and no pictures: to draw one takes longer than an epoch here.

    pictures: draw ours (progress_distillation.png), as outside of the tests.
    """
    patch.setenv("nnUNet_extTrainer", TRAINERS)
    patch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
    if not pictures:
        patch.setattr(trainer_module, "plot_terms", lambda *args: None)


def make(name: str, plans: str, resume: bool = False, fold: int | str = 0):
    trainer = get_trainer_from_args("950", "2d", fold, name, plans, resume, torch.device("cpu"))
    maybe_load_checkpoint(trainer, resume, False)
    return trainer


def student(teacher, name, epochs=10, iterations=20, **section) -> str:
    planned = plan_student(
        StudentRequest(950, "2d", teacher, width=0.25, iterations=iterations, epochs=epochs, name=name, overwrite=True)
    )
    if section:
        content = json.loads(planned.file.read_text())
        content["nnunet_kd"].update(section)
        planned.file.write_text(json.dumps(content))
    return planned.plans_name


def weights(trainer) -> dict:
    return {k: v.clone() for k, v in trainer.network.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def one_step(trainer, epoch: int) -> dict:
    """A training step as nnU-Net takes it in this epoch."""
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    return trainer.train_step(next(trainer.dataloader_train))


def stopped(trainer, epochs: int) -> None:
    """Run some epochs as run_training does, and leave without ending the training."""
    for _ in range(epochs):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
        trainer.on_train_epoch_end(outputs)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            outputs = [
                trainer.validation_step(next(trainer.dataloader_val)) for _ in range(trainer.num_val_iterations_per_epoch)
            ]
            trainer.on_validation_epoch_end(outputs)
        trainer.on_epoch_end()


def continued(whole, stop: int, again):
    """A finished training once more: stopped after ``stop`` epochs, then continued to its end from what it had saved.

    ``again(resume=...)`` makes its trainer.
    """
    shutil.rmtree(whole.output_folder)
    first = again(resume=False)
    first.on_train_start()
    stopped(first, stop)
    second = again(resume=True)
    assert second.current_epoch == stop
    second.run_training()
    return second


def continues_to_the_same(trainer: str, plans_name: str) -> None:
    """A training that is stopped after two epochs and continued ends as an unbroken one, and its KD was never 0."""
    whole = make(trainer, plans_name)
    whole.run_training()
    expected, log = weights(whole), load_checkpoint(f"{whole.output_folder}/checkpoint_final.pth")["logging"]["kd/kd"]
    assert all(value > 0 for value in log)
    resumed = continued(whole, 2, lambda resume: make(trainer, plans_name, resume))
    assert same(weights(resumed), expected)
