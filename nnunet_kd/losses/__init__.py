"""One small file per loss: plain tensors in, a scalar out; no configuration, no hooks, no nnU-Net.

The classes that plans can name (:class:`Loss`) are found by the registry and are attributes of this package by their class's
name; :data:`LOSSES` has them by the name in the plans.
"""

from typing import Any

from nnunet_kd.losses.adjustment import adjusted_logits
from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import match_channels
from nnunet_kd.losses.gkd.act import decoded_consistency, reconstruction, regularisation, view_consistency
from nnunet_kd.losses.gkd.dcgd import class_prototypes, inter_graph_loss, intra_graph_loss
from nnunet_kd.losses.gkd.dicd import cross_prediction_loss
from nnunet_kd.losses.kd import balanced_logits, class_frequencies, logit_kd
from nnunet_kd.losses.precision import full_precision
from nnunet_kd.losses.registry import LOSSES

_CLASSES = {loss.__name__: loss for loss in LOSSES.values()}

__all__ = [
    "LOSSES",
    "Loss",
    "adjusted_logits",
    "balanced_logits",
    "class_frequencies",
    "class_prototypes",
    "cross_prediction_loss",
    "decoded_consistency",
    "full_precision",
    "inter_graph_loss",
    "intra_graph_loss",
    "logit_kd",
    "match_channels",
    "reconstruction",
    "regularisation",
    "view_consistency",
    *_CLASSES,
]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")
