"""Logit adjustment: losses that read the foreground lower than the network says it make the network say it more readily."""

from __future__ import annotations

from torch import Tensor

from nnunet_kd.losses.precision import full_precision


def adjusted_logits(logits: Tensor, adjustment: float, regions: bool = False) -> Tensor:
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
        adjustment: a, in logits. 0 gives the logits as they are.
        regions: sigmoid heads without a background channel; all of them are lowered.

    Returns:
        `(B, C, *S)`, float32 for half-precision logits unless the adjustment is 0.
    """
    return _lowered(logits, adjustment, regions) if adjustment else logits


@full_precision
def _lowered(logits: Tensor, adjustment: float, regions: bool) -> Tensor:
    lowered = logits.new_full((logits.shape[1],), adjustment)
    if not regions:
        lowered[0] = 0
    return logits - lowered.view(1, -1, *[1] * (logits.ndim - 2))
