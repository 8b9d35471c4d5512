"""Logit adjustment: losses that read the foreground lower than the network says it make the network say it more readily."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_kd.losses.precision import full_precision


def adjusted_logits(logits: Tensor, adjustment: float | Tensor, regions: bool = False) -> Tensor:
    r"""The student's logits as its losses read them: every foreground class lowered by ``adjustment``.

    .. math:: z'_0 = z_0, \quad z'_c = z_c - a \quad (c > 0)

    A network that minimises a loss of :math:`z'` predicts with :math:`z`, in which each foreground class stands `a` higher
    against the background than the loss asked for: for two classes the threshold on the probability is
    :math:`1 / (1 + e^a)` in place of 1/2 (0.38 at `a` = 0.5). That is in the trained weights; prediction needs nothing for it.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10, there with :math:`\tau \log \pi_c` for
    each class. RECONSTRUCTION, ours: one constant for all foreground classes, which needs no frequencies, chosen on the source
    (docs/results.md); the GKD paper has nothing of the kind.

    Args:
        logits: `(B, C, *S)`; channel 0 is the background, as everywhere in nnU-Net.
        adjustment: a, in logits; one number for all rows, of which 0 gives the logits as they are, or one per row `(B,)`.
        regions: sigmoid heads without a background channel; all of them are lowered.

    Returns:
        `(B, C, *S)`, float32 for half-precision logits unless the adjustment is the number 0.
    """
    unchanged = not isinstance(adjustment, Tensor) and adjustment == 0
    return logits if unchanged else _lowered(logits, adjustment, regions)


@full_precision
def _lowered(logits: Tensor, adjustment: float | Tensor, regions: bool) -> Tensor:
    rows = torch.as_tensor(adjustment, dtype=logits.dtype, device=logits.device).reshape(-1, 1)
    lowered = rows.repeat(1, logits.shape[1])
    if not regions:
        lowered[:, 0] = 0
    return logits - lowered.view(*lowered.shape, *[1] * (logits.ndim - 2))
