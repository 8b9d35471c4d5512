"""Predictions of a trained model folder on an evaluation domain, by stock nnU-Net's predictor."""

from __future__ import annotations

import contextlib
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunet_kd.checkpoints import load_checkpoint
from nnunet_kd.errors import KDError
from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.paths import trainers_path
from nnunet_kd.teacher import read_model_folder


@dataclass(frozen=True)
class Prediction:
    """Where the label maps lie, and the CPU seconds each case took (file in to file out)."""

    folder: Path
    cpu_seconds: dict[str, float]


def make_our_trainers_known() -> None:
    """Let nnU-Net find this package's trainers by the names in their checkpoints, whatever the user has set."""
    ours, current = str(trainers_path()), os.environ.get("nnUNet_extTrainer", "")
    if ours not in current.split(os.pathsep):
        os.environ["nnUNet_extTrainer"] = f"{current}{os.pathsep}{ours}" if current else ours


def load_predictor(
    folder: Path, folds: tuple[str, ...], checkpoint: str, device: str = "cpu", mirroring: bool = True
) -> nnUNetPredictor:
    """nnU-Net's predictor for a model folder; the checkpoints are checked first, so that errors are plain."""
    model = read_model_folder(folder)
    for fold in folds:
        load_checkpoint(model.checkpoint(fold, checkpoint))
    make_our_trainers_known()
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model.path), folds, checkpoint)
    return predictor


def predict_domain(predictor: nnUNetPredictor, domain: Domain, out: Path, label: str) -> Prediction:
    """Predict every case of a domain into ``out`` (nnU-Net's own preprocessing, sliding window, mirroring and export)."""
    out.mkdir(parents=True, exist_ok=True)
    channels = predictor.dataset_json["channel_names"]
    ending = predictor.dataset_json["file_ending"]
    if ending != domain.file_ending:
        raise KDError(f"domain {domain.name} has {domain.file_ending} files, the model reads {ending}: convert the domain")
    seconds = {}
    for case in tqdm(domain.cases, desc=label, unit="case", leave=False):
        files = [str(domain.images / f"{case}_{int(c):04d}{ending}") for c in channels]
        missing = [f for f in files if not Path(f).is_file()]
        if missing:
            raise KDError(f"image {missing[0]} is missing: the model needs {len(channels)} channel(s) per case")
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            predictor.predict_from_files_sequential([files], [str(out / case)])
        seconds[case] = time.process_time() - start
    return Prediction(out, seconds)
