"""One small file per term: plain tensors in, a scalar out; no configuration, no hooks, no nnU-Net."""

from nnunet_kd.losses.act import decoded_consistency, reconstruction, regularisation, view_consistency
from nnunet_kd.losses.adjustment import adjusted_logits
from nnunet_kd.losses.attention import AT
from nnunet_kd.losses.channels import match_channels
from nnunet_kd.losses.cirkd import CIRKD, CIRKDMemory
from nnunet_kd.losses.cwd import CWDFeatures, CWDLogits
from nnunet_kd.losses.dcgd import class_prototypes, gather_with_gradient, inter_graph_loss, intra_graph_loss
from nnunet_kd.losses.dicd import cross_prediction_loss
from nnunet_kd.losses.dist import DIST
from nnunet_kd.losses.dml import DML
from nnunet_kd.losses.emkd import IMD, RAD
from nnunet_kd.losses.fitnets import FitNets
from nnunet_kd.losses.fsp import FSP
from nnunet_kd.losses.ifvd import IFVD
from nnunet_kd.losses.kd import KD, balanced_logits, class_frequencies, logit_kd
from nnunet_kd.losses.precision import full_precision
from nnunet_kd.losses.registry import LOSSES
from nnunet_kd.losses.skd import SKDPairwise, SKDPairwise2x2, SKDPixelwise

__all__ = [
    "AT",
    "CIRKD",
    "CIRKDMemory",
    "CWDFeatures",
    "CWDLogits",
    "DIST",
    "DML",
    "FSP",
    "FitNets",
    "IFVD",
    "IMD",
    "KD",
    "LOSSES",
    "RAD",
    "SKDPairwise",
    "SKDPairwise2x2",
    "SKDPixelwise",
    "adjusted_logits",
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
    "match_channels",
    "reconstruction",
    "regularisation",
    "view_consistency",
]
