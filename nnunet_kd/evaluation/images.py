"""Reading label maps, images and saved probabilities of one case."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import check_gzip

PICTURES = (".png", ".bmp", ".tif", ".tiff")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def read_map(file: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """A label map or one-channel image ``(H, W)`` or ``(D, H, W)``, or a colour picture ``(H, W, 3)``, and its spacing.

    Spacing is in mm, in the order of the axes; None for PNG, BMP and TIFF, which have none.
    Raises KDError if the file is missing or unreadable.
    """
    file = Path(file)
    if not file.is_file():
        raise KDError(f"{file} does not exist: put it there, or name the folder that holds it")
    try:
        if file.name.lower().endswith(PICTURES):
            from skimage.io import imread

            return np.asarray(imread(file)), None
        if file.name.endswith(".gz"):
            check_gzip(file)
        import SimpleITK

        image = SimpleITK.ReadImage(str(file))
        array, spacing = SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]
    except Exception as error:  # every reader raises its own kinds
        raise _damaged(file, error) from error
    return array, tuple(float(s) for s in spacing)


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
    said = " ".join(str(error).split())[:160]
    return KDError(f"cannot read {file} ({said}): the file is damaged, copy it again from its source")
