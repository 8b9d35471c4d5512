"""A volume of clinical size, and untrained model folders of nnU-Net's usual shape to predict it with."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.folders import unet_plans, write_untrained

SIZE, SPACING = (100, 512, 512), (3.0, 0.75, 0.75)  # z, y, x; mm
SMALL = (32, 64, 64)  # the other case: next to nothing but start-up
NETWORK_SPACING = (3.0, 1.5, 1.5)
PATCH = (64, 64, 64)


def make_volume(root: Path, teacher_features: Sequence[int], student_features: Sequence[int]) -> tuple[Path, Path, Path]:
    """Folders of the teacher, the exported student and the images, in `root`.

    The images: "volume_1", 512x512x100 voxels of 0.75x0.75x3 mm, and a small "volume_0" before it. The networks see 1.5x1.5x3
    mm, so that both resamplings, which nnU-Net's predictions of CT spend much of their time in, are part of the work.
    """
    from nnunet_kd.deploy.export import export_model
    from nnunet_kd.deploy.openvino_folder import OpenVINO

    images = root / "images"
    images.mkdir()
    for i, size in enumerate((SMALL, SIZE)):
        _write_image(images / f"volume_{i}_0000.nii.gz", size)
    teacher = _model_folder(root, "Teacher", teacher_features)
    student = root / "student"
    with contextlib.redirect_stdout(io.StringIO()):
        export_model(
            _model_folder(root, "Student", student_features), student, onnx=True, openvino=OpenVINO(False, False, False)
        )
    return teacher, student, images


def _write_image(file: Path, size: Sequence[int]) -> None:
    import SimpleITK
    from scipy.ndimage import gaussian_filter

    values = gaussian_filter(np.random.default_rng(0).normal(size=size).astype(np.float32), 2, mode="wrap")
    image = SimpleITK.GetImageFromArray((values / values.std() * 200).round().astype(np.int16))
    image.SetSpacing(SPACING[::-1])
    SimpleITK.WriteImage(image, str(file))


def _model_folder(root: Path, name: str, features: Sequence[int]) -> Path:
    import torch

    o = argparse.Namespace(patch=list(PATCH), batch=2, field_of_view=False)
    plans = unet_plans(o, list(features)) | {
        "plans_name": f"nnUNet{name}Plans",
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {"0": {}},  # z-scores need none
    }
    configuration = plans["configurations"]["3d_fullres"]
    configuration["spacing"] = list(NETWORK_SPACING)
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        settings = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{what}_kwargs"] = settings
    dataset_json = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    folder = root / f"nnUNetTrainer__{plans['plans_name']}__3d_fullres"
    torch.manual_seed(0)
    write_untrained(folder, plans, dataset_json)
    return folder
