"""Semantic vectors of whole cases: what the Frechet Semantic Distance is computed on.

A trained run keeps its MSANs in its checkpoint. Every case is preprocessed by nnU-Net, cut into patches of the training
size, encoded by the student (or its teacher), and each patch's stage feature becomes one vector.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager, convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.config.recipe import config_of
from nnunet_kd.config.run import SECTION
from nnunet_kd.distillation.alignment import Alignment
from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.evaluation.fsd.sample import Sample
from nnunet_kd.evaluation.predict import check_images, image_files, load_first_stage, make_our_trainers_known
from nnunet_kd.networks.cost import input_channels
from nnunet_kd.networks.stages import StagePair, StageTable, StageTap, decode, encode, pair_stages, stage_table
from nnunet_kd.nnunet_io.model_folder import ModelFolder
from nnunet_kd.nnunet_io.teacher_folder import load_teacher
from nnunet_kd.nnunet_io.trained_fold import OpenFold, TrainedFold
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.progress import progress


@dataclass
class AlignedRun:
    """A network with its MSANs: everything that turns an image into semantic vectors.

    ``origin`` says where the MSANs come from: "training", or "post hoc" (post_hoc.py), whose network is the student.
    ``quality``: how well fitted ones do (relative reconstruction error and so on).
    """

    model: ModelFolder
    student: nn.Module
    teacher: nn.Module | None
    alignment: Alignment
    origin: str = "training"
    quality: dict[str, float] = field(default_factory=dict)
    first_stage: nnUNetPredictor | None = None  # of a cascade, whose second stage reads its predictions

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(n for n in self.alignment.networks if n == "student" or self.teacher is not None)

    @property
    def labels(self) -> LabelManager:
        return PlansManager(self.model.plans).get_label_manager(self.model.dataset_json)

    def vectors(self, network: str, batch: torch.Tensor) -> torch.Tensor:
        """Semantic vectors of all paired stages side by side ``(B, n)`` for images ``(B, C, *S)`` of the training patch."""
        return self._read(network, batch, logits=False)[0]

    def vectors_and_maps(self, network: str, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors and the predicted one-hot maps (regions: one map each) ``(B, heads, *S)``."""
        vectors, logits = self._read(network, batch, logits=True)
        if self.labels.has_regions:
            return vectors, (logits > 0).float()
        return vectors, onehot_maps(logits.argmax(1), self.labels)

    def semantics(self, maps: torch.Tensor) -> torch.Tensor:
        """The P-SAE's standardised vectors ``(B, d)`` of one-hot maps ``(B, heads, *S)``."""
        autoencoder = self.alignment.autoencoder
        return autoencoder.standardise(autoencoder.encode(maps))

    def _read(self, network: str, batch: torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        module = self.student if network == "student" else self.teacher
        if network == "teacher":  # one without the cascade's input reads the images alone
            batch = batch[:, : input_channels(module)]
        features, predicted = stage_features(module, batch, self.alignment.pairs, logits)
        return torch.cat(self.alignment.summaries(network, self.alignment.encode(network, features)), dim=1), predicted


def stage_features(
    network: nn.Module, batch: torch.Tensor, pairs: Sequence[StagePair], logits: bool = True
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Features of a network's stages, the decoder's too where a pair asks for them, and its logits if wanted."""
    if any(pair.decoder for pair in pairs):
        tap = StageTap(network, decoder=True)
        tap.enabled = True
        predicted = network(batch)
        features = tap.take()
        tap.remove()
        return features, predicted
    features = encode(network, batch)
    return features, decode(network, features) if logits else None


def onehot_maps(labels: torch.Tensor, manager: LabelManager) -> torch.Tensor:
    """Label map ``(B, *S)`` -> ``(B, heads, *S)`` as the P-SAE reads it: 0 everywhere where the label is ignored.

    What nnU-Net's preprocessing marks as outside the image (-1) is background.
    """
    labels = labels.clamp_min(0)
    if manager.has_regions:
        members = [torch.tensor(r if isinstance(r, tuple | list) else (r,)) for r in manager.foreground_regions]
        return torch.stack([torch.isin(labels, m) for m in members], 1).float()
    return torch.stack([labels == k for k in range(manager.num_segmentation_heads)], 1).float()


def load_aligned_run(fold: TrainedFold, with_teacher: bool = True, open_fold: OpenFold = TrainedFold.open) -> AlignedRun:
    """A training's student, its MSANs and, if wanted, its teacher.

    Args:
        open_fold: how the folds of the teacher and of a cascade's first stage are opened.

    Raises:
        KDError: no MSAN in the checkpoint (name a folder trained with nnUNetTrainerGKD, not an export), or of other plans.
    """
    make_our_trainers_known()
    model, state = fold.model, fold.msans
    if state is None:
        raise KDError(
            f"{fold.file} holds no MSAN, so it has no semantic vectors: pass nnU-Net's training folder of a student trained "
            "with nnUNetTrainerGKD (an exported model keeps only the student)"
        )
    student = fold.network()
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's search for the trainer talks
        trainer = recursive_find_trainer_class_by_name(fold.trainer_name)
    config, _ = config_of(fold.content, model.plans, trainer)
    stages = config.teacher.stages
    tables = {
        "teacher": StageTable.from_lists(stages.family, stages.channels, stages.strides),
        "student": stage_table(student),
    }
    plans = PlansManager(model.plans)
    configuration = plans.get_configuration(model.configuration)
    outputs = plans.get_label_manager(model.dataset_json).num_segmentation_heads
    pairs = pair_stages(tables["teacher"], tables["student"], config.msan.stages)
    regions = plans.get_label_manager(model.dataset_json).has_regions
    alignment = Alignment(config.msan, config.act, pairs, tables, configuration.patch_size, outputs, regions)
    try:
        alignment.load_state_dict(state)
    except RuntimeError:
        raise KDError(
            f'{fold.file} holds MSANs that do not fit "{SECTION}" in {model.path / "plans.json"}: put the plans back that it '
            "was trained with"
        ) from None
    teacher = None
    if with_teacher:
        with contextlib.redirect_stdout(io.StringIO()):
            teacher = load_teacher(
                config.teacher, fold.fold, model.plans, model.configuration, model.dataset_json, open_fold
            ).network
    first_stage = load_first_stage([fold], open_fold=open_fold)
    return AlignedRun(model, student, teacher, alignment.eval(), first_stage=first_stage)


@torch.no_grad()
def semantic_vectors(
    run: AlignedRun,
    domain: Domain,
    networks: tuple[str, ...] = ("student",),
    step: float = 0.5,
    batch_size: int = 8,
    maps: bool = False,
) -> dict[str, Sample]:
    """Semantic vectors of a domain, case by case and batch by batch: one preprocessed case is in memory at a time.

    Args:
        networks: "student", "teacher".
        step: distance of neighbouring patches as a fraction of the patch.
        maps: also the P-SAE's vectors of what the networks predict on each patch ("student prediction", ...) and, where the
            domain is annotated, of its "annotation".

    Returns:
        A sample by network: the vectors of n patches (of several paired stages side by side) and their cases. Patches without
        a single non-zero pixel (outside the field of view) are left out.

    Raises:
        KDError: images that the model cannot read, that are zero everywhere, or that make fewer than two patches.
    """
    check_images(domain, run.model.dataset_json)
    maps = maps and run.alignment.autoencoder is not None
    annotated = maps and all((domain.labels / f"{c}{domain.file_ending}").is_file() for c in domain.cases)
    vectors: dict[str, list[np.ndarray]] = {}
    owners: list[str] = []
    manager = run.labels
    for case in progress(domain.cases, f"vectors {domain.name}"):
        data, labels = _preprocess(run, domain, case, annotated)
        for images, truth in _batches(data, labels, run.model, step, batch_size):
            owners += [case] * len(images)
            batch = {}
            for name in networks:
                if not maps:
                    batch[name] = run.vectors(name, images)
                    continue
                batch[name], predicted = run.vectors_and_maps(name, images)
                if annotated and manager.has_ignore_label:
                    predicted = predicted * (truth != manager.ignore_label)[:, None]
                batch[f"{name} prediction"] = run.semantics(predicted)
            if annotated:
                batch["annotation"] = run.semantics(onehot_maps(truth, manager))
            for name, values in batch.items():
                vectors.setdefault(name, []).append(values.numpy())
    if not owners:
        raise KDError(f"domain {domain.name}: its {len(domain.cases)} image(s) are zero everywhere in {domain.images}")
    try:
        return {name: Sample(np.concatenate(parts), np.array(owners)) for name, parts in vectors.items()}
    except ValueError as error:
        raise KDError(f"semantic vectors of domain {domain.name}: {error}; give it more cases") from None


def _preprocess(run: AlignedRun, domain: Domain, case: str, annotated: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """A case as the network reads it, ``(C, *S)``, and its annotation at the same resolution, ``(*S)``."""
    model, plans = run.model, PlansManager(run.model.plans)
    configuration = plans.get_configuration(model.configuration)
    files = [str(f) for f in image_files(domain, case)]
    preprocessor = configuration.preprocessor_class(verbose=False)

    def read(labels: Path | None) -> tuple[np.ndarray, np.ndarray]:
        image, annotation, _ = preprocessor.run_case(files, labels and str(labels), plans, configuration, model.dataset_json)
        return np.asarray(image), np.asarray(annotation)[0]

    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as scratch:
        data, labels = read(domain.labels / f"{case}{domain.file_ending}" if annotated else None)
        if run.first_stage is not None:
            run.first_stage.predict_from_files_sequential([files], [str(Path(scratch) / case)])
            previous = read(Path(scratch) / f"{case}{domain.file_ending}")[1]
            data = np.concatenate([data, convert_labelmap_to_one_hot(previous, run.labels.foreground_labels, data.dtype)])
    return data, labels if annotated else None


def _batches(
    data: np.ndarray, labels: np.ndarray | None, model: ModelFolder, step: float, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Patches of the training size ``(B, C, *S)`` with their annotation ``(B, *S)``, one batch at a time."""
    patch = list(PlansManager(model.plans).get_configuration(model.configuration).patch_size)
    images = len(channel_names(model.dataset_json))  # a cascade's maps follow
    stack = data if labels is None else np.concatenate([data, labels[None].astype(data.dtype)])
    waiting: list[torch.Tensor] = []
    for cut in _patches(stack, patch, step, images):
        waiting.append(cut)
        if len(waiting) == size:
            yield _split(waiting, len(data))
            waiting = []
    if waiting:
        yield _split(waiting, len(data))


def _split(patches: list[torch.Tensor], channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch = torch.stack(patches)
    return batch[:, :channels], batch[:, channels].round().long() if batch.shape[1] > channels else None


def _patches(data: np.ndarray, patch: list[int], step: float, channels: int) -> Iterator[torch.Tensor]:
    slices = [data] if data.ndim - 1 == len(patch) else (data[:, z] for z in range(data.shape[1]))
    for image in slices:
        short = [max(0, p - s) for p, s in zip(patch, image.shape[1:], strict=True)]
        image = np.pad(image, [(0, 0), *[(s // 2, s - s // 2) for s in short]])
        starts = compute_steps_for_sliding_window(image.shape[1:], patch, step)
        for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(patch)):
            cut = image[(slice(None), *[slice(c, c + p) for c, p in zip(corner, patch, strict=True)])]
            if cut[:channels].any():
                yield torch.from_numpy(np.ascontiguousarray(cut)).float()
