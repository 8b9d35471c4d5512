"""The teacher's forward in a step: its logits, the features that are read, and mirrored where the plans ask for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnunet_kd.augmentation.mirroring import draw_mirrorings, draw_rows, mirror_rows, mirrored_logits
from nnunet_kd.config.run import Config
from nnunet_kd.distillation.step import DistillationStep
from nnunet_kd.networks.stages import StageTap, decode, encode
from nnunet_kd.networks.teacher import FrozenTeacher
from nnunet_kd.utils import distributed as ranks


class TeacherForward:
    """Runs a frozen teacher on the batches of one run.

    Args:
        decoder_stages: features of the decoder are read too.
    """

    def __init__(self, config: Config, teacher: FrozenTeacher, decoder_stages: bool) -> None:
        self.config, self.teacher = config, teacher
        self._tap = StageTap(teacher.network, decoder=True) if decoder_stages else None

    def __call__(self, step: DistillationStep, generator: torch.Generator) -> list[torch.Tensor]:
        """Give ``step`` the teacher's logits, and the features if its plan reads them; call under no_grad.

        Args:
            generator: for the copies that KD's mean is over.

        Returns:
            All tensors that the step was given.
        """
        data = step.data if step.plan.teacher_views else step.data[: step.batch]
        data = data[:, : self.config.teacher.stages.input_channels]  # a teacher of 3d_fullres reads a cascade's images alone
        axes, flipped = self._draw_flips(step.batch, len(data) // step.batch, step.iteration)
        logits, stages = self._forward(mirror_rows(data, axes, flipped), step)
        step.teacher_logits = mirror_rows(logits, axes, flipped)
        outputs = [step.teacher_logits]
        if stages is not None:
            step.teacher_features = [mirror_rows(stage, axes, flipped) for stage in stages]
            outputs += step.teacher_features
        kd = self.config.terms.kd
        if kd is not None and kd.mirrorings:
            rows = step.batch if kd.target == "anchor" else len(data)
            copies = draw_mirrorings(self.teacher.mirrorings, kd.mirrorings, generator)
            step.mirrored_logits = mirrored_logits(self.teacher, data[:rows], step.teacher_logits[:rows], copies)
            outputs.append(step.mirrored_logits)
        return outputs

    def _draw_flips(self, batch: int, times: int, iteration: int) -> tuple[Sequence[int], torch.Tensor]:
        axes = self.teacher.mirror_axes if self.config.mirrored_teacher else ()
        # random numbers of the step's own: the views stay the controls', and a continued training needs no further state
        seed = ranks.own_seed(self.config.seed) + 15_485_863 * iteration
        generator = torch.Generator().manual_seed(seed)
        # batch by batch: what is drawn for the anchors does not depend on whether the views are read too
        return axes, torch.cat([draw_rows(axes, batch, generator) for _ in range(times)], dim=1)

    def _forward(self, data: torch.Tensor, step: DistillationStep) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        network = self.teacher.network
        if not step.plan.features:
            return self.teacher(data), None
        if self._tap is not None:
            self._tap.enabled = True
            return self.teacher(data), self._tap.take()
        stages = encode(network, data)
        decoded = stages if step.plan.teacher_logits_of_views else [stage[: step.batch] for stage in stages]
        return decode(network, decoded), stages
