"""Distil a trained nnU-Net (teacher) into a light student that stock nnU-Net can load. See README.md for the map.

What others may build on is here by name, and loaded when it is first used, so that `import nnunet_kd` costs nothing:

    from nnunet_kd.losses import KD, AT             # losses on plain tensors; losses.LOSSES has all of them by name
    from nnunet_kd import intra_graph_loss          # the graphs (DCGD), and cross_prediction_loss (DICD)
    from nnunet_kd import build_msan, Views         # alignment networks, and views of images
    from nnunet_kd import frechet_distance          # FSD of two arrays of semantic vectors
    from nnunet_kd import Predictor                 # an exported model, without torch and nnU-Net
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> where it is defined
_HOME = {
    "KD": "nnunet_kd.losses.kd",
    "intra_graph_loss": "nnunet_kd.losses.gkd.dcgd",
    "inter_graph_loss": "nnunet_kd.losses.gkd.dcgd",
    "cross_prediction_loss": "nnunet_kd.losses.gkd.dicd",
    "build_msan": "nnunet_kd.networks.msan",
    "Views": "nnunet_kd.augmentation.views",
    "Sample": "nnunet_kd.evaluation.fsd.sample",
    "frechet_distance": "nnunet_kd.evaluation.fsd.distance",
    "Predictor": "nnunet_kd.deploy.runner.predictor",
}

__all__ = ["__version__", "losses", *_HOME]  # noqa: PLE0604

if TYPE_CHECKING:  # the same names, for editors and type checkers; a test holds the two lists together
    from nnunet_kd import losses as losses
    from nnunet_kd.augmentation.views import Views as Views
    from nnunet_kd.deploy.runner.predictor import Predictor as Predictor
    from nnunet_kd.evaluation.fsd.distance import frechet_distance as frechet_distance
    from nnunet_kd.evaluation.fsd.sample import Sample as Sample
    from nnunet_kd.losses.gkd.dcgd import inter_graph_loss as inter_graph_loss
    from nnunet_kd.losses.gkd.dcgd import intra_graph_loss as intra_graph_loss
    from nnunet_kd.losses.gkd.dicd import cross_prediction_loss as cross_prediction_loss
    from nnunet_kd.losses.kd import KD as KD
    from nnunet_kd.networks.msan import build_msan as build_msan


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("nnunet_kd.losses")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
