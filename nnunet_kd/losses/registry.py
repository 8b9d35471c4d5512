"""The losses of the literature by the names that plans and trainers use."""

from __future__ import annotations

from torch import nn

from nnunet_kd.losses.kd import KD
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

# Each class says what it compares (reads: "logits" or "features"), its published weight and whether it needs_target. Its
# keyword arguments are its settings, but for what the networks decide: student_channels, teacher_channels, dims, classes,
# regions.
LOSSES: dict[str, type[nn.Module]] = {
    "kd": KD,
    "at": AT,
    "fitnets": FitNets,
    "fsp": FSP,
    "skd-pixelwise": SKDPixelwise,
    "skd-pairwise": SKDPairwise,
    "skd-2x2": SKDPairwise2x2,
    "ifvd": IFVD,
    "cwd-logits": CWDLogits,
    "cwd-features": CWDFeatures,
    "dist": DIST,
    "dml": DML,
    "imd": IMD,
    "rad": RAD,
    "cirkd": CIRKD,
    "cirkd-memory": CIRKDMemory,
}
