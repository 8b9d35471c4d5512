"""What prediction without nnU-Net needs, written into an exported model folder: ONNX files, model.json, the runner."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd import __version__
from nnunet_kd.deploy import runner
from nnunet_kd.deploy.onnx_export import total_strides, write_onnx
from nnunet_kd.deploy.runner.images import READERS
from nnunet_kd.deploy.runner.model import FILE, FORMAT_VERSION
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.errors import NotSupported

_NORMALIZATIONS = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
_STARTER = '''"""Predict with this model: python predict.py -i IMAGES -o OUT. See runner/README.md."""

import sys

from runner.__main__ import main

sys.exit(main())
'''


def model_json(
    plans: dict, dataset_json: dict, configuration: str, mirror_axes: Sequence[int] | None, folds: Sequence[str]
) -> dict:
    """Everything prediction needs but the weights, as plain JSON: the content of model.json.

    Args:
        mirror_axes: spatial axes that the training mirrored, from the checkpoint.
        folds: in the order of the network files that are added under "networks".

    Raises:
        NotSupported: the plans ask for what the runner does not have: a cascade's second stage, a preprocessor, reader,
            normalisation or resampling that is not nnU-Net's own.
    """
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    labels = manager.get_label_manager(dataset_json)
    _check(settings.previous_stage_name is None, f"{configuration} is the second stage of a cascade")
    _check(settings.preprocessor_name == "DefaultPreprocessor", f"the plans use the preprocessor {settings.preprocessor_name}")
    _check(plans["image_reader_writer"] in READERS, f"the plans use the reader {plans['image_reader_writer']}")
    _check(plans.get("label_manager", "LabelManager") == "LabelManager", f"the plans use {plans.get('label_manager')}")
    for scheme in settings.normalization_schemes:
        _check(scheme in _NORMALIZATIONS, f"the plans use the normalisation {scheme}")
    intensity = manager.foreground_intensity_properties_per_channel
    return {
        "format": "nnunet_kd model",
        "format_version": FORMAT_VERSION,
        "written_by": f"nnunet_kd {__version__}",
        "name": plans["plans_name"],
        "dataset": plans["dataset_name"],
        "configuration": configuration,
        "channel_names": channel_names(dataset_json),
        "reader": plans["image_reader_writer"],
        "file_ending": dataset_json["file_ending"],
        "transpose_forward": list(manager.transpose_forward),
        "transpose_backward": list(manager.transpose_backward),
        "spacing": [float(s) for s in settings.spacing],
        "normalization": [
            {"scheme": scheme, "use_mask": bool(use_mask), "intensity": intensity[str(i)]}
            for i, (scheme, use_mask) in enumerate(zip(settings.normalization_schemes, settings.use_mask_for_norm, strict=True))
        ],
        "resampling": {
            "data": _resampling(settings.configuration, "data"),
            "logits": _resampling(settings.configuration, "probabilities"),
        },
        "patch_size": [int(n) for n in settings.patch_size],
        "tile_step": 0.5,
        "mirror_axes": [int(axis) for axis in mirror_axes or ()],
        "labels": dataset_json["labels"],
        "outputs": labels.num_segmentation_heads,
        "regions_class_order": list(dataset_json["regions_class_order"]) if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
        "folds": [str(fold) for fold in folds],
        "networks": {},
    }


def add_runner(
    folder: Path, network: nn.Module, plans: dict, dataset_json: dict, configuration: str, contents: dict[str, dict]
) -> None:
    """Add fold_X.onnx of every fold, model.json, predict.py and the runner to an exported model folder.

    Args:
        network: built from `plans`; it gets the weights of each fold in turn.
        contents: nnU-Net's checkpoints by fold.

    Raises:
        KDError: the runner cannot do what the plans ask for, or the network cannot be written as ONNX.
    """
    axes = next(iter(contents.values())).get("inference_allowed_mirroring_axes")  # nnU-Net asks its first fold
    content = model_json(plans, dataset_json, configuration, axes, list(contents))
    strides = total_strides(PlansManager(plans).get_configuration(configuration).configuration)
    for fold, checkpoint in contents.items():
        network.load_state_dict(checkpoint["network_weights"])
        write_onnx(network, folder / f"fold_{fold}.onnx", len(content["channel_names"]), strides)
    write_runner(folder, content)
    add_networks(folder, "onnx", [f"fold_{fold}.onnx" for fold in contents])


def write_runner(folder: Path, content: dict) -> None:
    """Write model.json, predict.py and the runner itself into `folder`."""
    (folder / FILE).write_text(json.dumps(content, indent=4), encoding="utf-8")
    (folder / "predict.py").write_text(_STARTER, encoding="utf-8")
    shutil.copytree(Path(runner.__file__).parent, folder / "runner", ignore=shutil.ignore_patterns("__pycache__"))


def add_networks(folder: Path, kind: str, files: Sequence[str]) -> None:
    """Enter network files, one per fold in the order of "folds", into the model.json of an exported folder.

    Kinds that the runner knows: "onnx", "openvino", "onnx_int8", "openvino_int8". Paths are relative to `folder`.
    """
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if len(files) != len(content["folds"]):
        raise ValueError(f"{len(files)} files for {len(content['folds'])} folds")
    content["networks"][kind] = list(files)
    (folder / FILE).write_text(json.dumps(content, indent=4), encoding="utf-8")


def _resampling(configuration: dict, what: str) -> dict:
    name = configuration[f"resampling_fn_{what}"]
    arguments = configuration[f"resampling_fn_{what}_kwargs"]
    if name == "no_resampling_hack":
        return {"order": None, "force_separate_z": False, "anisotropy_threshold": 3, "keep_type": True}
    functions = {f.__name__: f for f in (resample_data_or_seg_to_shape, resample_torch_fornnunet)}
    _check(name in functions, f"the plans use the resampling {name}")
    defaults = {k: p.default for k, p in inspect.signature(functions[name]).parameters.items()}
    settings = defaults | arguments
    torch_own = name == "resample_torch_fornnunet"
    required = {"mode": "linear", "aniso_axis_mode": "nearest-exact"} if torch_own else {"order_z": 0}
    for key, value in {"is_seg": False, **required}.items():
        _check(settings[key] == value, f"the plans set {key} = {settings[key]} for the resampling {name}")
    return {
        "order": 1 if torch_own else int(settings["order"]),
        "force_separate_z": settings["force_separate_z"],
        "anisotropy_threshold": settings["separate_z_anisotropy_threshold"],
        "keep_type": not torch_own,
    }


def _check(fits: bool, reason: str) -> None:
    if not fits:
        raise NotSupported(f"{reason}, which the runner does not have: export without --onnx and predict with nnU-Net")
