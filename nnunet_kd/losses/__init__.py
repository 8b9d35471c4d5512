"""One small file per term: plain tensors in, a scalar out; no configuration, no hooks, no nnU-Net."""

from nnunet_kd.losses.adjustment import adjusted_logits
from nnunet_kd.losses.channels import match_channels
from nnunet_kd.losses.gkd.act import decoded_consistency, reconstruction, regularisation, view_consistency
from nnunet_kd.losses.gkd.dcgd import class_prototypes, inter_graph_loss, intra_graph_loss
from nnunet_kd.losses.gkd.dicd import cross_prediction_loss
from nnunet_kd.losses.kd import KD, balanced_logits, class_frequencies, logit_kd
from nnunet_kd.losses.literature.attention import AT
from nnunet_kd.losses.literature.cirkd import CIRKD, CIRKDMemory
from nnunet_kd.losses.literature.cwd import CWDFeatures, CWDLogits
from nnunet_kd.losses.literature.dist import DIST
from nnunet_kd.losses.literature.dml import DML
from nnunet_kd.losses.literature.emkd import IMD, RAD
from nnunet_kd.losses.literature.fitnets import FitNets
from nnunet_kd.losses.literature.fsp import FSP
from nnunet_kd.losses.literature.ifvd import IFVD
from nnunet_kd.losses.literature.skd import SKDPairwise, SKDPairwise2x2, SKDPixelwise
from nnunet_kd.losses.precision import full_precision
from nnunet_kd.losses.registry import LOSSES

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
    "inter_graph_loss",
    "intra_graph_loss",
    "logit_kd",
    "match_channels",
    "reconstruction",
    "regularisation",
    "view_consistency",
]
