"""Predictions of a trained model folder on an evaluation domain, by stock nnU-Net's predictor."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_kd.evaluation.domains import Domain, read_image, read_map
from nnunet_kd.evaluation.offsets import CaseLogits
from nnunet_kd.nnunet_io.cascade import first_stage_of
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.nnunet_io.readers import reader_of
from nnunet_kd.nnunet_io.trained_fold import FINAL, OpenFold, TrainedFold
from nnunet_kd.utils.dataset_json import channel_names
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
    folder: Path, folds: Sequence[str], checkpoint: str = FINAL, device: str = "cpu", mirroring: bool = True
) -> nnUNetPredictor:
    """nnU-Net's predictor for a model folder, as `predictor_of` makes it.

    Raises:
        KDError: a file is missing or damaged, nnU-Net cannot build the network, or a cascade's first stage is missing.
    """
    opened = [TrainedFold.open(folder, folds[0], checkpoint)]
    opened += [TrainedFold.open(opened[0].model, fold, checkpoint) for fold in folds[1:]]
    return predictor_of(opened, device, mirroring)


def predictor_of(
    folds: Sequence[TrainedFold], device: str = "cpu", mirroring: bool = True, open_fold: OpenFold = TrainedFold.open
) -> nnUNetPredictor:
    """nnU-Net's predictor for opened folds of one model. Its ``first_stage`` is that of a cascade's first stage, else None.

    nnU-Net would read the files again, with the code in them; so it is given what they hold.

    Args:
        open_fold: how a first stage's folds are opened.

    Raises:
        KDError: nnU-Net cannot build the network, or a cascade's first stage is missing.
    """
    make_our_trainers_known()
    first, model = folds[0], folds[0].model
    plans = PlansManager(model.plans)
    network, axes = first.network(), first.content.get("inference_allowed_mirroring_axes")
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False)
        predictor.manual_initialization(
            network,
            plans,
            plans.get_configuration(model.configuration),
            [fold.weights for fold in folds],
            model.dataset_json,
            first.trainer_name,
            axes,
        )
    predictor.first_stage = load_first_stage(folds, device, mirroring, open_fold)
    return predictor


def load_first_stage(
    folds: Sequence[TrainedFold], device: str = "cpu", mirroring: bool = True, open_fold: OpenFold = TrainedFold.open
) -> nnUNetPredictor | None:
    """The predictor of a cascade's first stage, of the same folds or of fold "all"; None for other models.

    Raises:
        KDError: it is not to be found, or not trained.
    """
    path, checkpoint = first_stage_of(folds[0].model), folds[0].name
    if path is None:
        return None
    numbers = [fold.fold for fold in folds]
    trained = read_model_folder(path).trained_folds(checkpoint)
    chosen = numbers if set(numbers) <= set(trained) else ["all"] if "all" in trained else numbers
    return predictor_of([open_fold(path, number, checkpoint) for number in chosen], device, mirroring, open_fold)


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
    needed = len(channel_names(dataset_json))
    files = image_files(domain, domain.cases[0])
    channels = _channels(files, reader_of(dataset_json, files[0])) if files else 0
    if channels != needed:
        raise KDError(
            f"domain {domain.name}: {domain.cases[0]} has {channels} channel(s) in {domain.images}, the model reads {needed}: "
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
    predictor: nnUNetPredictor,
    domain: Domain,
    out: Path,
    label: str,
    probabilities: bool = False,
    see: Callable[[str, CaseLogits], None] | None = None,
) -> Prediction:
    """Predict every case of a domain into ``out`` (nnU-Net's own preprocessing, sliding window, mirroring and export).

    Of a cascade both stages, the first into ``out/previous_stage``.

    Args:
        label: text of the progress bar.
        probabilities: also write nnU-Net's CASE.npz.
        see: gets every case's name and logits; its time does not count.
    """
    check_images(domain, predictor.dataset_json)
    out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for case in progress(domain.cases, label):
        files = [str(f) for f in image_files(domain, case)]
        start = time.process_time()
        previous, logits = None, None
        with contextlib.redirect_stdout(io.StringIO()):
            if predictor.first_stage is not None:
                previous = out / "previous_stage"
                previous.mkdir(exist_ok=True)
                predictor.first_stage.predict_from_files_sequential([files], [str(previous / case)])
            if see is not None:
                first = previous and previous / f"{case}{domain.file_ending}"
                logits = _predict_seen(predictor, files, out / case, first, probabilities)
            else:
                predictor.predict_from_files_sequential(
                    [files],
                    [str(out / case)],
                    save_probabilities=probabilities,
                    folder_with_segs_from_prev_stage=previous and str(previous),
                )
        seconds[case] = time.process_time() - start
        if see is not None:
            see(case, logits)
    return Prediction(out, seconds)


def _predict_seen(
    predictor: nnUNetPredictor, files: list[str], out: Path, previous: Path | None, probabilities: bool
) -> CaseLogits:
    """One case as ``predict_from_files_sequential`` does it, by the same functions, and the logits that it decides on."""
    plans, labels = predictor.plans_manager, predictor.label_manager
    configuration = _Keeping(predictor.configuration_manager.configuration)
    data, first, properties = configuration.preprocessor_class(verbose=False).run_case(
        files, previous and str(previous), plans, configuration, predictor.dataset_json
    )
    if previous is not None:
        data = np.vstack([data, convert_labelmap_to_one_hot(first[0], labels.foreground_labels, data.dtype)])
    prediction = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    export_prediction_from_logits(
        prediction, properties, configuration, plans, predictor.dataset_json, str(out), save_probabilities=probabilities
    )
    return CaseLogits(
        torch.as_tensor(configuration.take()),
        tuple(slice(*b) for b in properties["bbox_used_for_cropping"]),
        tuple(plans.transpose_forward),
        tuple(labels.regions_class_order) if labels.has_regions else None,
    )


class _Keeping(ConfigurationManager):
    """nnU-Net's configuration; keeps the logits that its export resamples, which else would have to be resampled twice."""

    _kept = None

    @property
    def resampling_fn_probabilities(self) -> Callable:
        resample = super().resampling_fn_probabilities

        def keep(*arguments: Any) -> torch.Tensor | np.ndarray:
            self._kept = resample(*arguments)
            return self._kept

        return keep

    def take(self) -> torch.Tensor | np.ndarray:
        kept, self._kept = self._kept, None  # nnU-Net caches configurations
        return kept
