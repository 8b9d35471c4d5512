"""IFVD: how close every pixel lies to the mean of its class."""

from __future__ import annotations

from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features
from nnunet_kd.losses.labels import class_directions, class_masks, inverse_length
from nnunet_kd.losses.precision import full_precision


class IFVD(Loss):
    r"""Intra-class feature variation distillation.

    .. math:: L = \mathrm{mean}_i (M^s_i - M^t_i)^2, \quad M_i = \cos(f_i, \mu_{y_i})

    with the mean :math:`\mu_c` of the features of class c in the same sample. The mean runs over all N*P pixels; one
    without annotation counts as 0, as in the original. Teacher and student may differ in channels.

    Source: Wang et al., "Intra-class feature variation distillation for semantic segmentation", ECCV 2020; weight 200
    there, at the same reduction. The original loops over the classes; here they share two matrix products.

    Args:
        classes: number of annotated classes, background included; labels are 0 ... classes - 1.
    """

    name = "ifvd"
    reads = "features"
    weight = 200.0
    needs_target = True

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"IFVD needs at least one class, got classes = {classes}")
        self.classes = classes

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Student `(B, K, *S)`, teacher `(B, K', *S)` (detached), labels `(B, *any size)` -> scalar.

        Raises:
            ValueError: shapes that do not fit each other, or no target.
        """
        check_features(student, teacher)
        masks = class_masks(target, self.classes, student)
        return (_closeness(student.flatten(2), masks) - _closeness(teacher.detach().flatten(2), masks)).square().mean()


def _closeness(features: Tensor, masks: Tensor) -> Tensor:
    # cosine of every pixel with its own class's mean `(B, P)`, 0 where it belongs to none
    along = (class_directions(features, masks) @ features * masks).sum(1)
    return along * inverse_length(features, 1).squeeze(1)
