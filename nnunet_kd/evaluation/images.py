"""Reading label maps, images and saved probabilities of one case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import check_gzip

TIFFS = (".tif", ".tiff")
PICTURES = (".png", ".bmp", *TIFFS)
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def read_map(file: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """A label map ``(H, W)`` or ``(D, H, W)`` and its spacing.

    Spacing is in mm, in the order of the axes; None for PNG and BMP, which have none, and for a TIFF without nnU-Net's
    CASE.json beside it. Raises KDError if the file is missing or unreadable.
    """
    file = Path(file)
    if not file.is_file():
        raise KDError(f"{file} does not exist: put it there, or name the folder that holds it")
    try:
        if file.name.lower().endswith(TIFFS):
            import tifffile  # as nnU-Net: scikit-image would take a volume of three slices for colours

            return tifffile.imread(file), _spacing_beside(file)
        if file.name.lower().endswith(PICTURES):
            return read_picture(file), None
        if file.name.endswith(".gz"):
            check_gzip(file)
        import SimpleITK

        image = SimpleITK.ReadImage(str(file))
        array, spacing = SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]
    except Exception as error:  # every reader raises its own kinds
        raise _damaged(file, error) from error
    return array, tuple(float(s) for s in spacing)


def read_picture(file: Path) -> np.ndarray:
    """A picture ``(H, W)`` or ``(H, W, colours)``, as nnU-Net's NaturalImage2DIO reads it. Raises KDError."""
    from skimage.io import imread

    try:
        return np.asarray(imread(file))
    except Exception as error:  # every reader raises its own kinds
        raise _damaged(file, error) from error


def _spacing_beside(file: Path) -> tuple[float, ...] | None:
    """What nnU-Net's Tiff3DIO reads and writes beside a volume: {"spacing": [z, y, x]} in CASE.json."""
    spacing_file = file.with_suffix(".json")
    if not spacing_file.is_file():
        return None
    return tuple(float(s) for s in json.loads(spacing_file.read_text(encoding="utf-8"))["spacing"])


def read_probabilities(file: Path) -> np.ndarray:
    """What ``nnUNetv2_predict --save_probabilities`` leaves beside a label map: ``(heads, *S)``, one-slice axes included.

    Raises:
        KDError: missing or damaged, or no such file of nnU-Net's.
    """
    if not file.is_file():
        raise KDError(f"{file} does not exist: predict with --save_probabilities")
    try:
        with np.load(file, allow_pickle=False) as content:
            return content["probabilities"]
    except KeyError:
        raise KDError(f"{file} holds no array called probabilities: predict with --save_probabilities") from None
    except Exception as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> KDError:
    message = " ".join(str(error).split())[:160]
    return KDError(f"cannot read {file} ({message}): the file is damaged, copy it again from its source")
