"""Model folders with random weights, as the export writes them, to compare the runner with nnU-Net's own predictor.

An untrained network has near ties everywhere, which rounding decides. `model_folder` therefore shifts and scales the last
layer, so that every class's logits have mean 0 and standard deviation 3 on a random image, as a trained network's.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.ndimage import gaussian_filter

from nnunet_kd.deploy.runner import Predictor
from nnunet_kd.deploy.runner_export import add_networks, model_json, write_runner
from nnunet_kd.nnunet_io.model_folder import build_network, read_model_folder

INTENSITY = {"mean": 100.0, "std": 30.0, "percentile_00_5": 40.0, "percentile_99_5": 160.0, "min": 0, "max": 255, "median": 99}


def plans(patch, spacing, *, channels=1, reader="SimpleITKIO", features=(4, 8), transpose=(0, 1, 2), **settings) -> dict:
    dims = len(patch)
    conv, norm = f"torch.nn.modules.conv.Conv{dims}d", f"torch.nn.modules.instancenorm.InstanceNorm{dims}d"
    stages = len(features)
    arch = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": conv,
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_conv_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arch,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        kwargs = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{what}_kwargs"] = kwargs
    return {
        "dataset_name": "Dataset960_Runner",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(i) for i in range(3)],
        "configurations": {"2d" if dims == 2 else "3d_fullres": configuration | settings},
        "foreground_intensity_properties_per_channel": {str(c): INTENSITY for c in range(channels)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
    }


def model_folder(folder: Path, plans: dict, *, ending=".nii.gz", labels=None, order=None, folds=1, mirror=None) -> Path:
    """Stock nnU-Net folder and, beside it, what the runner reads. `order` makes the labels regions."""
    configuration = next(iter(plans["configurations"]))
    settings = plans["configurations"][configuration]
    dims, channels = len(settings["patch_size"]), len(settings["normalization_schemes"])
    dataset = {
        "channel_names": {str(c): f"channel {c}" for c in range(channels)},
        "labels": labels or {"background": 0, "a": 1, "b": 2},
        "file_ending": ending,
    } | ({"regions_class_order": order} if order else {})
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    names = [str(fold) for fold in range(folds)]
    axes = tuple(range(dims)) if mirror is None else mirror or None  # as nnU-Net, which fails on an empty tuple
    for fold in names:
        torch.manual_seed(int(fold))
        stock = {"trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": axes}
        (folder / f"fold_{fold}").mkdir()
        file = folder / f"fold_{fold}" / "checkpoint_final.pth"
        init = {"plans": plans, "configuration": configuration, "fold": int(fold), "dataset_json": dataset}
        torch.save(stock | {"network_weights": {}, "init_args": init}, file)
        network = build_network(read_model_folder(folder)).eval()
        _spread(network, channels, settings["patch_size"])
        torch.save(stock | {"network_weights": network.state_dict(), "init_args": init}, file)
        quick_onnx(network, folder / f"fold_{fold}.onnx", torch.zeros(1, channels, *settings["patch_size"]))
    write_runner(folder, model_json(plans, dataset, configuration, axes, names))
    add_networks(folder, "onnx", [f"fold_{fold}.onnx" for fold in names])
    return folder


def _spread(network: torch.nn.Module, channels: int, patch) -> None:
    x = torch.from_numpy(
        gaussian_filter(np.random.default_rng(0).normal(size=(1, channels, *patch)), (0, 0, *[2] * len(patch)))
    )
    last = network.decoder.seg_layers[-1]
    with torch.no_grad():
        logits = network((x / x.std()).float())
        std, mean = torch.std_mean(logits[0].flatten(1), dim=1)
        last.weight.mul_((3 / std).reshape(-1, *[1] * (last.weight.ndim - 1)))
        last.bias.sub_(mean).mul_(3 / std)


def quick_onnx(network: torch.nn.Module, file: Path, x: torch.Tensor) -> None:
    """torch's old exporter: a fixed size, in a fraction of the time of write_onnx, which has tests of its own."""
    import warnings

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(file), dynamo=False, input_names=["image"], output_names=["logits"])


def images(folder: Path, size, *, channels=1, cases=1, spacing=(1.0, 1.0, 1.0), ending=".nii.gz", empty=0, seed=0) -> Path:
    """Smooth random images of `size` (z, y, x), uint8.

    empty: zeros outside of an ellipsoid that many voxels from the edge, and in a hole in it.
    """
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    for case in range(cases):
        for channel in range(channels):
            values = gaussian_filter(generator.normal(size=size), 2)
            values = (100 + 40 * values / values.std()).clip(1, 255).astype(np.uint8)
            if empty:
                grid = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / (n / 2 - empty) for n in size], indexing="ij")
                values[sum(axis**2 for axis in grid) > 1] = 0
                values[tuple(slice(n // 2 - 2, n // 2 + 2) for n in size)] = 0
            file = folder / f"case_{case}_{channel:04d}{ending}"
            if ending in (".png", ".tif"):
                from skimage.io import imsave

                imsave(file, values[0] if size[0] == 1 else values, check_contrast=False)
            else:
                image = SimpleITK.GetImageFromArray(values)
                image.SetSpacing(spacing[::-1])
                image.SetOrigin((3.0, -20.0, 7.5))
                image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
                SimpleITK.WriteImage(image, str(file))
    return folder


def nnunet_predicts(model: Path, source: Path, out: Path, *, mirroring=True, probabilities=False, folds=1) -> None:
    """nnU-Net's own predictor, in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=mirroring, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), tuple(range(folds)), "checkpoint_final.pth")
        ending = predictor.dataset_json["file_ending"]
        names = sorted({p.name[: -len(ending) - 5] for p in source.glob(f"*{ending}")})
        cases = [sorted(str(p) for p in source.glob(f"{name}_*{ending}")) for name in names]
        out.mkdir(exist_ok=True)
        predictor.predict_from_files_sequential(cases, [str(out / name) for name in names], probabilities)


def assert_agree(a: Path, b: Path, labels: int = 2) -> None:
    """99.99 % of all voxels are equal, or all but one; geometry and type are; every image has that many labels."""
    different = voxels = 0
    files = [p for p in sorted(a.iterdir()) if p.suffix not in (".json", ".npz", ".pkl")]
    assert files
    for file in files:
        first, second = (SimpleITK.ReadImage(str(folder / file.name)) for folder in (a, b))
        for what in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize", "GetPixelIDTypeAsString"):
            assert getattr(first, what)() == getattr(second, what)()
        first, second = map(SimpleITK.GetArrayFromImage, (first, second))
        counts = np.bincount(second.ravel())
        assert (counts > 0.02 * second.size).sum() >= labels, counts  # otherwise agreement says nothing
        different += (first != second).sum()
        voxels += first.size
    print(f"{different} of {voxels} voxels differ, agreement {100 * (1 - different / voxels):.5f} %")
    assert different <= max(1, 1e-4 * voxels), f"{different} of {voxels} voxels"


def compare(tmp_path: Path, model: Path, source: Path, *, mirroring=True, folds=1, **options) -> None:
    Predictor(model, threads=1, mirroring=mirroring, **options).predict_folder(source, tmp_path / "ours")
    nnunet_predicts(model, source, tmp_path / "theirs", mirroring=mirroring, folds=folds)
    assert_agree(tmp_path / "ours", tmp_path / "theirs")
