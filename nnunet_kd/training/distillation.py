"""The distilling trainer: nnU-Net's step on a batch with the views appended and a loss with the terms added.

The terms themselves are the distiller's business; this file builds it, hands it each batch, logs, saves and resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.forward_plan import plan_forwards
from nnunet_kd.distillation.step import DistillationStep, SegmentationTask, repeat_rows
from nnunet_kd.networks.stages import StageTable, StageTap, stage_table, unwrap
from nnunet_kd.nnunet_io.labels import Annotations
from nnunet_kd.nnunet_io.model_folder import resolve_folder
from nnunet_kd.nnunet_io.teacher_folder import load_teacher, teacher_files, teacher_folds
from nnunet_kd.training.progress_picture import plot_terms
from nnunet_kd.training.scheduled import Heads, nnUNetTrainerScheduled
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import sha256
from nnunet_kd.utils.finite import SkipStep, require_finite

_CLIP = 12.0  # nnU-Net's norm of the student's gradient


class nnUNetTrainerDistillation(nnUNetTrainerScheduled):
    """Trains a light student on nnU-Net's loss plus the distillation terms of the plans' preset.

    The teacher lives beside ``self.network``, never in it: checkpoints hold the plain student, and ``--val`` and
    prediction need no teacher. Subclasses name the preset they stand for.
    """

    preset = None

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.distiller: Distiller | None = None
        self.teacher = None
        self._tap: StageTap | None = None
        self._step: DistillationStep | None = None
        self._values: dict[str, float] = {}
        self._iteration = 0

    def configure_optimizers(self, *stage: str) -> tuple[torch.optim.Optimizer, Any]:
        # here the student exists and is not wrapped in DDP yet
        if self.distiller is None:
            self._build_distiller()
        optimizer, scheduler = super().configure_optimizers(*stage)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in self.distiller.learned):
            optimizer.add_param_group({"params": self.distiller.learned})
            optimizer.register_step_pre_hook(self._clip_learned)
        return optimizer, scheduler

    def _clip_learned(self, *_: Any) -> None:
        # nnU-Net clips the student's gradient alone; when the optimizer steps, a scaler has unscaled this one too
        torch.nn.utils.clip_grad_norm_(self.distiller.learned, _CLIP)

    def _build_distiller(self) -> None:
        tables, settings = None, self.kd.teacher
        self.annotations = Annotations(self.label_manager)
        if any(plan.features for plan in plan_forwards(self.kd).values()):
            stages = settings.stages
            teacher = StageTable.from_lists(stages.family, stages.channels, stages.strides)
            tables = {"teacher": teacher, "student": stage_table(self.network)}
        task = SegmentationTask(
            patch_size=self.configuration_manager.patch_size,
            outputs=self.label_manager.num_segmentation_heads,
            classes=self.annotations.num_classes,
            regions=self.label_manager.has_regions,
            keep_zero=self.configuration_manager.use_mask_for_norm,
        )
        self.distiller = Distiller(self.kd, unwrap(self.network), tables, task, self.device)
        if self.is_ddp:
            self.distiller.distribute([self.local_rank] if self.device.type == "cuda" else None)
        if self.distiller.needs_features:
            self._tap = StageTap(self.network, decoder=self.distiller.needs_decoder_stages)
        self._log_keys = ["seg_loss", *self.distiller.log_keys]
        for key in self._log_keys:
            self.logger.local_logger.my_fantastic_logging.setdefault(f"kd/{key}", [])

    def on_train_start(self) -> None:
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
            if self.kd.mirrored_teacher and not self.teacher.mirror_axes:
                self.print_to_log_file("the teacher was trained without mirroring: it reads the patches as they are")
        autoencoder = self.kd.act.autoencoder if self.kd.act is not None else None
        if autoencoder is not None and self.current_epoch == 0:  # a continued training's checkpoint holds it
            file = resolve_folder(autoencoder)
            self.distiller.alignment.load_autoencoder(file)
            self.print_to_log_file(f"semantic autoencoder of {file}, SHA-256 {sha256(file)}")
        super().on_train_start()
        if self.teacher is not None:
            self._teacher_digest = self.teacher.digest()
            self.print_to_log_file(f"teacher {self.kd.teacher.folder}, weights {self._teacher_digest[:16]}")
            self._teacher_files = {file: sha256(file) for file in teacher_files(self.kd.teacher, self.fold)}
            for file, digest in self._teacher_files.items():
                self.print_to_log_file(f"teacher file {file}, SHA-256 {digest}")

    def on_train_end(self) -> None:
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

    def _build_loss(self) -> Callable[[Heads, Heads], torch.Tensor]:
        plain = super()._build_loss()

        def adjusted(output: Heads, target: Heads) -> torch.Tensor:
            anchors = None if self._step is None else self._step.batch
            return plain(_each(lambda logits: self.distiller.adjusted(logits, anchors), output), target)

        def loss(output: Heads, target: Heads) -> torch.Tensor:
            return adjusted(output, target) if self._step is None else self._distillation_loss(adjusted, output, target)

        return loss

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._iteration = 0

    def _train_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device, non_blocking=True)
        target = _each(lambda t: t.to(self.device, non_blocking=True), batch["target"])
        finest = _as_list(target)[0]
        progress = (self.current_epoch + self._iteration / self.num_iterations_per_epoch) / self.num_epochs
        iteration = self.current_epoch * self.num_iterations_per_epoch + self._iteration
        self._iteration += 1
        annotations, distiller = self.annotations, self.distiller
        onehot = annotations.onehot(finest) if distiller.needs_onehot else None
        labels = annotations.classes(finest) if distiller.needs_labels else None
        with self._autocast:
            step = distiller.prepare(data, onehot, annotations.mask(finest), progress, labels, iteration)
        times = step.views + 1 if step.plan.annotated_views else 1
        student_batch = {
            **batch,
            "data": step.data if step.plan.student_views else data,
            "target": _each(lambda t: repeat_rows(t, times), target),
        }
        self._step, self._values = step, dict.fromkeys(self._log_keys, float("nan"))
        if step.plan.features:
            self._tap.enabled = True
        try:
            result = super()._train_step(student_batch)
            try:
                self._values.update(self.distiller.align(step))
            except SkipStep as skip:  # the student's own step stands
                self.guard.skipped(str(skip), batch)
        finally:
            self._step = None
            if self._tap is not None:
                self._tap.enabled, self._tap.features = False, None
        return {**result, **{k: self._values.get(k, float("nan")) for k in self._log_keys}}

    def _distillation_loss(self, plain: Callable[[Heads, Heads], torch.Tensor], output: Heads, target: Heads) -> torch.Tensor:
        step = self._step
        rows = _as_list(target)[0].shape[0]
        total = plain(_each(lambda o: o[:rows], output), target)
        self._values["seg_loss"] = float(total.detach())
        step.student_logits = _as_list(output)[0]
        if step.plan.features:
            step.student_features = self._tap.take()
        weighted = {}
        for name, (weight, value) in self.distiller.terms(step).items():
            self._values[name] = float(value.detach())
            if weight > 0:
                total = total + weight * value
                weighted[name] = self._values[name]
        require_finite(weighted, self.device)
        return total

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end([{"loss": o["loss"]} for o in train_outputs])
        for key in self._log_keys:
            values = np.array([o[key] for o in train_outputs], dtype=float)
            values = values[np.isfinite(values)]
            mean = float(values.mean()) if len(values) else float("nan")
            self.logger.log(f"kd/{key}", mean, self.current_epoch)
        shown = {k: v for k in self._log_keys if np.isfinite(v := self.logger.get_value(f"kd/{k}", -1))}
        phase = self.distiller.phase(self.current_epoch / self.num_epochs)
        self.print_to_log_file(f"{phase}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))

    def on_epoch_end(self) -> None:
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
                self.distiller.generator.set_state(self._state_of_rank(state).get("views", views).cpu())
        logged = self.logger.local_logger.my_fantastic_logging
        for key in self._log_keys:
            # one value per epoch, also where an older checkpoint did not know the key
            values = logged.setdefault(f"kd/{key}", [])
            values.extend([float("nan")] * (self.current_epoch - len(values)))


def _as_list(x: Heads) -> list[torch.Tensor]:
    return list(x) if isinstance(x, list | tuple) else [x]


def _each(function: Callable[[torch.Tensor], torch.Tensor], x: Heads) -> Heads:
    """``function`` of a head's tensor, or of each head's where deep supervision makes a list of them."""
    return [function(part) for part in x] if isinstance(x, list | tuple) else function(x)
