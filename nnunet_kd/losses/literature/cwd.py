"""CWD: every channel as a distribution over the pixels."""

from __future__ import annotations

from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features, check_logits, match_channels
from nnunet_kd.losses.kd import logit_kd
from nnunet_kd.losses.precision import full_precision


class CWDLogits(Loss):
    r"""Channel-wise distillation of the logits.

    .. math:: L = \frac{T^2}{N C} \sum_{n,c} \mathrm{KL}(\phi^t_{nc} \| \phi^s_{nc}), \quad
        \phi_{nc} = \mathrm{softmax}_i(z_{nci} / T)

    The softmax runs over the pixels i of a channel, so that overlapping regions need nothing special, and no pixel is left
    out. The sum over the pixels belongs to the divergence: there is no mean over them.

    Source: Shu et al., "Channel-wise knowledge distillation for dense prediction", ICCV 2021; T = 4, weight 3 there, at the
    same reduction.

    Args:
        temperature: T > 0.
    """

    name = "cwd-logits"
    reads = "logits"
    weight = 3.0

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits `(B, C, *S)` of student and teacher (detached) -> scalar; ``target`` is not read.

        Raises:
            ValueError: shapes that differ.
        """
        check_logits(student, teacher)
        return _channel_kl(student, teacher, self.temperature)


class CWDFeatures(Loss):
    """Channel-wise distillation of features: as :class:`CWDLogits`, weight 50 there.

    Where the channels differ, the student's pass through a learned 1x1 convolution without bias.

    Args:
        student_channels, teacher_channels, dims: of the stages, see :func:`nnunet_kd.losses.channels.match_channels`.
        temperature: T > 0.
    """

    name = "cwd-features"
    reads = "features"
    weight = 50.0

    def __init__(self, *, student_channels: int, teacher_channels: int, dims: int, temperature: float = 4.0) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature
        self.channels = student_channels, teacher_channels
        self.adapter = match_channels(student_channels, teacher_channels, dims)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Student `(B, K_s, *S)`, teacher `(B, K_t, *S)` (detached) -> scalar; ``target`` is not read.

        Raises:
            ValueError: shapes that do not fit each other or the channels of this module.
        """
        check_features(student, teacher, *self.channels)
        return _channel_kl(self.adapter(student), teacher, self.temperature)


def _channel_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    # logit distillation with the channels as samples and the pixels as classes
    return logit_kd(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), temperature)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"the temperature of CWD must be positive, got {temperature}")
