"""One small file per term: plain tensors in, a scalar out; no configuration, no hooks, no nnU-Net."""

from nnunet_kd.losses.act import decoded_consistency, reconstruction, regularisation, view_consistency
from nnunet_kd.losses.dcgd import class_prototypes, gather_with_gradient, inter_graph_loss, intra_graph_loss
from nnunet_kd.losses.dicd import cross_prediction_loss
from nnunet_kd.losses.kd import balanced_logits, class_frequencies, logit_kd
from nnunet_kd.losses.precision import full_precision

__all__ = [
    "balanced_logits",
    "class_frequencies",
    "class_prototypes",
    "cross_prediction_loss",
    "decoded_consistency",
    "full_precision",
    "gather_with_gradient",
    "inter_graph_loss",
    "intra_graph_loss",
    "logit_kd",
    "reconstruction",
    "regularisation",
    "view_consistency",
]
