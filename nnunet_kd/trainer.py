"""nnU-Net trainers: when to seed, build, step, log, save and resume. The only file that subclasses nnU-Net.

nnU-Net's own step, loss, optimizer and validation run unchanged through ``super()``: a distilling step hands them a batch
with the views appended and a loss that adds the distillation terms while a step is open.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context

from nnunet_kd.annotations import Annotations
from nnunet_kd.cascade import check_predictions, predictions_of
from nnunet_kd.checkpoints import cannot_write, check_writable, load_checkpoint, numpy_numbers_allowed, save_atomically
from nnunet_kd.config import SECTION, read_config
from nnunet_kd.distiller import Distiller
from nnunet_kd.errors import KDError, print_user_errors_in_one_line
from nnunet_kd.files import sha256
from nnunet_kd.guard import SkipStep, StepGuard, all_finite, require_finite
from nnunet_kd.losses import full_precision
from nnunet_kd.mixins import check_order
from nnunet_kd.plans import require_environment
from nnunet_kd.progress_picture import plot_terms
from nnunet_kd.seeds import of_all_ranks, random_state, seed_everything, set_random_state
from nnunet_kd.stages import StageTable, StageTap, stage_table, unwrap
from nnunet_kd.step import Step
from nnunet_kd.teacher import load_teacher, resolve_folder, teacher_files, teacher_folds
from nnunet_kd.workers import end_with_parent

print_user_errors_in_one_line()

_CLIP = 12.0  # nnU-Net's norm of the student's gradient


class nnUNetTrainerScheduled(nnUNetTrainer):
    """Plain nnU-Net training with the schedule and seed of the plans section "nnunet_kd".

    For teachers (``nnunet-kd plan --role teacher``) and undistilled controls (on the student's plans). With
    ``nnUNet_n_proc_DA=0`` a seed fixes every batch; with loader workers nnU-Net leaves their order to chance.
    """

    preset: str | None = "student"
    _log_keys: tuple[str, ...] | list[str] = ()  # what a step reports beside nnU-Net's loss

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # fmt: skip # noqa: B008
        check_order(type(self), nnUNetTrainerScheduled, nnUNetTrainer)
        self.kd = read_config(plans, self.preset, type(self).__name__)
        if configuration not in plans["configurations"]:
            have = ", ".join(plans["configurations"])
            raise KDError(f'plans "{plans["plans_name"]}" have no configuration {configuration}, only {have}: pass {have}')
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

    @property
    def _autocast(self):
        """The precision of a step: nnU-Net's on CUDA, the plans' on a CPU."""
        if self.device.type == "cuda":
            return torch.autocast("cuda")
        return torch.autocast("cpu", torch.bfloat16) if self._half_on_cpu else dummy_context()

    @property
    def _half_on_cpu(self) -> bool:
        return self.device.type == "cpu" and self.kd.schedule.cpu_precision == "bfloat16"

    def _build_loss(self):
        plain = super()._build_loss()
        full = full_precision(lambda output, target: plain(output, target)) if self._half_on_cpu else plain

        def loss(output, target):
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

    def configure_optimizers(self, *stage: str):
        optimizer, scheduler = super().configure_optimizers(*stage)  # Primus's have stages: warm-up and training
        optimizer.register_step_pre_hook(self._check_gradients)
        optimizer.register_step_post_hook(self._note_step)
        return optimizer, scheduler

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_) -> None:
        # with a scaler, nnU-Net has checked them; in DDP they are those of all ranks, so all ranks find the same
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if self.grad_scaler is None and not all_finite(gradients):
            raise SkipStep("the gradient is not finite")

    def _note_step(self, *_) -> None:
        self._stepped = True

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step. One with NaN or Inf in it is named, counted and leaves everything as it was (guard.py)."""
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

    def on_train_epoch_end(self, train_outputs: list[dict]):
        taken = [{**o, "loss": np.asarray(o["loss"])} for o in train_outputs if np.isfinite(o["loss"])]
        super().on_train_epoch_end(taken or [{"loss": np.asarray(np.nan)}])
        self.guard.end_epoch(len(train_outputs))

    def on_validation_epoch_end(self, val_outputs: list[dict]):
        finite = [float(o["loss"]) for o in val_outputs if np.isfinite(o["loss"])]
        bad = len(val_outputs) - len(finite)
        if bad and finite:
            mean = np.asarray(np.mean(finite))  # in their place: in DDP every rank reports equally many
            val_outputs = [o if np.isfinite(o["loss"]) else {**o, "loss": mean} for o in val_outputs]
            self.print_to_log_file(f"WARNING: {bad} validation batches with NaN or Inf in their loss, left out of val_loss")
        super().on_validation_epoch_end(val_outputs)

    def validation_step(self, batch: dict) -> dict:
        with self._autocast:
            return super().validation_step(batch)

    def initialize(self):
        # the same seed gives every method the same initial student
        seed_everything(self.kd.seed)
        super().initialize()
        channels = getattr(getattr(self.network, "encoder", None), "output_channels", None)
        if self._half_on_cpu and channels and channels[0] < 16 and len(self.configuration_manager.patch_size) == 2:
            # in bfloat16 narrow networks are 1.7 times faster this way round, wide ones slower (docs/speed.md)
            self.network.to(memory_format=torch.channels_last)

    def on_train_start(self):
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

    def on_epoch_end(self):
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
        checkpoint[SECTION] = self._extra_state() | ({"ranks": ranks} if len(ranks) > 1 else {})
        save_atomically(checkpoint, Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """nnU-Net's continuation plus our own key, from a file that was read safely.

        nnU-Net itself reads checkpoints in a way that runs whatever code they ask for. What :func:`load_checkpoint` has
        accepted asks for none.

        Raises:
            KDError: the file is missing, damaged, or holds what no nnU-Net checkpoint holds.
        """
        checkpoint = load_checkpoint(filename_or_checkpoint)
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
        self._resume_random_state = self._own(state).get("random")

    def _own(self, state: dict) -> dict:
        """This rank's part of a checkpoint; empty if another number of ranks wrote it, which then begin anew."""
        ranks = state.get("ranks", [state])
        world = dist.get_world_size() if self.is_ddp else 1
        return ranks[self.local_rank] if len(ranks) == world else {}


class nnUNetTrainerDistillation(nnUNetTrainerScheduled):
    """Trains a light student on nnU-Net's loss plus the distillation terms of the plans' preset.

    The teacher lives beside ``self.network``, never in it: checkpoints hold the plain student, and ``--val`` and
    prediction need no teacher. Subclasses name the preset they stand for.
    """

    preset = None

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # fmt: skip # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.distiller: Distiller | None = None
        self.teacher = None
        self._tap: StageTap | None = None
        self._step: Step | None = None
        self._values: dict[str, float] = {}
        self._iteration = 0

    def configure_optimizers(self, *stage: str):
        # here the student exists and is not wrapped in DDP yet
        if self.distiller is None:
            self._build_distiller()
        optimizer, scheduler = super().configure_optimizers(*stage)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in self.distiller.learned):
            optimizer.add_param_group({"params": self.distiller.learned})
            optimizer.register_step_pre_hook(self._clip_learned)
        return optimizer, scheduler

    def _clip_learned(self, *_) -> None:
        # nnU-Net clips the student's gradient alone; when the optimizer steps, a scaler has unscaled this one too
        torch.nn.utils.clip_grad_norm_(self.distiller.learned, _CLIP)

    def _build_distiller(self) -> None:
        tables, settings = None, self.kd.teacher
        self.annotations = Annotations(self.label_manager)
        if self.kd.need_alignment or not all(s.on_logits for s in self.kd.loss_settings):
            stages = settings.stages
            teacher = StageTable.from_lists(stages.family, stages.channels, stages.strides)
            tables = {"teacher": teacher, "student": stage_table(self.network)}
        self.distiller = Distiller(
            self.kd,
            unwrap(self.network),
            tables,
            self.configuration_manager.patch_size,
            self.label_manager.num_segmentation_heads,
            self.label_manager.has_regions,
            self.annotations.num_classes,
            self.configuration_manager.use_mask_for_norm,
            self.device,
        )
        if self.is_ddp:
            self.distiller.distribute([self.local_rank] if self.device.type == "cuda" else None)
        if self.distiller.needs_features:
            self._tap = StageTap(self.network, decoder=self.distiller.needs_decoder_stages)
        self._log_keys = ["seg_loss", *self.distiller.log_keys]
        for key in self._log_keys:
            self.logger.local_logger.my_fantastic_logging.setdefault(f"kd/{key}", [])

    def on_train_start(self):
        if not self.was_initialized:
            self.initialize()
        if self.distiller.needs_teacher:
            if resolve_folder(self.kd.teacher.folder).resolve() == Path(self.output_folder_base).resolve():
                raise KDError(
                    f"teacher and student are the same folder, {self.output_folder_base}: the training would overwrite its "
                    "teacher; plan the student under another name (`nnunet-kd plan --name NAME`)"
                )
            self.teacher = load_teacher(
                self.kd.teacher, self.fold, self.plans_manager.plans, self.configuration_name, self.dataset_json
            ).to(self.device)
            self._check_teacher_sees_no_validation_case()
            self.distiller.attach(self.teacher)
        super().on_train_start()
        if self.teacher is not None:
            self._teacher_digest = self.teacher.digest()
            self.print_to_log_file(f"teacher {self.kd.teacher.folder}, weights {self._teacher_digest[:16]}")
            self._teacher_files = {file: sha256(file) for file in teacher_files(self.kd.teacher, self.fold)}
            for file, digest in self._teacher_files.items():
                self.print_to_log_file(f"teacher file {file}, SHA-256 {digest}")

    def on_train_end(self):
        super().on_train_end()
        if self.teacher is not None:
            same = self.teacher.digest() == self._teacher_digest
            self.print_to_log_file(f"teacher weights after training: {'unchanged' if same else 'CHANGED'}")
            same = all(sha256(file) == digest for file, digest in self._teacher_files.items())
            self.print_to_log_file(f"teacher file after training: {'unchanged' if same else 'CHANGED'}")

    def _check_teacher_sees_no_validation_case(self) -> None:
        others = [fold for fold in teacher_folds(self.kd.teacher, self.fold) if str(fold) != str(self.fold)]
        if others:
            self.print_to_log_file(
                f"WARNING: the teacher is of fold {', '.join(map(str, others))}, the student trains fold {self.fold}: that "
                'teacher has seen the student\'s validation cases, so validation Dice is optimistic. Use "fold": "same".'
            )

    def _build_loss(self):
        plain = super()._build_loss()

        def loss(output, target):
            return plain(output, target) if self._step is None else self._distillation_loss(plain, output, target)

        return loss

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self._iteration = 0

    def _train_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device, non_blocking=True)
        target = [t.to(self.device, non_blocking=True) for t in _as_list(batch["target"])]
        progress = (self.current_epoch + self._iteration / self.num_iterations_per_epoch) / self.num_epochs
        self._iteration += 1
        read, distiller = self.annotations, self.distiller
        onehot = read.onehot(target[0]) if distiller.needs_onehot else None
        labels = read.classes(target[0]) if distiller.pair_losses is not None else None
        with self._autocast:
            step = distiller.prepare(data, onehot, read.mask(target[0]), progress, labels)
        all_views = self.kd.views is not None and self.kd.views.student_loss == "all"
        times = step.views + 1 if all_views else 1
        sees_views = all_views or self.kd.terms.kd is not None or labels is not None or distiller.needs_features_in(step.phase)
        repeated = [t.repeat(times, *[1] * (t.ndim - 1)) for t in target]
        seen = {
            **batch,
            "data": step.data if sees_views else data,
            "target": repeated if isinstance(batch["target"], list) else repeated[0],
        }
        self._step, self._values = step, dict.fromkeys(self._log_keys, float("nan"))
        if self._tap is not None:
            self._tap.enabled = True
        try:
            result = super()._train_step(seen)
            try:
                self._values.update(self.distiller.align(step))
            except SkipStep as skip:  # the student's own step stands
                self.guard.skipped(str(skip), batch)
        finally:
            self._step = None
            if self._tap is not None:
                self._tap.enabled, self._tap.features = False, None
        return {**result, **{k: self._values.get(k, float("nan")) for k in self._log_keys}}

    def _distillation_loss(self, plain, output, target) -> torch.Tensor:
        step = self._step
        outputs = _as_list(output)
        rows = _as_list(target)[0].shape[0]
        own = [o[:rows] for o in outputs]
        total = plain(own if isinstance(output, list | tuple) else own[0], target)
        self._values["seg_loss"] = float(total.detach())
        step.student_logits = outputs[0]
        if self._tap is not None:
            step.student_features = self._tap.take()
        read = {}
        for name, (weight, value) in self.distiller.terms(step).items():
            self._values[name] = float(value.detach())
            if weight > 0:
                total = total + weight * value
                read[name] = self._values[name]
        require_finite(read, self.device)
        return total

    def on_train_epoch_end(self, train_outputs: list[dict]):
        super().on_train_epoch_end([{"loss": o["loss"]} for o in train_outputs])
        for key in self._log_keys:
            values = np.array([o[key] for o in train_outputs], dtype=float)
            values = values[np.isfinite(values)]
            mean = float(values.mean()) if len(values) else float("nan")
            self.logger.log(f"kd/{key}", mean, self.current_epoch)
        shown = {k: v for k in self._log_keys if np.isfinite(v := self.logger.get_value(f"kd/{k}", -1))}
        phase = self.distiller.phase(self.current_epoch / self.num_epochs)
        self.print_to_log_file(f"{phase}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))

    def on_epoch_end(self):
        super().on_epoch_end()
        done = self.current_epoch
        if self.local_rank == 0 and (done % self.save_every == 0 or done == self.num_epochs):
            logged = self.logger.local_logger.my_fantastic_logging
            plot_terms({k: logged[f"kd/{k}"] for k in self._log_keys}, Path(self.output_folder) / "progress_distillation.png")

    def _extra_state(self) -> dict:
        return {**super()._extra_state(), "distiller": self.distiller.state_dict()}

    def _rank_state(self) -> dict:
        return {**super()._rank_state(), "views": self.distiller.generator.get_state().cpu()}

    def _load_extra_state(self, state: dict) -> None:
        super()._load_extra_state(state)
        if "distiller" in state:
            views = self.distiller.generator.get_state()
            self.distiller.load_state_dict(state["distiller"])
            if self.is_ddp:  # the file's are rank 0's
                self.distiller.generator.set_state(self._own(state).get("views", views).cpu())
        logged = self.logger.local_logger.my_fantastic_logging
        for key in self._log_keys:
            # one value per epoch, also where an older checkpoint did not know the key
            values = logged.setdefault(f"kd/{key}", [])
            values.extend([float("nan")] * (self.current_epoch - len(values)))


def _as_list(x) -> list:
    return list(x) if isinstance(x, list | tuple) else [x]
