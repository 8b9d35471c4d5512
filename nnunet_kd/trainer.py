"""nnU-Net trainers: when to seed, build, step, log, save and resume. The only file that subclasses nnU-Net.

nnU-Net's own step, loss, optimizer and validation run unchanged through ``super()``: a distilling step hands them a batch
with the views appended and a loss that adds the distillation terms while a step is open.
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context

from nnunet_kd.annotations import Annotations
from nnunet_kd.checkpoints import save_atomically
from nnunet_kd.config import SECTION, read_config
from nnunet_kd.distiller import Distiller
from nnunet_kd.errors import KDError, print_user_errors_in_one_line
from nnunet_kd.losses import full_precision
from nnunet_kd.progress_picture import plot_terms
from nnunet_kd.stages import StageTable, StageTap, stage_table, unwrap
from nnunet_kd.step import Step
from nnunet_kd.teacher import load_teacher, teacher_folds

print_user_errors_in_one_line()

_CLIP = 12.0  # nnU-Net's norm of the student's gradient


class nnUNetTrainerScheduled(nnUNetTrainer):
    """Plain nnU-Net training with the schedule and seed of the plans section "nnunet_kd".

    For teachers (``nnunet-kd plan --role teacher``) and undistilled controls (on the student's plans). With
    ``nnUNet_n_proc_DA=0`` a seed fixes every batch; with loader workers nnU-Net leaves their order to chance.
    """

    preset: str | None = "student"

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # fmt: skip # noqa: B008
        self.kd = read_config(plans, self.preset, type(self).__name__)
        super().__init__(plans, configuration, fold, dataset_json, device)
        schedule = self.kd.schedule
        self.num_epochs = schedule.epochs
        self.num_iterations_per_epoch = schedule.iterations_per_epoch
        self.num_val_iterations_per_epoch = schedule.val_iterations_per_epoch
        self.initial_lr = schedule.initial_lr
        self.save_every = schedule.save_every
        self._resume_random_state: dict | None = None

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
        if not self._half_on_cpu:
            return plain

        @full_precision
        def loss(output, target):
            return plain(output, target)

        return loss

    def train_step(self, batch: dict) -> dict:
        with self._autocast:
            return super().train_step(batch)

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

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus our own key, written atomically."""
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        if buffer.tell() == 0:
            return  # not rank 0, or checkpointing is disabled
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint[SECTION] = self._extra_state()
        save_atomically(checkpoint, Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False)
        self._load_extra_state(checkpoint.get(SECTION, {}))

    def _extra_state(self) -> dict:
        return {"random": random_state()}

    def _load_extra_state(self, state: dict) -> None:
        self._resume_random_state = state.get("random")


class nnUNetTrainerDistillation(nnUNetTrainerScheduled):
    """Trains a light student on nnU-Net's loss plus the distillation terms of the plans' preset.

    The teacher lives beside ``self.network``, never in it: checkpoints hold the plain student, and ``--val`` and
    prediction need no teacher. Subclasses name the preset they stand for.
    """

    preset = None

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # fmt: skip # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise KDError("cascades are not supported yet: distil 3d_fullres, 3d_lowres or 2d")
        self.distiller: Distiller | None = None
        self.teacher = None
        self._tap: StageTap | None = None
        self._step: Step | None = None
        self._values: dict[str, float] = {}
        self._iteration = 0

    def configure_optimizers(self):
        # here the student exists and is not wrapped in DDP yet
        self._build_distiller()
        optimizer, scheduler = super().configure_optimizers()
        if self.distiller.learned:
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
            self.teacher = load_teacher(
                self.kd.teacher, self.fold, self.plans_manager.plans, self.configuration_name, self.dataset_json
            ).to(self.device)
            self._check_teacher_sees_no_validation_case()
            self.distiller.attach(self.teacher)
        super().on_train_start()
        if self.teacher is not None:
            self._teacher_digest = self.teacher.digest()
            self.print_to_log_file(f"teacher {self.kd.teacher.folder}, weights {self._teacher_digest[:16]}")

    def on_train_end(self):
        super().on_train_end()
        if self.teacher is not None:
            same = self.teacher.digest() == self._teacher_digest
            self.print_to_log_file(f"teacher weights after training: {'unchanged' if same else 'CHANGED'}")

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

    def train_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device, non_blocking=True)
        target = [t.to(self.device, non_blocking=True) for t in _as_list(batch["target"])]
        progress = (self.current_epoch + self._iteration / self.num_iterations_per_epoch) / self.num_epochs
        read, distiller = self.annotations, self.distiller
        onehot = read.onehot(target[0]) if distiller.needs_onehot else None
        labels = read.classes(target[0]) if distiller.pair_losses is not None else None
        with self._autocast:
            step = distiller.prepare(data, onehot, read.mask(target[0]), progress, labels)
        all_views = self.kd.views is not None and self.kd.views.student_loss == "all"
        times = step.views + 1 if all_views else 1
        sees_views = all_views or self.kd.terms.kd is not None or labels is not None or distiller.needs_features_in(step.phase)
        repeated = [t.repeat(times, *[1] * (t.ndim - 1)) for t in target]
        batch = {
            **batch,
            "data": step.data if sees_views else data,
            "target": repeated if isinstance(batch["target"], list) else repeated[0],
        }
        self._step, self._values = step, dict.fromkeys(self._log_keys, float("nan"))
        if self._tap is not None:
            self._tap.enabled = True
        try:
            result = super().train_step(batch)
            self._values.update(self.distiller.align(step))
        finally:
            self._step = None
            if self._tap is not None:
                self._tap.enabled, self._tap.features = False, None
        self._iteration += 1
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
        for name, (weight, value) in self.distiller.terms(step).items():
            self._values[name] = float(value.detach())
            if weight > 0:
                total = total + weight * value
        return total

    def on_train_epoch_end(self, train_outputs: list[dict]):
        super().on_train_epoch_end([{"loss": o["loss"]} for o in train_outputs])
        for key in self._log_keys:
            values = np.array([o[key] for o in train_outputs], dtype=float)
            mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
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

    def _load_extra_state(self, state: dict) -> None:
        super()._load_extra_state(state)
        if "distiller" in state:
            self.distiller.load_state_dict(state["distiller"])
        logged = self.logger.local_logger.my_fantastic_logging
        for key in self._log_keys:
            # one value per epoch, also where an older checkpoint did not know the key
            values = logged.setdefault(f"kd/{key}", [])
            values.extend([float("nan")] * (self.current_epoch - len(values)))


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict:
    """State of the global random number generators, in types that a safe loader accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    python = random.getstate()
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }


def set_random_state(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])


def _as_list(x) -> list:
    return list(x) if isinstance(x, list | tuple) else [x]
