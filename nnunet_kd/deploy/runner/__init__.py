"""Predict with an exported nnU-Net student: neither torch nor nnU-Net is imported, and nothing outside this folder.

    from runner import Predictor            # in a model folder; with nnunet_kd: from nnunet_kd.deploy.runner import Predictor

    predictor = Predictor("MODEL_FOLDER")
    predictor.predict_folder("IMAGES", "OUT")
    segmentation = predictor.predict_files(["case_0000.nii.gz"])            # (Z, Y, X)
    segmentation = predictor.predict_array(image, spacing)                  # image (C, Z, Y, X), spacing (z, y, x)

The export copies this folder into every model folder, where `python -m runner -i IMAGES -o OUT` runs it.
"""

from .errors import RunnerError

__all__ = ["Predictor", "RunnerError"]


def __getattr__(name: str) -> type:
    if name == "Predictor":  # numpy and the rest are loaded when they are needed, so that --help is quick
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
