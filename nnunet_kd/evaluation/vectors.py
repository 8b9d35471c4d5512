"""Semantic vectors of whole cases: what the Frechet Semantic Distance is computed on.

A trained run keeps its MSANs in its checkpoint. Every case is preprocessed by nnU-Net, cut into patches of the training
size, encoded by the student (or its teacher), and each patch's stage feature becomes one vector.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from tqdm import tqdm

from nnunet_kd.alignment import Alignment
from nnunet_kd.checkpoints import load_checkpoint
from nnunet_kd.config import SECTION, read_config
from nnunet_kd.errors import KDError
from nnunet_kd.evaluation.domains import Domain
from nnunet_kd.evaluation.predict import check_images, image_files, make_our_trainers_known
from nnunet_kd.stages import StageTable, StageTap, encode, pair_stages, stage_table
from nnunet_kd.teacher import ModelFolder, load_network, load_teacher, read_model_folder


@dataclass
class AlignedRun:
    """A trained run with its MSANs: everything that turns an image into semantic vectors."""

    model: ModelFolder
    student: nn.Module
    teacher: nn.Module | None
    alignment: Alignment

    def vectors(self, network: str, batch: torch.Tensor) -> torch.Tensor:
        """Semantic vectors of all paired stages side by side ``(B, n)`` for images ``(B, C, *S)`` of the training patch."""
        module = self.student if network == "student" else self.teacher
        if any(pair.decoder for pair in self.alignment.pairs):
            tap = StageTap(module, decoder=True)
            tap.enabled = True
            module(batch)
            features = tap.take()
            tap.remove()
        else:
            features = encode(module, batch)
        return torch.cat(self.alignment.summaries(network, self.alignment.encode(network, features)), dim=1)


def has_alignment(folder: str | Path, fold: int | str = 0, checkpoint: str = "checkpoint_final.pth") -> bool:
    """Whether a model folder's checkpoint holds MSANs (an exported model or a control does not)."""
    state = load_checkpoint(read_model_folder(folder).checkpoint(fold, checkpoint)).get(SECTION, {})
    return "alignment" in state.get("distiller", {})


def load_aligned_run(
    folder: str | Path, fold: int | str = 0, checkpoint: str = "checkpoint_final.pth", with_teacher: bool = True
) -> AlignedRun:
    """Load a training folder's student, its MSANs and, if wanted, its teacher.

    Raises:
        KDError: no MSAN in the checkpoint (name a folder trained with nnUNetTrainerGKD, not an export), or of other plans.
    """
    make_our_trainers_known()
    model = read_model_folder(folder)
    file = model.checkpoint(fold, checkpoint)
    content = load_checkpoint(file)
    state = content.get(SECTION, {}).get("distiller", {}).get("alignment")
    if state is None:
        raise KDError(
            f"{file} holds no MSAN, so it has no semantic vectors: pass nnU-Net's training folder of a student trained with "
            "nnUNetTrainerGKD (an exported model keeps only the student)"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's search for the trainer talks
        student = load_network(model, fold, checkpoint)
        preset = recursive_find_trainer_class_by_name(content["trainer_name"]).preset
    config = read_config(model.plans, preset, content["trainer_name"])
    stages = config.teacher.stages
    tables = {
        "teacher": StageTable.from_lists(stages.family, stages.channels, stages.strides),
        "student": stage_table(student),
    }
    plans = PlansManager(model.plans)
    configuration = plans.get_configuration(model.configuration)
    if configuration.previous_stage_name is not None:
        raise KDError(f"{model.path} is the second stage of a cascade, which cannot be evaluated yet: name another model")
    outputs = plans.get_label_manager(model.dataset_json).num_segmentation_heads
    pairs = pair_stages(tables["teacher"], tables["student"], config.msan.stages)
    regions = plans.get_label_manager(model.dataset_json).has_regions
    alignment = Alignment(config.msan, config.act, pairs, tables, configuration.patch_size, outputs, regions)
    try:
        alignment.load_state_dict(state)
    except RuntimeError:
        raise KDError(
            f'{file} holds MSANs that do not fit "{SECTION}" in {model.path / "plans.json"}: put the plans back that it was '
            "trained with"
        ) from None
    teacher = None
    if with_teacher:
        with contextlib.redirect_stdout(io.StringIO()):
            teacher = load_teacher(config.teacher, fold, model.plans, model.configuration, model.dataset_json).network
    return AlignedRun(model, student, teacher, alignment.eval())


@torch.no_grad()
def semantic_vectors(
    run: AlignedRun, domain: Domain, networks: tuple[str, ...] = ("student",), step: float = 0.5, batch_size: int = 8
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Semantic vectors of a domain.

    Args:
        networks: "student", "teacher".
        step: distance of neighbouring patches as a fraction of the patch.

    Returns:
        ``{network: (n, d)}`` (vectors of several paired stages side by side) and the case of each of the n patches.
        Patches without a single non-zero pixel (outside the field of view) are left out.

    Raises:
        KDError: images that the model cannot read, or that are zero everywhere.
    """
    check_images(domain, run.model.dataset_json)
    vectors: dict[str, list[np.ndarray]] = {n: [] for n in networks}
    owners: list[str] = []
    for case in tqdm(domain.cases, desc=f"vectors {domain.name}", unit="case", leave=False, disable=None):
        patches = _patches(_preprocess(run.model, domain, case), run.model, step)
        owners += [case] * len(patches)
        for i in range(0, len(patches), batch_size):
            batch = torch.stack(patches[i : i + batch_size])
            for name in networks:
                vectors[name].append(run.vectors(name, batch).numpy())
    if not owners:
        raise KDError(f"domain {domain.name}: its {len(domain.cases)} image(s) are zero everywhere in {domain.images}")
    return {n: np.concatenate(v) for n, v in vectors.items()}, owners


def _preprocess(model: ModelFolder, domain: Domain, case: str) -> np.ndarray:
    plans = PlansManager(model.plans)
    configuration = plans.get_configuration(model.configuration)
    files = [str(f) for f in image_files(domain, case)]
    with contextlib.redirect_stdout(io.StringIO()):
        data, _, _ = configuration.preprocessor_class(verbose=False).run_case(
            files, None, plans, configuration, model.dataset_json
        )
    return np.asarray(data)


def _patches(data: np.ndarray, model: ModelFolder, step: float) -> list[torch.Tensor]:
    patch = list(PlansManager(model.plans).get_configuration(model.configuration).patch_size)
    slices = [data] if data.ndim - 1 == len(patch) else [data[:, z] for z in range(data.shape[1])]
    found = []
    for image in slices:
        short = [max(0, p - s) for p, s in zip(patch, image.shape[1:], strict=True)]
        image = np.pad(image, [(0, 0), *[(s // 2, s - s // 2) for s in short]])
        starts = compute_steps_for_sliding_window(image.shape[1:], patch, step)
        for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(patch)):
            cut = image[(slice(None), *[slice(c, c + p) for c, p in zip(corner, patch, strict=True)])]
            if cut.any():
                found.append(torch.from_numpy(np.ascontiguousarray(cut)).float())
    return found
