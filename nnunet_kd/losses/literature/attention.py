"""Attention transfer: where a stage is active, whatever its channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features
from nnunet_kd.losses.precision import full_precision

_SMALLEST = 1e-12


def attention_map(features: Tensor, p: int = 2) -> Tensor:
    """Features `(B, K, *S)` -> `(B, P)`: the sum of ``|f|^p`` over the channels, of length 1 per sample; P pixels."""
    energy, power = (features.abs(), p) if p % 2 else (features.square(), p // 2)
    if power > 1:
        energy = energy.pow(power)
    flat = energy.sum(1).flatten(1)
    # the map's own size cancels in what follows; its square would leave float32's range at p = 4 and features of 1e4
    flat = flat / flat.detach().amax(1, keepdim=True).clamp_min(_SMALLEST)
    return F.normalize(flat, dim=1, eps=_SMALLEST)


class AT(Loss):
    r"""Squared difference of the attention maps, mean over samples and pixels.

    .. math:: L = \mathrm{mean}_i (a^s_i - a^t_i)^2, \quad a_i = \frac{\sum_k |f_{ik}|^p}{\sqrt{\sum_j (\sum_k |f_{jk}|^p)^2}}

    Needs no adapter: the student may have other channels than the teacher. Published as "mean over the channels", which the
    norm cancels. The maps have length 1, so the value falls as 1/P with the number of pixels; hence the large weight.

    Source: Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017. Weight 10000 is CIRKD's for
    segmentation (Yang et al., CVPR 2022), with the same mean over samples and pixels.

    Args:
        p: 2 as published, or another whole number from 1 to 8: the larger, the more the strongest pixels count.

    Raises:
        ValueError: another ``p``.
    """

    name = "at"
    reads = "features"
    weight = 10000.0

    def __init__(self, *, p: int = 2) -> None:
        super().__init__()
        if p not in range(1, 9):
            raise ValueError(f"p must be a whole number from 1 to 8, not {p}")
        self.p = int(p)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Features `(B, K_s, *S)` and `(B, K_t, *S)` -> scalar; ``target`` is not used."""
        check_features(student, teacher)
        return F.mse_loss(attention_map(student, self.p), attention_map(teacher.detach(), self.p))
