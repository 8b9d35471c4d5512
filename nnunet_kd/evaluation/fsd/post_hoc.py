"""MSANs for a trained model that has none (a control, a teacher, any nnU-Net folder), so that FSD can read it.

One alignment network is fitted to the frozen model on training cases of its data set, by the same Alignment Consistency
Training as in a distillation run and with a preset's settings, but for two things: there is no other network to align with, and
patches are not augmented in space (the preset's views stay). Models that are to be compared get the same settings, seed and
batches, and so the very same P-SAE, if they share preprocessed data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.augmentation.views import Views as Augmentation
from nnunet_kd.config.presets import NAMES, settings_of
from nnunet_kd.config.recipe import config_of
from nnunet_kd.config.terms import ACT, MSAN, Views
from nnunet_kd.datasets.nnunet_format import read_fold
from nnunet_kd.distillation.alignment import Alignment, AlignmentTrainer
from nnunet_kd.evaluation.fsd.vectors import AlignedRun, onehot_maps, stage_features
from nnunet_kd.evaluation.predict import load_first_stage, make_our_trainers_known
from nnunet_kd.networks.semantic_autoencoder import SemanticAutoencoder
from nnunet_kd.networks.stages import StagePair, pair_stages, stage_table
from nnunet_kd.nnunet_io.cascade import check_predictions, first_stage_of, predictions_of
from nnunet_kd.nnunet_io.checkpoints import save_atomically
from nnunet_kd.nnunet_io.model_folder import ModelFolder
from nnunet_kd.nnunet_io.trained_fold import OpenFold, TrainedFold
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import sha256
from nnunet_kd.utils.finite import SkipStep
from nnunet_kd.utils.progress import progress
from nnunet_kd.utils.random_state import random_state, seed_everything, set_random_state

PRESET = "kd+adjusted+mirrored"  # whose MSANs are fitted where nothing else is said, as in docs/results.md
_FOREGROUND = 0.33  # nnU-Net's share of patches that must show foreground


@dataclasses.dataclass(frozen=True)
class Fit:
    """What is fitted and for how long. ``steps``: of P-SAE and MSAN together, in the proportion that ``act`` gives them."""

    msan: MSAN
    act: ACT
    views: Views | None
    steps: int = 600
    seed: int = 0

    @property
    def warm_up(self) -> int:
        """Steps of the P-SAE, before the MSAN's."""
        end = self.act.end if self.msan.after_act == "frozen" else 1.0
        return max(1, round(self.steps * self.act.start / end)) if self.act.semantic else 0


def fit_of(preset: str = PRESET, steps: int = 600, seed: int = 0) -> Fit:
    """A preset's MSAN, ACT and view settings.

    Raises:
        KDError: no such preset, or one without MSANs.
    """
    with_msan = [name for name in NAMES if "msan" in settings_of(name)]
    if preset not in with_msan:
        raise KDError(f'preset "{preset}" has no MSANs to fit: use one of {", ".join(with_msan)}')
    content = settings_of(preset)
    return Fit(
        MSAN(**content["msan"]),
        dataclasses.replace(ACT(**content.get("act", {})), alignment=0.0),
        Views(**content["views"]) if "views" in content else None,
        steps,
        seed,
    )


