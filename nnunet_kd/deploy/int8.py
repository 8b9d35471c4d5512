"""int8 weights and activations for OpenVINO by NNCF, calibrated on training patches, with the Dice that it costs."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.datasets.nnunet_format import read_fold
from nnunet_kd.deploy.openvino_export import compile_cpu, temporary_name
from nnunet_kd.nnunet_io.model_folder import ModelFolder
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.progress import progress

if TYPE_CHECKING:
    import openvino

PATCHES = 64  # to calibrate with


@dataclass(frozen=True)
class FoldData:
    """Preprocessed cases of one fold: nnU-Net's data set object and the case names."""

    cases: object
    training: list[str]
    validation: list[str]


def fold_data(model: ModelFolder, fold: int | str, measure: bool = True) -> FoldData:
    """A fold's preprocessed cases, which int8 is calibrated on (training) and measured on (validation).

    Raises:
        KDError: they are not there, or (measure) the fold has no validation cases.
    """
    purpose = "--int8 calibrates on the preprocessed training cases"
    if not nnUNet_preprocessed.is_set():
        raise KDError(f"{purpose}: export nnUNet_preprocessed=/path/to/nnUNet_preprocessed, or leave --int8 out")
    root = Path(str(nnUNet_preprocessed)) / model.plans["dataset_name"]
    config = PlansManager(model.plans).get_configuration(model.configuration)
    folder = root / config.data_identifier
    if not folder.is_dir() or not any(folder.iterdir()):
        raise KDError(f"{purpose}, and {folder} does not exist: run nnUNetv2_preprocess, or leave --int8 out")
    cases = infer_dataset_class(str(folder))(str(folder))
    split = read_fold(root, fold) or {"train": sorted(cases.identifiers), "val": []}
    training, validation = split["train"], split["val"]
    if measure and not validation:
        raise KDError(
            f"fold {fold} has no validation cases in {root / 'splits_final.json'} to measure the Dice of int8 on: export "
            "another fold, or pass --int8-unmeasured"
        )
    missing = set(training) | set(validation)
    missing -= set(cases.identifiers)
    if missing:
        raise KDError(f"{folder} lacks {len(missing)} cases of fold {fold}, {min(missing)} among them: run nnUNetv2_preprocess")
    return FoldData(cases, list(training), list(validation))


def write_int8(source: Path, file: Path, data: FoldData, patch_size: Sequence[int], seed: int = 0) -> Path:
    """Quantise an OpenVINO file (.xml) to int8 with NNCF and write it to `file` (.xml, and .bin beside it).

    Calibrated on random patches of training cases, every other one around a foreground pixel.

    Args:
        source: f32 network, (B, C, *S). patch_size: (y, x) or (z, y, x).

    Raises:
        KDError: NNCF is missing.
    """
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise KDError(f'--int8 needs the package {error.name}: pip install "nnunet-kd[openvino]"') from None
    patches = [p[None] for p in _patches(data, patch_size, PATCHES, seed)]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its bars; ours counts the folds
            quantised = nncf.quantize(
                openvino.Core().read_model(str(source)),
                nncf.Dataset(patches),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(patches),
            )
    finally:
        logging.disable(level)
    quantised.set_rt_info("", ["nncf"])  # its settings, paths included
    with temporary_name(file) as temporary:
        openvino.save_model(quantised, str(temporary), compress_to_fp16=False)
    return file


def measure_dice(
    networks: dict[str, openvino.Model], data: FoldData, model: ModelFolder, precisions: dict[str, str]
) -> dict[str, float]:
    """Mean foreground Dice of OpenVINO networks over the fold's validation cases, at the preprocessed spacing.

    nnU-Net's sliding window with tile step 0.5, without mirroring. Per label (or region) counts are summed per case; a label
    that a case has neither in the annotation nor in the prediction is left out.

    Args:
        networks: name -> network. precisions: name -> "f32" or "bf16", the precision hint.
    """
    manager = PlansManager(model.plans)
    config, labels = manager.get_configuration(model.configuration), manager.get_label_manager(model.dataset_json)
    foreground = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    dice_of_network: dict[str, list[float]] = {name: [] for name in networks}
    predictors = {}
    for name, network in networks.items():
        predictor = nnUNetPredictor(
            use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
        )
        wrapped = _AsModule(compile_cpu(network, precisions[name]))
        predictor.manual_initialization(wrapped, manager, config, None, model.dataset_json, "nnUNetTrainer", None)
        predictors[name] = predictor
    for case in progress(data.validation, "Dice of int8"):
        image, truth, _, _ = data.cases.load_case(case)
        image, truth = torch.from_numpy(np.array(image[:], np.float32)), np.array(truth[:])[0]
        for name, predictor in predictors.items():
            logits = predictor.predict_sliding_window_return_logits(image)
            prediction = np.asarray(labels.convert_logits_to_segmentation(logits))
            dice_of_network[name].append(_dice(truth, prediction, foreground, labels.ignore_label))
    return {name: float(np.nanmean(values)) for name, values in dice_of_network.items()}


def _dice(truth: np.ndarray, prediction: np.ndarray, foreground: Sequence, ignore: int | None) -> float:
    values = []
    masked = truth == ignore if ignore is not None else None
    for label in foreground:
        tp, fp, fn, _ = compute_tp_fp_fn_tn(
            region_or_label_to_mask(truth, label), region_or_label_to_mask(prediction, label), masked
        )
        values.append(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else np.nan)
    return float(np.nanmean(values)) if not np.all(np.isnan(values)) else np.nan


class _AsModule(nn.Module):
    """A compiled OpenVINO network where nnU-Net's predictor expects torch."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.compiled(x.numpy())[0].copy())


def _patches(data: FoldData, patch_size: Sequence[int], count: int, seed: int) -> Iterator[np.ndarray]:
    """(C, *S) patches of random training cases; cases smaller than the patch are padded with zeros."""
    random = np.random.default_rng(seed)
    for i in range(count):
        image, _, _, properties = data.cases.load_case(data.training[random.integers(len(data.training))])
        size = image.shape[1:]
        shown = len(size) - len(patch_size)  # 2-D networks see slices: (1, y, x) or (z, y, x)
        patch = [1] * shown + list(patch_size)
        start = [int(random.integers(max(0, s - p) + 1)) for s, p in zip(size, patch, strict=True)]
        places = [v for v in (properties.get("class_locations") or {}).values() if len(v)]
        if i % 2 and places:
            places = places[random.integers(len(places))]
            centre = places[random.integers(len(places))][1:]
            start = [int(np.clip(c - p // 2, 0, max(0, s - p))) for c, p, s in zip(centre, patch, size, strict=True)]
        patch_image = np.array(image[(slice(None), *(slice(a, a + p) for a, p in zip(start, patch, strict=True)))], np.float32)
        patch_image = np.pad(patch_image, [(0, 0), *((0, p - s) for p, s in zip(patch, patch_image.shape[1:], strict=True))])
        yield patch_image.reshape(patch_image.shape[0], *patch_size)
