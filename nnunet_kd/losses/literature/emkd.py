"""EMKD's importance maps and regional affinities. Its third part, the prediction maps, is ``KD(temperature=4)``."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features
from nnunet_kd.losses.labels import class_directions, class_masks
from nnunet_kd.losses.literature.attention import attention_map
from nnunet_kd.losses.precision import full_precision


class IMD(Loss):
    r"""Importance map distillation: where a stage is active, whatever the channel.

    .. math:: L = \frac{1}{N} \sum_n \sum_i (a^s_{ni} - a^t_{ni})^2, \quad
        a_{ni} = \frac{\sum_k |f_{nki}|^p}{\sqrt{\sum_j (\sum_k |f_{nkj}|^p)^2}}

    The sum over the pixels is the published one: the maps have length 1, so that it lies in [0, 2] on any grid, where a mean
    would fall with the number of pixels. That apart it is :class:`nnunet_kd.losses.AT` with p = 4. Teacher and
    student may differ in channels.

    Source: Qin et al., "Efficient medical image segmentation based on knowledge distillation", IEEE TMI 2021; weight 0.9
    there, at the same reduction.

    Args:
        p: a whole number from 1 to 8.
    """

    name = "imd"
    reads = "features"
    weight = 0.9

    def __init__(self, *, p: int = 4) -> None:
        super().__init__()
        if p not in range(1, 9):
            raise ValueError(f"p of IMD must be a whole number from 1 to 8, not {p}")
        self.p = p

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Student `(B, K, *S)`, teacher `(B, K', *S)` (detached) -> scalar; ``target`` is not read.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        check_features(student, teacher)
        difference = attention_map(student, self.p) - attention_map(teacher.detach(), self.p)
        return difference.square().sum(1).mean()


class RAD(Loss):
    r"""Region affinity distillation: how alike the classes look.

    .. math:: L = \mathrm{mean}_{n,\,c<d} (A^s_{ncd} - A^t_{ncd})^2, \quad A_{ncd} = \cos(\mu_{nc}, \mu_{nd})

    with the mean :math:`\mu_{nc}` of the features of class c in sample n. The mean runs over the pairs of classes that a
    sample holds; a sample of a single class says nothing. Teacher and student may differ in channels.

    Source: Qin et al., as :class:`IMD`, weight 0.9 there, for two classes. All pairs of more classes are our extension.

    Args:
        classes: number of annotated classes, background included, at least 2.
    """

    name = "rad"
    reads = "features"
    weight = 0.9
    needs_target = True

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"RAD compares classes and needs at least two, got classes = {classes}")
        self.classes = classes

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Student `(B, K, *S)`, teacher `(B, K', *S)` (detached), labels `(B, *any size)` -> scalar.

        Raises:
            ValueError: shapes that do not fit each other, or no target.
        """
        check_features(student, teacher)
        masks = class_masks(target, self.classes, student)
        present = masks.amax(2)
        pairs = torch.triu(present.unsqueeze(2) * present.unsqueeze(1), diagonal=1)
        difference = _affinities(student, masks) - _affinities(teacher.detach(), masks)
        return (difference.square() * pairs).sum() / pairs.sum().clamp_min(1)


def _affinities(features: Tensor, masks: Tensor) -> Tensor:
    directions = class_directions(features.flatten(2), masks)
    return directions @ directions.transpose(1, 2)
