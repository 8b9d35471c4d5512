"""One training step's distillation: views -> features -> semantic vectors -> terms.

Knows tensors and modules, not nnU-Net's trainer. A step runs

1. ``prepare``: views of the batch, one teacher forward over all that is needed of them;
2. ``terms``: the distillation terms from the student's logits and encoder features (their one forward is the trainer's);
3. ``align``: a step of the P-SAE or of the MSANs, on detached features.
"""

from __future__ import annotations

import torch
from torch import nn

from nnunet_kd.augmentation.views import Views
from nnunet_kd.config.run import Config
from nnunet_kd.distillation.alignment import Alignment, AlignmentTrainer
from nnunet_kd.distillation.forward_plan import phase_at, plan_forwards
from nnunet_kd.distillation.gkd_terms import MSANTerms
from nnunet_kd.distillation.stage_losses import SectionLosses
from nnunet_kd.distillation.step import DistillationStep, SegmentationTask, TermValue, repeat_rows, rows_of
from nnunet_kd.distillation.teacher_forward import TeacherForward
from nnunet_kd.losses import adjusted_logits, balanced_logits, class_frequencies, logit_kd
from nnunet_kd.networks.stages import StageTable, pair_stages
from nnunet_kd.networks.teacher import FrozenTeacher
from nnunet_kd.utils import distributed as ranks
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.finite import all_finite, skip_if

_FREQUENCY_MOMENTUM = 0.05
QUALITY = ("reconstruction", "consistency", "agreement")


