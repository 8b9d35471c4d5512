"""What the teacher says of a batch: one forward, with the features that are read, and mirrored where the plans ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nnunet_kd.augmentation.mirroring import draw_mirrorings, draw_rows, mirror_rows, mirrored_logits
from nnunet_kd.config.run import Config
from nnunet_kd.distillation.step import Step
from nnunet_kd.networks.stages import StageTap, decode, encode
from nnunet_kd.utils import distributed as ranks

if TYPE_CHECKING:  # its file knows nnU-Net, this one does not
    from nnunet_kd.nnunet_io.teacher import FrozenTeacher


class TeacherReader:
    """Reads a frozen teacher for one run.

    Args:
        decoder_stages: features of the decoder are read too.
        logits_of_views: logits are read of the views too, not of the anchors alone.
    """

    def __init__(self, config: Config, teacher: FrozenTeacher, decoder_stages: bool, logits_of_views: bool) -> None:
        self.config, self.teacher, self._logits_of_views = config, teacher, logits_of_views
        self._tap = StageTap(teacher.network, decoder=True) if decoder_stages else None

    def read(self, step: Step, seen: torch.Tensor, features: bool, generator: torch.Generator) -> list[torch.Tensor]:
        """Give ``step`` the teacher's logits, and the features if they are read; call under no_grad.

        Args:
            seen: `(B, C, *S)`, the anchors first.
            generator: for the copies that KD's mean is over.

        Returns:
            All that the teacher said.
        """
        axes, drawn = self._draw(step.batch, len(seen) // step.batch, step.iteration)
        mirrored = mirror_rows(seen, axes, drawn)
        logits, stages = self._forward(mirrored, step.batch, features)
        step.teacher_logits = mirror_rows(logits, axes, drawn)
        said = [step.teacher_logits]
        if features:
            step.teacher_features = [mirror_rows(stage, axes, drawn) for stage in stages]
            said += step.teacher_features
        kd = self.config.terms.kd
        if kd is not None and kd.mirrorings:
            rows = step.batch if kd.target == "anchor" else len(seen)
            copies = draw_mirrorings(self.teacher.mirrorings, kd.mirrorings, generator)
            step.mirrored_logits = mirrored_logits(self.teacher, seen[:rows], step.teacher_logits[:rows], copies)
            said.append(step.mirrored_logits)
        return said

    def _draw(self, batch: int, times: int, iteration: int) -> tuple[Sequence[int], torch.Tensor]:
        axes = self.teacher.mirror_axes if self.config.mirrored_teacher else ()
        # random numbers of the step's own: the views stay the controls', and a continued training needs no further state
        seed = ranks.own_seed(self.config.seed) + 15_485_863 * iteration
        generator = torch.Generator().manual_seed(seed)
        # batch by batch: what is drawn for the anchors does not depend on whether the views are read too
        return axes, torch.cat([draw_rows(axes, batch, generator) for _ in range(times)], dim=1)

    def _forward(self, seen: torch.Tensor, batch: int, features: bool) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        network = self.teacher.network
        if not features:
            return self.teacher(seen), None
        if self._tap is not None:
            self._tap.enabled = True
            return self.teacher(seen), self._tap.take()
        stages = encode(network, seen)
        return decode(network, stages if self._logits_of_views else [stage[:batch] for stage in stages]), stages
