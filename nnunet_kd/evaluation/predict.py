"""Predictions of a trained model folder on an evaluation domain, by stock nnU-Net's predictor."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.evaluation.domains import Domain, read_image, read_map
from nnunet_kd.nnunet_io.cascade import first_stage_of
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.nnunet_io.dataset_json import channel_names, reader_of
from nnunet_kd.nnunet_io.model_folder import ModelFolder, read_model_folder
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError, first_line
from nnunet_kd.utils.progress import progress


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
    """nnU-Net's predictor for a model folder. Its ``first_stage`` is the predictor of a cascade's first stage, else None.

    Raises:
        KDError: a file is missing or damaged, nnU-Net cannot build the network, or a cascade's first stage is missing.
    """
    model = read_model_folder(folder)
    for fold in folds:
        load_checkpoint(model.checkpoint(fold, checkpoint))  # nnU-Net's own reading would run a foreign file's code
    make_our_trainers_known()
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False)
        try:
            predictor.initialize_from_trained_model_folder(str(model.path), folds, checkpoint)
        except RuntimeError as error:
            raise KDError(
                f"nnU-Net cannot load {model.path}: {first_line(error)}; if its trainer lives outside nnU-Net, set "
                "nnUNet_extTrainer to its folder"
            ) from error
    predictor.first_stage = load_first_stage(model, folds, checkpoint, device, mirroring)
    return predictor


def load_first_stage(
    model: ModelFolder, folds: tuple[str, ...], checkpoint: str, device: str = "cpu", mirroring: bool = True
) -> nnUNetPredictor | None:
    """The predictor of a cascade's first stage, of the same folds or of fold "all"; None for other models.

    Raises:
        KDError: it is not to be found, or not trained.
    """
    first = first_stage_of(model)
    if first is None:
        return None
    trained = read_model_folder(first).trained_folds(checkpoint)
    wanted = folds if set(map(str, folds)) <= set(trained) else ("all",) if "all" in trained else folds
    return load_predictor(first, tuple(map(str, wanted)), checkpoint, device, mirroring)


def image_files(domain: Domain, case: str) -> list[Path]:
    """A case's image files in the order of their numbers: one per channel, or one colour picture (`rgb`)."""
    numbered = (domain.images / f"{case}_{i:04d}{domain.file_ending}" for i in itertools.count())
    return list(itertools.takewhile(Path.is_file, numbered))


def check_images(domain: Domain, dataset_json: dict) -> None:
    """Raise KDError unless the domain has the kind and number of channels that a model with this dataset.json reads.

    nnU-Net would fail deep inside on too few, and a model of one channel would silently take the first of three files.
    """
    ending = dataset_json["file_ending"]
    if ending != domain.file_ending:
        raise KDError(f"domain {domain.name} has {domain.file_ending} files, the model reads {ending}: convert the domain")
    wanted = len(channel_names(dataset_json))
    files = image_files(domain, domain.cases[0])
    found = _channels(files, reader_of(dataset_json, files[0])) if files else 0
    if found != wanted:
        raise KDError(
            f"domain {domain.name}: {domain.cases[0]} has {found} channel(s) in {domain.images}, the model reads {wanted}: "
            "convert the domain as the model's dataset was"
        )
    for case in domain.cases:
        if len(image_files(domain, case)) != len(files):
            raise KDError(
                f"domain {domain.name}: {case} has {len(image_files(domain, case))} image file(s) in {domain.images}, "
                f"{domain.cases[0]} has {len(files)}: every case needs the same channels"
            )


def check_readable(domain: Domain, labelled: bool = True) -> None:
    """Read every image and, unless told otherwise, every label once: a damaged file is named before hours of predicting.

    Raises:
        KDError: a file cannot be read, or a label is not of its image's size.
    """
    for case in progress(domain.cases, f"checking {domain.name}"):
        files = image_files(domain, case)
        images = [read_image(domain, case, channel) for channel in range(len(files))]
        if not labelled:
            continue
        file = domain.labels / f"{case}{domain.file_ending}"
        label = read_map(file)[0]
        for source, image in zip(files, images, strict=True):
            # several channels in one file come last in a picture, first in a volume
            if label.shape not in (image.shape[: label.ndim], image.shape[-label.ndim :]):
                sizes = ["x".join(map(str, shape)) for shape in (label.shape, image.shape)]
                raise KDError(
                    f"{file} is {sizes[0]}, its image {source.name} {sizes[1]}: the files do not belong together, name the "
                    "folders of one data set"
                )


def _channels(files: list[Path], reader: type[BaseReaderWriter]) -> int:
    """As nnU-Net counts them: a file may hold several."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return len(reader().read_images([str(file) for file in files])[0])
    except Exception as error:  # readers raise whatever they like
        names = ", ".join(file.name for file in files)
        raise KDError(
            f"nnU-Net's {reader.__name__} cannot read {names} in {files[0].parent} ({first_line(error)}): the files are "
            "damaged, or do not belong together"
        ) from error


def predict_domain(
    predictor: nnUNetPredictor, domain: Domain, out: Path, label: str, probabilities: bool = False
) -> Prediction:
    """Predict every case of a domain into ``out`` (nnU-Net's own preprocessing, sliding window, mirroring and export).

    Of a cascade both stages, the first into ``out/previous_stage``.

    Args:
        label: text of the progress bar.
        probabilities: also write nnU-Net's CASE.npz.
    """
    check_images(domain, predictor.dataset_json)
    out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for case in progress(domain.cases, label):
        files = [str(f) for f in image_files(domain, case)]
        start = time.process_time()
        previous = None
        with contextlib.redirect_stdout(io.StringIO()):
            if predictor.first_stage is not None:
                previous = out / "previous_stage"
                previous.mkdir(exist_ok=True)
                predictor.first_stage.predict_from_files_sequential([files], [str(previous / case)])
                previous = str(previous)
            predictor.predict_from_files_sequential(
                [files], [str(out / case)], save_probabilities=probabilities, folder_with_segs_from_prev_stage=previous
            )
        seconds[case] = time.process_time() - start
    return Prediction(out, seconds)
