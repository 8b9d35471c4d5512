"""Plain nnU-Net training with a schedule, a seed, and nothing lost: what teachers, controls and students share.

nnU-Net's own step, loss, optimizer and validation run unchanged through ``super()``; this and ``distillation.py`` are the only
files that subclass its trainer.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context

from nnunet_kd.config.recipe import config_of, latest_checkpoint, recipe_of
from nnunet_kd.config.run import SECTION, Config, read_config
from nnunet_kd.losses import full_precision
from nnunet_kd.nnunet_io.cascade import check_predictions, predictions_of
from nnunet_kd.nnunet_io.checkpoints import (
    cannot_write,
    check_writable,
    load_checkpoint,
    numpy_numbers_allowed,
    save_atomically,
)
from nnunet_kd.training.loader_workers import end_with_parent
from nnunet_kd.training.mixins import check_order
from nnunet_kd.training.unfinished import forget_training, stopped
from nnunet_kd.utils.bfloat16 import bfloat16_warning
from nnunet_kd.utils.distributed import of_all_ranks, world_size
from nnunet_kd.utils.environment import require_environment
from nnunet_kd.utils.errors import KDError, print_user_errors_in_one_line
from nnunet_kd.utils.finite import SkipStep, StepGuard, all_finite, require_finite
from nnunet_kd.utils.random_state import random_state, seed_everything, set_random_state

print_user_errors_in_one_line()

Heads = torch.Tensor | list[torch.Tensor]  # what nnU-Net's networks and loaders give: a list with deep supervision


class nnUNetTrainerScheduled(nnUNetTrainer):
    """Plain nnU-Net training with the schedule and seed of the plans section "nnunet_kd".

    For teachers (``nnunet-kd plan --role teacher``) and undistilled controls (on the student's plans). With
    ``nnUNet_n_proc_DA=0`` a seed fixes every batch; with loader workers nnU-Net leaves their order to chance.
    """

    preset: str | None = "student"
    _log_keys: tuple[str, ...] | list[str] = ()  # what a step reports beside nnU-Net's loss

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        check_order(type(self), nnUNetTrainerScheduled, nnUNetTrainer)
        self.kd, self._misfit = self._settings(plans, configuration, fold)
        if configuration not in plans["configurations"]:
            names = ", ".join(plans["configurations"])
            raise KDError(f'plans "{plans["plans_name"]}" have no configuration {configuration}, only {names}: pass {names}')
        require_environment("nnUNet_preprocessed", "nnUNet_results")
        try:
            super().__init__(plans, configuration, fold, dataset_json, device)
        except OSError as error:
            if error.filename is None:
                raise  # no file of the result folder
            raise cannot_write(error.filename, error) from error
        if self.kd.previous_stage is not None:
            if not self.is_cascaded:
                raise KDError(
                    f'"{SECTION}.previous_stage" is set but {configuration} is no second stage of a cascade: remove the key'
                )
            self.folder_with_segs_from_previous_stage = str(predictions_of(self.kd.previous_stage, configuration))
        if len(self._get_deep_supervision_scales() or []) == 1:
            # two stages have one output, and nnU-Net's deep supervision takes the lowest out: its loss would be 0 / 0
            self.enable_deep_supervision = False
        schedule = self.kd.schedule
        self.num_epochs = schedule.epochs
        self.num_iterations_per_epoch = schedule.iterations_per_epoch
        self.num_val_iterations_per_epoch = schedule.val_iterations_per_epoch
        self.initial_lr = schedule.initial_lr
        self.save_every = schedule.save_every
        self._resume_random_state: dict | None = None
        self.guard = StepGuard(self.print_to_log_file)
        self._in_step = self._stepped = False
        self._postponed: list[str] | None = None

    def _settings(self, plans: dict, configuration: str, fold: int) -> tuple[Config, KDError | None]:
        """The configuration in the plans, and what is wrong with it if a training is there that it may not be needed for.

        A training that is continued or validated has its recipe in its checkpoint, and that need not be what plans and preset
        mean today. nnU-Net says only later that it loads one.
        """
        try:
            return read_config(plans, self.preset, type(self).__name__), None
        except KDError as error:
            file = latest_checkpoint(plans, configuration, fold, type(self).__name__)
            if file is None:
                raise
            try:
                return config_of(load_checkpoint(file), plans, type(self))[0], error
            except KDError:
                raise error from None

    @property
    def _autocast(self) -> AbstractContextManager:
        """The precision of a step: nnU-Net's on CUDA, the plans' on a CPU."""
        if self.device.type == "cuda":
            return torch.autocast("cuda")
        return torch.autocast("cpu", torch.bfloat16) if self._half_on_cpu else dummy_context()

    @property
    def _half_on_cpu(self) -> bool:
        return self.device.type == "cpu" and self.kd.schedule.cpu_precision == "bfloat16"

    def _build_loss(self) -> Callable[[Heads, Heads], torch.Tensor]:
        plain = super()._build_loss()
        full = full_precision(lambda output, target: plain(output, target)) if self._half_on_cpu else plain

        def loss(output: Heads, target: Heads) -> torch.Tensor:
            value = full(output, target)
            if self._in_step:
                require_finite({"seg_loss": value}, self.device)
            return value

        return loss

    def do_split(self) -> tuple[list[str], list[str]]:
        train, validation = super().do_split()
        if self.is_cascaded:
            check_predictions(self.folder_with_segs_from_previous_stage, [*train, *validation])
        return train, validation

    def configure_optimizers(self, *stage: str) -> tuple[torch.optim.Optimizer, Any]:
        optimizer, scheduler = super().configure_optimizers(*stage)  # Primus's have stages: warm-up and training
        optimizer.register_step_pre_hook(self._check_gradients)
        optimizer.register_step_post_hook(self._note_step)
        return optimizer, scheduler

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # with a scaler, nnU-Net has checked them; in DDP they are those of all ranks, so all ranks find the same
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if self.grad_scaler is None and not all_finite(gradients):
            raise SkipStep("the gradient is not finite")

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step. One with NaN or Inf in it is named, counted and leaves everything as it was (utils/finite.py)."""
        buffers = [(b, b.clone()) for b in self.network.buffers()]  # of batch norms, which nnU-Net's default has not
        self._in_step, self._stepped = True, False
        try:
            result = self._train_step(batch)
            if self.grad_scaler is not None and not self._stepped:
                self.guard.skipped("the scaled gradient overflows, nnU-Net lowers its scale", batch, quiet=True)
        except SkipStep as skip:
            for buffer, before in buffers:
                buffer.copy_(before)
            self.guard.skipped(str(skip), batch)
            result = dict.fromkeys(("loss", *self._log_keys), float("nan"))
        finally:
            self._in_step = False
        self.guard.end_step()
        return result

    def _train_step(self, batch: dict) -> dict:
        with self._autocast:
            return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        taken = [{**o, "loss": np.asarray(o["loss"])} for o in train_outputs if np.isfinite(o["loss"])]
        super().on_train_epoch_end(taken or [{"loss": np.asarray(np.nan)}])
        self.guard.end_epoch(len(train_outputs))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        finite = [float(o["loss"]) for o in val_outputs if np.isfinite(o["loss"])]
        n_not_finite = len(val_outputs) - len(finite)
        if n_not_finite and finite:
            mean = np.asarray(np.mean(finite))  # in their place: in DDP every rank reports equally many
            val_outputs = [o if np.isfinite(o["loss"]) else {**o, "loss": mean} for o in val_outputs]
            self.print_to_log_file(
                f"WARNING: {n_not_finite} validation batches with NaN or Inf in their loss, left out of val_loss"
            )
        super().on_validation_epoch_end(val_outputs)

    def validation_step(self, batch: dict) -> dict:
        with self._autocast:
            return super().validation_step(batch)

    def initialize(self) -> None:
        if self._misfit is not None:
            raise self._misfit
        # the same seed gives every method the same initial student
        seed_everything(self.kd.seed)
        super().initialize()
        channels = getattr(getattr(self.network, "encoder", None), "output_channels", None)
        if self._half_on_cpu and channels and channels[0] < 16 and len(self.configuration_manager.patch_size) == 2:
            # in bfloat16 narrow networks are 1.7 times faster this way round, wide ones slower (docs/speed.md)
            self.network.to(memory_format=torch.channels_last)

    def run_training(self) -> None:
        """nnU-Net's training.

        A disk that is full is one line, also where nnU-Net writes logs and pictures itself. So is Ctrl-C. A mistake found
        before the first epoch, a missing teacher say, leaves no folder behind that looks like a training.
        """
        try:
            super().run_training()
        except KDError:
            if not self._begun:
                forget_training(Path(self.output_folder), Path(self.log_file))
            raise
        except KeyboardInterrupt:
            raise stopped(Path(self.output_folder), self.current_epoch) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise cannot_write(error.filename or self.output_folder, error) from error

    @property
    def _begun(self) -> bool:
        """Whether an epoch has begun, now or in the training that is continued."""
        return bool(self.logger.local_logger.my_fantastic_logging["epoch_start_timestamps"])

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        if self.local_rank == 0:
            check_writable(Path(self.output_folder))
        end_with_parent()
        # seeded again, since networks of different size have drawn different amounts of random numbers by now
        seed_everything(self.kd.seed + self.local_rank)
        super().on_train_start()
        if self._resume_random_state is not None:
            set_random_state(self._resume_random_state)
            self._resume_random_state = None
        schedule = self.kd.schedule
        self.print_to_log_file(
            f"nnunet_kd: preset {self.kd.preset}, seed {self.kd.seed}, {schedule.epochs} epochs x "
            f"{schedule.iterations_per_epoch} iterations of {self.batch_size} patches"
        )
        if self._half_on_cpu and (warning := bfloat16_warning()):
            self.print_to_log_file(f"WARNING: {warning}")

    def on_epoch_end(self) -> None:
        # nnU-Net writes the latest checkpoint before it looks whether this epoch is the best: a training continued from it
        # would not know, and overwrite the best one with a worse. Here the latest comes last.
        self._postponed = []
        super().on_epoch_end()
        postponed, self._postponed = self._postponed, None
        self.current_epoch -= 1  # as it was when nnU-Net asked
        for filename in postponed:
            self.save_checkpoint(filename)
        self.current_epoch += 1

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus our own key, written atomically."""
        if self._postponed is not None and Path(filename).name == "checkpoint_latest.pth":
            self._postponed.append(filename)
            return
        ranks = of_all_ranks(self._rank_state())  # before rank 0 goes on alone
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        if buffer.tell() == 0:
            return  # not rank 0, or checkpointing is disabled
        buffer.seek(0)
        # nothing but what nnU-Net has written into memory just now
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint[SECTION] = (
            {"recipe": recipe_of(self.kd)} | self._extra_state() | ({"ranks": ranks} if len(ranks) > 1 else {})
        )
        save_atomically(checkpoint, Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """nnU-Net's continuation plus our own key, from a file that was read safely. Its recipe goes on (recipe.py).

        nnU-Net itself reads checkpoints in a way that runs whatever code they ask for. What :func:`load_checkpoint` has
        accepted asks for none.

        Raises:
            KDError: the file is missing, damaged, or holds what no nnU-Net checkpoint holds.
        """
        checkpoint = load_checkpoint(filename_or_checkpoint)
        if not self.was_initialized:
            self.kd, lines = config_of(checkpoint, self.plans_manager.plans, type(self))
            self._misfit = None
            for line in lines:
                self.print_to_log_file(f"nnunet_kd: {line}")
        try:
            with numpy_numbers_allowed():  # Primus's trainers load as torch does by default, which refuses nnU-Net's own log
                super().load_checkpoint(filename_or_checkpoint)
            self._load_extra_state(checkpoint.get(SECTION, {}))
        except (RuntimeError, ValueError, KeyError) as error:
            raise KDError(
                f"{filename_or_checkpoint} does not fit these plans ({' '.join(str(error).split())[:160]}): put the plans back "
                "that it was trained with, or plan under another name (`nnunet-kd plan --name NAME`)"
            ) from error

    def _extra_state(self) -> dict:
        return {"random": random_state()}

    def _rank_state(self) -> dict:
        """What differs between the ranks: their random numbers."""
        return {"random": random_state()}

    def _load_extra_state(self, state: dict) -> None:
        self._resume_random_state = self._state_of_rank(state).get("random")

    def _state_of_rank(self, state: dict) -> dict:
        """This rank's part of a checkpoint; empty if another number of ranks wrote it, which then begin anew."""
        ranks = state.get("ranks", [state])
        return ranks[self.local_rank] if len(ranks) == world_size() else {}
