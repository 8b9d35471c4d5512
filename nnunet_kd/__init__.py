"""Distil a trained nnU-Net (teacher) into a light student that stock nnU-Net can load. See README.md for the map.

What others may build on is here by name, and loaded when it is first used, so that `import nnunet_kd` costs nothing:

    from nnunet_kd import KD, intra_graph_loss      # losses on plain tensors
    from nnunet_kd import build_msan, Views         # alignment networks, and views of images
    from nnunet_kd import frechet_distance          # FSD of two arrays of semantic vectors
    from nnunet_kd import Predictor                 # an exported model, without torch and nnU-Net
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LOSSES = (
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
    "RAD",
    "SKDPairwise",
    "SKDPairwise2x2",
    "SKDPixelwise",
    "cross_prediction_loss",
    "inter_graph_loss",
    "intra_graph_loss",
)
_HOME = {
    **dict.fromkeys(_LOSSES, "nnunet_kd.losses"),
    **dict.fromkeys(("MapMSAN", "SpatialMSAN", "VectorMSAN", "build_msan"), "nnunet_kd.msan"),
    "Views": "nnunet_kd.views",
    "Sample": "nnunet_kd.evaluation.fsd.sample",
    "frechet_distance": "nnunet_kd.evaluation.fsd.distance",
    "Predictor": "nnunet_kd.deploy.runner",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604

if TYPE_CHECKING:  # the same names, for editors and type checkers; a test holds the two lists together
    from nnunet_kd.augmentation.views import Views as Views
    from nnunet_kd.deploy.runner.predictor import Predictor as Predictor
    from nnunet_kd.evaluation.fsd.distance import frechet_distance as frechet_distance
    from nnunet_kd.evaluation.fsd.sample import Sample as Sample
    from nnunet_kd.losses import (
        AT as AT,
    )
    from nnunet_kd.losses import (
        CIRKD as CIRKD,
    )
    from nnunet_kd.losses import (
        DIST as DIST,
    )
    from nnunet_kd.losses import (
        DML as DML,
    )
    from nnunet_kd.losses import (
        FSP as FSP,
    )
    from nnunet_kd.losses import (
        IFVD as IFVD,
    )
    from nnunet_kd.losses import (
        IMD as IMD,
    )
    from nnunet_kd.losses import (
        KD as KD,
    )
    from nnunet_kd.losses import (
        RAD as RAD,
    )
    from nnunet_kd.losses import (
        CIRKDMemory as CIRKDMemory,
    )
    from nnunet_kd.losses import (
        CWDFeatures as CWDFeatures,
    )
    from nnunet_kd.losses import (
        CWDLogits as CWDLogits,
    )
    from nnunet_kd.losses import (
        FitNets as FitNets,
    )
    from nnunet_kd.losses import (
        SKDPairwise as SKDPairwise,
    )
    from nnunet_kd.losses import (
        SKDPairwise2x2 as SKDPairwise2x2,
    )
    from nnunet_kd.losses import (
        SKDPixelwise as SKDPixelwise,
    )
    from nnunet_kd.losses import (
        cross_prediction_loss as cross_prediction_loss,
    )
    from nnunet_kd.losses import (
        inter_graph_loss as inter_graph_loss,
    )
    from nnunet_kd.losses import (
        intra_graph_loss as intra_graph_loss,
    )
    from nnunet_kd.networks.msan import (
        MapMSAN as MapMSAN,
    )
    from nnunet_kd.networks.msan import (
        SpatialMSAN as SpatialMSAN,
    )
    from nnunet_kd.networks.msan import (
        VectorMSAN as VectorMSAN,
    )
    from nnunet_kd.networks.msan import (
        build_msan as build_msan,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