class Distiller:
    """Views, MSANs and terms of one run.

    Args:
        config: the run's settings.
        tables: stage tables of teacher and student (none for runs that read no stage features).
    """

    def __init__(
        self,
        config: Config,
        student: nn.Module,
        tables: dict[str, StageTable] | None,
        task: SegmentationTask,
        device: torch.device,
    ) -> None:
        self.config, self.regions, self.device = config, task.regions, device
        self.student, self.teacher, self._teacher_forward = student, None, None
        self.forward_plans = plan_forwards(config)
        self.losses = {loss.key: loss for loss in config.active_losses}
        # a generator of their own: drawing views leaves the loader's random numbers, and so the batches, as they are
        self.generator = torch.Generator(device=device).manual_seed(ranks.own_seed(config.seed))
        self.frequencies: torch.Tensor | None = None
        self.views = Views(config.views.preset, task.keep_zero) if config.views else None
        self._images = len(task.keep_zero)
        self.alignment: Alignment | None = None
        self.aligner: AlignmentTrainer | None = None
        if config.need_alignment:
            pairs = pair_stages(tables["teacher"], tables["student"], config.msan.stages)
            if config.terms.cross is not None and all(pair.decoder for pair in pairs):
                raise KDError(
                    f'"nnunet_kd.terms.cross" swaps encoder stages, and msan.stages {config.msan.stages} has none: add one, '
                    'such as "bottleneck", or set "cross" to null'
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.alignment = Alignment(config.msan, config.act, pairs, tables, task.patch_size, task.outputs, task.regions)
            self.alignment.to(device)
            self.aligner = AlignmentTrainer(self.alignment)
            self.msan_terms = MSANTerms(config.terms, self.alignment, student, task.regions, self.adjusted)
        self.pair_losses: SectionLosses | None = None
        if config.loss_settings:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + 1)
                losses = SectionLosses(config.loss_settings, tables, len(task.patch_size), task.classes, task.regions)
                self.pair_losses = losses.to(device)
        self._distributed: nn.Module | None = None

    @property
    def needs_teacher(self) -> bool:
        return any(plan.teacher for plan in self.forward_plans.values())

    @property
    def needs_onehot(self) -> bool:
        return self.alignment is not None

    @property
    def needs_labels(self) -> bool:
        return self.pair_losses is not None

    @property
    def needs_features(self) -> bool:
        return any(plan.features for plan in self.forward_plans.values())

    @property
    def needs_decoder_stages(self) -> bool:
        return any(plan.decoder_stages for plan in self.forward_plans.values())

    @property
    def learned(self) -> list[torch.nn.Parameter]:
        """What the losses learn themselves: for nnU-Net's optimizer, beside the student's parameters."""
        return [] if self.pair_losses is None else list(self.pair_losses.parameters())

    @property
    def log_keys(self) -> list[str]:
        """Names of the values a step may report, in the order of the pictures."""
        keys = [name for key in self.losses for name in (("cross_ts", "cross_st") if key == "cross" else (key,))]
        if self.alignment is not None:
            keys += [f"act_{q}_{n}" for q in QUALITY for n in ("teacher", "student")]
            keys += [f"act_semantic_{n}" for n in ("teacher", "student") if self.alignment.autoencoder is not None]
            keys += [f"act_decoded_{n}" for n in ("teacher", "student") if self.config.act.decoded]
            keys += ["act_alignment_student"] if self.config.act.alignment else []
            keys += ["act_autoencoder"] if self.alignment.trains_autoencoder else []
        return keys

    def distribute(self, device_ids: list | None) -> None:
        """Average the gradients of what the losses learn across ranks."""
        if self.learned:
            self._distributed = nn.parallel.DistributedDataParallel(self.pair_losses, device_ids=device_ids)

    def attach(self, teacher: FrozenTeacher) -> None:
        """Give the distiller its teacher, once training starts.

        Raises:
            KDError: KD asks for more mirrorings than the teacher was trained with.
        """
        kd, trained_with = self.config.terms.kd, len(teacher.mirrorings)
        if kd is not None and (kd.mirrorings or 0) > trained_with:
            raise KDError(
                f'"nnunet_kd.terms.kd.mirrorings" is {kd.mirrorings}, the teacher was trained with {trained_with} mirrorings: '
                + (f"write {trained_with} or less" if trained_with else "remove the key")
            )
        self.teacher = teacher
        self._teacher_forward = TeacherForward(self.config, teacher, self.needs_decoder_stages)

    def phase(self, progress: float) -> str:
        """The phase at this fraction of the training: "warm-up", "act" or "distil"."""
        return phase_at(self.config, progress)

    def adjusted(self, logits: torch.Tensor, anchors: int | None = None) -> torch.Tensor:
        """The student's logits `(n, C, *S)` as its losses read them: the first ``anchors`` rows are of anchors (all, if None),
        the others of views."""
        anchor, view = self.config.logit_adjustment or 0.0, self.config.logit_adjustment_views
        if view is None or view == anchor:
            return adjusted_logits(logits, anchor, self.regions)
        rows = torch.full((len(logits),), float(view), device=logits.device)
        rows[:anchors] = anchor
        return adjusted_logits(logits, rows, self.regions)

    def prepare(
        self,
        data: torch.Tensor,
        onehot: torch.Tensor | None,
        mask: torch.Tensor | None,
        progress: float,
        labels: torch.Tensor | None = None,
        iteration: int = 0,
    ) -> DistillationStep:
        """Draw the views and run the teacher.

        Args:
            data: ``(B, C, *S)``, nnU-Net's augmented patches (the anchors); a cascade's one-hot maps behind the images.
            onehot: annotation ``(B, L, *S)`` for the P-SAE.
            mask: ``(B, 1, *S)``, True where annotated; None without an ignore label.
            labels: class numbers ``(B, *S)`` for the losses between stages, -1 where not annotated.
            iteration: number of the step since the training began, for terms that leave steps out.

        Raises:
            SkipStep: NaN or Inf in the teacher's outputs.
        """
        plan = self.forward_plans[self.phase(progress)]
        views = [self._view(data) for _ in range(plan.views)]
        # a part that reads a share of the batch takes the first of a random order: nnU-Net puts forced foreground last
        order = torch.randperm(len(data), generator=self.generator, device=data.device)
        everything = torch.cat([data, *views]) if views else data
        step = DistillationStep(everything, plan, progress, order, onehot, mask, labels, iteration)
        if self.teacher is None or not plan.teacher:
            return step
        with torch.no_grad():
            outputs = self._teacher_forward(step, self.generator)
            # before a running mean or a memory takes them in
            skip_if("" if all_finite(outputs) else "the teacher's prediction is not finite", self.device)
            self._observe_frequencies(step)
        step.frequencies = self.frequencies
        return step

    def _view(self, data: torch.Tensor) -> torch.Tensor:
        """A view of the images; the previous stage's segmentation of a cascade stays as it is."""
        view = self.views(data[:, : self._images], self.generator)
        return view if data.shape[1] == self._images else torch.cat([view, data[:, self._images :]], dim=1)

    def _observe_frequencies(self, step: DistillationStep) -> None:
        """How often the teacher predicts each class on the anchors, as a running mean."""
        settings = self.config.terms
        if not any(t is not None and t.balance for t in (settings.kd, settings.cross)):
            return
        now = class_frequencies(step.teacher_logits[: step.batch], self.regions, step.mask)
        ranks.average(now)
        if self.frequencies is None:
            self.frequencies = now
        else:
            self.frequencies = torch.lerp(self.frequencies, now, _FREQUENCY_MOMENTUM)

    def terms(self, step: DistillationStep) -> dict[str, TermValue]:
        """The losses that are on now, by their name in the log. ``step`` must hold the student's logits and features."""
        values: dict[str, tuple[str, float, torch.Tensor]] = {}  # loss, factor on its weight, value
        if self.config.terms.kd is not None:
            values["kd"] = ("kd", 1.0, self._kd(step))
        if self.pair_losses is not None:
            values |= {key: (key, 1.0, value) for key, value in self._stage_losses(step).items()}
        if step.plan.vector_terms:
            values |= self.msan_terms.values(step, self.teacher.network)
        # the one place where a value gets its weight; the trainer multiplies. A weight by gradients belongs here
        return {
            key: TermValue(self.losses[loss].weight_at(step.progress, self.config.ramp) * factor, value)
            for key, (loss, factor, value) in values.items()
        }

    def align(self, step: DistillationStep) -> dict[str, float]:
        """The alignment networks' own step: the P-SAE while warming up, then ACT; afterwards only if ``joint``."""
        if step.plan.trains is None:
            return {}
        if step.plan.trains == "autoencoder":
            return self.aligner.autoencoder_step(step.onehot, step.mask)
        end = self.config.act.end if self.config.msan.after_act == "frozen" else 1.0
        remaining = (end - step.progress) / (end - self.config.act.start)
        anchors = step.share(self.config.act.share)
        features, logits = {}, {}
        for name, feats, outputs in (
            ("teacher", step.teacher_features, step.teacher_logits),
            ("student", step.student_features, step.student_logits),
        ):
            rows = torch.cat([anchors + k * step.batch for k in range(len(feats[0]) // step.batch)])
            features[name], logits[name] = [f[rows].detach() for f in feats], outputs[anchors].detach()
        onehot = step.onehot[anchors]
        mask = None if step.mask is None else step.mask[anchors]
        # bfloat16 has float32's range; float16 would need a gradient scaler of its own here
        half = self.device.type == "cpu" and self.config.schedule.cpu_precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            networks = {"teacher": self.teacher.network, "student": self.student}
            return self.aligner.msan_step(networks, features, logits, onehot, remaining, self.regions, mask)

    def state_dict(self) -> dict:
        """Everything an exact continuation needs, the teacher excepted."""
        state = {"generator": self.generator.get_state(), "frequencies": self.frequencies}
        if self.pair_losses is not None:
            state["losses"] = self.pair_losses.state_dict()
        if self.alignment is not None:
            state["alignment"] = self.alignment.state_dict()
            state["optimizers"] = self.aligner.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.frequencies = None if state.get("frequencies") is None else state["frequencies"].to(self.device)
        if self.pair_losses is not None:
            self.pair_losses.load_state_dict(state["losses"])
        if self.alignment is not None:
            self.alignment.load_state_dict(state["alignment"])
            self.aligner.load_state_dict(state["optimizers"])

    def _kd(self, step: DistillationStep) -> torch.Tensor:
        settings = self.config.terms.kd
        student, mask = self.adjusted(step.student_logits, step.batch), step.mask
        teacher = step.teacher_logits if step.mirrored_logits is None else step.mirrored_logits
        times = student.shape[0] // step.batch
        teacher = rows_of(teacher, step.batch, times, settings.target)
        if mask is not None:
            mask = repeat_rows(mask, times)
        if settings.balance:
            teacher = balanced_logits(teacher, step.frequencies, settings.balance, self.regions)
        return logit_kd(student, teacher, settings.temperature, self.regions, mask)

    def _stage_losses(self, step: DistillationStep) -> dict[str, torch.Tensor]:
        losses = self._distributed or self.pair_losses
        features = step.student_features or [], step.teacher_features or []
        student = self.adjusted(step.student_logits, step.batch)
        return losses(*features, student, step.teacher_logits, step.labels, step.batch)
