"""FitNets: the student's features, linearly read, against the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features, pointwise
from nnunet_kd.losses.precision import full_precision


class FitNets(Loss):
    r"""Mean squared error of a learned linear reading W of the student's features.

    .. math:: L = \mathrm{mean} (W f^s - f^t)^2

    The mean runs over samples, pixels and the teacher's channels. W is a 1x1 convolution without bias, learned with the
    student, also where the channels agree: the student owes the teacher its content, not its order of channels. So the
    value is not 0 at equal features.

    Source: Romero et al., "FitNets: hints for thin deep nets", ICLR 2015, as a loss beside the others instead of a
    stage of its own. Weight 10 is CIRKD's (Yang et al., CVPR 2022), with the same mean.

    Args:
        student_channels, teacher_channels: K_s and K_t.
        dims: 2 or 3.

    Raises:
        ValueError: a number of channels below 1, dims other than 2 or 3.
    """

    name = "fitnets"
    reads = "features"
    weight = 10.0

    def __init__(self, *, student_channels: int, teacher_channels: int, dims: int) -> None:
        super().__init__()
        self.channels = student_channels, teacher_channels
        self.regressor = pointwise(student_channels, teacher_channels, dims)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Features `(B, K_s, *S)` and `(B, K_t, *S)` -> scalar; ``target`` is not used."""
        check_features(student, teacher, *self.channels)
        return F.mse_loss(self.regressor(student), teacher.detach())