def fit_of_run(fold: TrainedFold, steps: int = 600, seed: int = 0) -> Fit:
    """The settings that a training's own MSANs were trained with."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    make_our_trainers_known()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = recursive_find_trainer_class_by_name(fold.trainer_name)
    config, _ = config_of(fold.content, fold.model.plans, trainer)
    return Fit(config.msan, dataclasses.replace(config.act, alignment=0.0), config.views, steps, seed)


def fitted_run(
    fold: TrainedFold, fit: Fit, name: str | None = None, cache: Path | None = None, open_fold: OpenFold = TrainedFold.open
) -> AlignedRun:
    """The model with MSANs fitted to it, taken from ``cache`` if the very same fit has been done.

    Args:
        fold: of any nnU-Net model with an encoder-decoder network.
        name: for the progress bar and the cache's file; by default the folder's.
        cache: folder for fitted MSANs; nothing is ever written into the model's folder.
        open_fold: how the folds of a cascade's first stage are opened.

    Raises:
        KDError: no preprocessed data of the model's data set, or a network without stages.
    """
    make_our_trainers_known()
    model = fold.model
    name = name or model.path.name
    before = random_state()
    try:
        network = fold.network()
        data, cases = training_cases(model, fold.fold)
        first_stage = load_first_stage([fold], open_fold=open_fold)
        run = AlignedRun(model, network, None, _untrained(model, network, fit), "post hoc", first_stage=first_stage)
        if cache is None:
            run.quality = _train(run, fit, data, cases, name)
            return run
        file = Path(cache) / f"{name}_{_key(fold, fit, data, cases)}.pth"
        if not _restore(run, file):
            run.quality = _train(run, fit, data, cases, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_atomically({"alignment": run.alignment.state_dict(), "quality": run.quality}, file)
        return run
    finally:
        set_random_state(before)


def training_cases(model: ModelFolder, fold: int | str) -> tuple[Path, list[str]]:
    """The folder of preprocessed data that the model was trained on, and the training cases of its fold.

    Raises:
        KDError: it is not there.
    """
    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        raise KDError(
            "environment variable nnUNet_preprocessed is not set: MSANs are fitted on the model's training data there"
        )
    dataset = Path(root) / model.plans["dataset_name"]
    identifier = PlansManager(model.plans).get_configuration(model.configuration).data_identifier
    folder = dataset / identifier
    if not folder.is_dir() or not any(folder.iterdir()):
        raise KDError(
            f"{folder} is missing: MSANs of {model.path.name} are fitted on its preprocessed training cases; run "
            f"nnUNetv2_preprocess for {model.plans['dataset_name']}, or set nnUNet_preprocessed"
        )
    cases = sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
    split = read_fold(dataset, fold)
    if split is not None:
        known = set(split["train"])
        cases = [c for c in cases if c in known] or cases
    return folder, cases


def _untrained(model: ModelFolder, network: nn.Module, fit: Fit) -> Alignment:
    table = stage_table(network)
    pairs = [StagePair(p.name, p.student, p.student, p.decoder) for p in pair_stages(table, table, fit.msan.stages)]
    manager = PlansManager(model.plans)
    labels, patch = manager.get_label_manager(model.dataset_json), manager.get_configuration(model.configuration).patch_size
    heads, regions = labels.num_segmentation_heads, labels.has_regions
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        alignment = Alignment(fit.msan, fit.act, pairs, {"student": table}, patch, heads, regions)
        if alignment.autoencoder is not None:  # the same for every model: from random numbers that no MSAN has used
            torch.manual_seed(fit.seed + 1)
            alignment.autoencoder = SemanticAutoencoder(heads, len(patch), fit.msan.dim, regions=regions).requires_grad_(False)
    return alignment.eval()


def _train(run: AlignedRun, fit: Fit, folder: Path, cases: list[str], name: str) -> dict[str, float]:
    manager = PlansManager(run.model.plans)
    configuration, labels = manager.get_configuration(run.model.configuration), run.labels
    patch, alignment = list(configuration.patch_size), run.alignment
    previous = None
    if run.first_stage is not None:
        previous = predictions_of(first_stage_of(run.model), run.model.configuration)
        check_predictions(previous, cases)
    dataset = infer_dataset_class(str(folder))(str(folder), cases, previous and str(previous))
    loader = nnUNetDataLoader(dataset, configuration.batch_size, patch, patch, labels, _FOREGROUND)
    trainer = AlignmentTrainer(alignment)
    augment = Augmentation(fit.views.preset, configuration.use_mask_for_norm) if fit.views else None
    generator = torch.Generator().manual_seed(fit.seed)
    seed_everything(fit.seed)
    last: list[dict[str, float]] = []
    lost = 0
    for step in progress(range(fit.steps), f"MSAN of {name}", unit="step"):
        batch = loader.generate_train_batch()
        images, truth = batch["data"].float(), batch["target"][:, 0].long()
        onehot = onehot_maps(truth, labels)
        mask = (truth != labels.ignore_label)[:, None] if labels.has_ignore_label else None
        try:
            if step < fit.warm_up:
                trainer.autoencoder_step(onehot, mask)
                continue
            order = torch.randperm(len(images), generator=generator)  # nnU-Net puts forced foreground last
            rows = order[: max(1, round(fit.act.share * len(images)))]
            images, onehot, mask = images[rows], onehot[rows], None if mask is None else mask[rows]
            views = [augment(images, generator) for _ in range(fit.views.count)] if augment else []
            if previous is not None:
                below = convert_labelmap_to_one_hot(
                    batch["target"][rows, 1].clamp_min(0).long(), [0, *labels.foreground_labels]
                )
                images, *views = (torch.cat([v, below.movedim(0, 1)[:, 1:].float()], 1) for v in (images, *views))
            features, logits = _features(run.student, images, views, alignment.pairs, bool(fit.act.decoded))
            remaining = (fit.steps - step) / (fit.steps - fit.warm_up)
            values = trainer.msan_step(
                {"student": run.student},
                {"student": features},
                {"student": logits},
                onehot,
                remaining,
                labels.has_regions,
                mask,
            )
        except SkipStep as skip:
            lost += 1
            if lost > 20:
                raise KDError(f"MSANs of {name} cannot be fitted: {skip}; the model or its data hold NaN or Inf") from None
            continue
        last = [*last[-49:], {k.removesuffix("_student").removeprefix("act_"): v for k, v in values.items()}]
    return {k: float(np.mean([v[k] for v in last])) for k in last[-1]} if last else {}


@torch.no_grad()
def _features(
    network: nn.Module, images: torch.Tensor, views: list[torch.Tensor], pairs: list[StagePair], logits: bool
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Stage features of anchors and views, and the anchors' logits: ACT counts its anchors by them even if it reads none."""
    features, predicted = stage_features(network, torch.cat([images, *views]), pairs, logits)
    return features, images.new_zeros(len(images), 0) if predicted is None else predicted[: len(images)]


def _key(fold: TrainedFold, fit: Fit, folder: Path, cases: list[str]) -> str:
    """Of all that the fitted weights depend on, the files' contents of the preprocessed data excepted."""
    content = {
        "format": 1,
        "weights": sha256(fold.file),
        "plans": fold.model.plans_hash,
        "fit": dataclasses.asdict(fit),
        "data": folder.name,
        "cases": cases,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _restore(run: AlignedRun, file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        content = torch.load(file, weights_only=True)
        run.alignment.load_state_dict(content["alignment"])
    except Exception:  # damaged, or of another version: fitted again
        return False
    run.quality = content["quality"]
    return True
