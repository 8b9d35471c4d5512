"""Alignment Consistency Training (ACT): the four losses that train the MSANs.

EVIDENCE: ACT exists, trains the MSAN, and its vectors are "regularized by a Pre-trained Semantic AutoEncoder".
RECONSTRUCTION: the four losses and their form; the equations were never published.

They train MSANs only: which parameters are frozen is for the caller to arrange.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.losses.kd import logit_kd
from nnunet_kd.losses.precision import full_precision

# a feature this flat (a patch of air behind a dead stage) holds nothing to reconstruct
_SMALLEST_VARIANCE = 1e-6


@full_precision
def reconstruction(reconstructed: Tensor, feature: Tensor) -> Tensor:
    """Relative squared error of a reconstructed feature: ``mean (F^ - F)^2 / var(F)``. RECONSTRUCTION.

    1 is as bad as predicting the feature's mean, 0 is perfect, so the value can be compared between stages and models.

    Args:
        reconstructed: F^ `(B, C, *S)`; the gradient goes here.
        feature: F `(B, C, *S)`; detached.
    """
    feature = feature.detach()
    return F.mse_loss(reconstructed, feature) / feature.var(unbiased=False).clamp_min(_SMALLEST_VARIANCE)


@full_precision
def regularisation(vectors: Tensor, semantic: Tensor) -> Tensor:
    """Mean squared difference between an MSAN's vectors and those of the P-SAE on the annotation. RECONSTRUCTION.

    Args:
        vectors: z_m `(B, d)`.
        semantic: z_P `(B, d)`, standardised (`SemanticAutoencoder.standardise`); detached.
    """
    return F.mse_loss(vectors, semantic.detach())


@full_precision
def view_consistency(anchor: Tensor, views: Tensor) -> Tensor:
    """``1 - cos`` between the anchor's vector and those of its photometric views, mean over all. RECONSTRUCTION.

    Args:
        anchor: z(v_0) `(B, d)`; keeps its gradient, both sides move.
        views: z(v_k) `(K, B, d)`.
    """
    return (1 - F.cosine_similarity(anchor.unsqueeze(0), views, dim=-1)).mean()


def decoded_consistency(
    reconstructed_logits: Tensor, logits: Tensor, regions: bool = False, mask: Tensor | None = None
) -> Tensor:
    """KL of what a model's own decoder makes of F^ from what it makes of F. RECONSTRUCTION.

    A reconstructed feature may miss what the decoder does not read; this is the part it does read.

    Args:
        reconstructed_logits: Dec_m(F^_m) `(B, C, *S)`.
        logits: Dec_m(F_m) `(B, C, *S)`; detached.
        regions, mask: as in :func:`nnunet_kd.losses.kd.logit_kd`.
    """
    return logit_kd(reconstructed_logits, logits, regions=regions, mask=mask)
