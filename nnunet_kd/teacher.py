"""A trained nnU-Net model folder as one frozen module: strict, fold-matched, safely loaded."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.checkpoints import load_checkpoint
from nnunet_kd.config import SECTION, Teacher, TeacherStages
from nnunet_kd.errors import KDError, NotSupported
from nnunet_kd.paths import trainers_path
from nnunet_kd.stages import StageTable, stage_table
from nnunet_kd.trust import check_architectures


@dataclass
class ModelFolder:
    """nnU-Net's training output folder: ``Trainer__Plans__configuration`` with plans.json and dataset.json."""

    path: Path
    plans: dict
    dataset_json: dict
    configuration: str

    @property
    def trainer(self) -> str:
        """Name of the trainer class: the folder's, or of a renamed folder what its first checkpoint says."""
        parts = self.path.name.split("__")
        if len(parts) == 3:
            return parts[0]
        file = next(iter(sorted(self.path.glob("fold_*/checkpoint_*.pth"))), None)
        return "nnUNetTrainer" if file is None else load_checkpoint(file)["trainer_name"]

    @property
    def plans_hash(self) -> str:
        """Hash of what the network and its input depend on."""
        relevant = {"dataset": self.plans["dataset_name"], "configuration": self.configuration,
                    "plans": self.plans["configurations"]}  # fmt: skip
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]

    def checkpoint(self, fold: int | str, name: str = "checkpoint_final.pth") -> Path:
        return self.path / f"fold_{fold}" / name

    def trained_folds(self, name: str = "checkpoint_final.pth") -> list[str]:
        return sorted(p.parent.name[len("fold_") :] for p in self.path.glob(f"fold_*/{name}"))


def resolve_folder(folder: str | Path) -> Path:
    """An absolute path, or one relative to nnUNet_results (tried first) or to the current folder."""
    folder = Path(folder).expanduser()
    if folder.is_absolute():
        return folder
    if nnUNet_results.is_set() and (Path(str(nnUNet_results)) / folder).is_dir():
        return Path(str(nnUNet_results)) / folder
    return folder.resolve()


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Read plans and dataset.json of a trained model folder (``.../fold_0`` is accepted too).

    Raises:
        KDError: the folder or one of its files is missing or unreadable, its name does not tell the configuration, or its
            plans name what is no network class (trust.py).
    """
    path = resolve_folder(folder)
    if path.name.startswith("fold_"):
        path = path.parent
    if not path.is_dir():
        raise KDError(f"model folder {path} does not exist: pass nnU-Net's folder TRAINER__PLANS__CONFIGURATION")
    plans = _read_object(path / "plans.json", {"dataset_name": str, "plans_name": str, "configurations": dict})
    dataset_json = _read_object(path / "dataset.json", {"labels": dict, "file_ending": str})
    if not isinstance(dataset_json.get("channel_names", dataset_json.get("modality")), dict):
        raise KDError(f"{path / 'dataset.json'} names no input channels (channel_names): restore the file")
    check_architectures(plans, path / "plans.json")
    configuration = path.name.split("__")[-1]
    if configuration not in plans.get("configurations", {}):
        configuration = _configuration_of_checkpoint(path, plans)
    return ModelFolder(path, plans, dataset_json, configuration)


def _read_object(file: Path, keys: dict[str, type]) -> dict:
    restore = "train the model again or restore the file"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KDError(f"{file} is missing: train the model first with nnUNetv2_train, or fix the path") from None
    except ValueError as error:
        raise KDError(f"{file} is not valid JSON ({error}): {restore}") from None
    for key, kind in keys.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise KDError(f'{file} is not nnU-Net\'s ("{key}" is missing or no {kind.__name__}): {restore}')
    return content


def _configuration_of_checkpoint(path: Path, plans: dict) -> str:
    """The configuration of a renamed folder (an exported model, say), from its first checkpoint."""
    for file in sorted(path.glob("fold_*/checkpoint_*.pth")):
        configuration = load_checkpoint(file)["init_args"].get("configuration")
        if configuration in plans.get("configurations", {}):
            return configuration
    raise KDError(
        f"{path} is not named TRAINER__PLANS__CONFIGURATION and holds no checkpoint that tells its configuration: "
        f"name it so that it ends in __CONFIGURATION (one of {', '.join(plans.get('configurations', {}))})"
    )


def build_network(model: ModelFolder, trainer_name: str = "nnUNetTrainer") -> nn.Module:
    """The untrained network of a model folder, built by the trainer class that trained it, without deep supervision.

    Raises:
        KDError: nnU-Net does not find the class, or it cannot build a network from these plans.
    """
    manager = PlansManager(model.plans)
    configuration = manager.get_configuration(model.configuration)
    inputs = determine_num_input_channels(manager, configuration, model.dataset_json)
    outputs = manager.get_label_manager(model.dataset_json).num_segmentation_heads
    if (trainers_path() / f"{trainer_name}.py").is_file():
        trainer_name = "nnUNetTrainer"  # ours keep nnU-Net's network, and need not be in nnUNet_extTrainer to be a teacher
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's search talks
            build = recursive_find_trainer_class_by_name(trainer_name).build_network_architecture
        parameters = inspect.signature(build).parameters
        if "plans_manager" in parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
            return build(manager, configuration, inputs, outputs, enable_deep_supervision=False)
        names = ("network_arch_class_name", "network_arch_init_kwargs", "network_arch_init_kwargs_req_import")
        old = [getattr(configuration, name) for name in names]  # the arguments of nnU-Net 2.5, which 2.8 takes as well
        return build(*old, inputs, outputs, enable_deep_supervision=False)
    except (RuntimeError, ImportError, AssertionError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise KDError(
            f"cannot build the network of {model.path / 'plans.json'}: {_first_line(error)}; if its trainer lives outside "
            "nnU-Net, set nnUNet_extTrainer to its folder (ours: `nnunet-kd trainers-path`)"
        ) from error


def load_network(model: ModelFolder, fold: int | str, checkpoint: str = "checkpoint_final.pth") -> nn.Module:
    """The trained network of one fold, in eval mode, strictly loaded.

    Raises:
        KDError: checkpoint missing, truncated or of another network.
    """
    file = model.checkpoint(fold, checkpoint)
    if not file.is_file():
        have = ", ".join(model.trained_folds(checkpoint)) or "none"
        raise KDError(
            f"checkpoint {file} is missing (folds with a {checkpoint}: {have}): train fold {fold} of that model first, "
            f'or name another fold in "{SECTION}.teacher.fold"'
        )
    content = load_checkpoint(file)
    network = build_network(model, content["trainer_name"])
    try:
        network.load_state_dict(content["network_weights"])
    except (RuntimeError, KeyError) as error:
        raise KDError(
            f"{file} does not fit the network of {model.path / 'plans.json'}: {str(error).splitlines()[0]}; the file is "
            "from another training, put the right one in place"
        ) from None
    return network.eval()


class FrozenTeacher(nn.Module):
    """The teacher's network with frozen parameters. It always stays in eval mode and never in an optimizer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def digest(self) -> str:
        """SHA-256 of all weights: the same before and after a training."""
        sha = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


class TeacherEnsemble(FrozenTeacher):
    """Several folds' networks as one teacher: logits whose softmax (sigmoid for regions) is the mean of theirs.

    nnU-Net itself averages logits when it ensembles; a mean of probabilities keeps the folds' disagreement, which is what
    soft targets are for.
    """

    def __init__(self, networks: list[nn.Module], regions: bool) -> None:
        super().__init__(nn.ModuleList(networks))
        self.regions = regions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([network(x) for network in self.network]).float()
        if self.regions:
            return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
        return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))


def describe_teacher(model: ModelFolder, folder: str, fold: int | str | list = "same",
                     checkpoint: str = "checkpoint_final.pth") -> Teacher:  # fmt: skip
    """The "teacher" part of the student's plans, stage table included, read without any trained weights."""
    network = build_network(model, model.trainer)
    try:
        table = stage_table(network)
    except NotSupported:  # fine for those who read its logits only
        table = StageTable(type(network).__name__, (), ())
    manager = PlansManager(model.plans)
    stages = TeacherStages(
        family=table.family,
        channels=list(table.channels),
        strides=[list(s) for s in table.strides],
        input_channels=determine_num_input_channels(
            manager, manager.get_configuration(model.configuration), model.dataset_json
        ),
        outputs=manager.get_label_manager(model.dataset_json).num_segmentation_heads,
        parameters=sum(p.numel() for p in network.parameters()),
    )
    return Teacher(folder, model.configuration, stages, model.plans_hash, fold, checkpoint)


def load_teacher(
    settings: Teacher, student_fold: int | str, student_plans: dict, student_configuration: str, dataset_json: dict
) -> FrozenTeacher:
    """Load the teacher that the student's plans name and check that it fits the student's data.

    Args:
        settings: section "nnunet_kd.teacher".
        student_fold: ``"same"`` in the settings takes the teacher's same fold: another fold's teacher has seen the
            student's validation cases. Several folds are averaged.

    Raises:
        KDError: missing or foreign files, another dataset, other labels, channels, spacing or plans.
    """
    model = read_model_folder(settings.folder)
    check_compatible(model, settings, student_plans, student_configuration, dataset_json)
    folds = teacher_folds(settings, student_fold)
    networks = [load_network(model, fold, settings.checkpoint) for fold in folds]
    _check_stages(model, settings, networks[0])
    patch = PlansManager(student_plans).get_configuration(student_configuration).patch_size
    check_patch_size(model, networks[0], patch, settings.stages.input_channels)
    if len(networks) == 1:
        return FrozenTeacher(networks[0])
    return TeacherEnsemble(networks, PlansManager(model.plans).get_label_manager(dataset_json).has_regions)


def _check_stages(model: ModelFolder, settings: Teacher, network: nn.Module) -> None:
    stages = settings.stages
    if not stages.channels:
        return
    planned, found = StageTable.from_lists(stages.family, stages.channels, stages.strides), stage_table(network)
    if (planned.channels, planned.strides) != (found.channels, found.strides):
        raise KDError(
            f'"{SECTION}.teacher.stages" says channels {list(planned.channels)} and strides {list(planned.strides)}, teacher '
            f"{model.path} has {list(found.channels)} and {list(found.strides)}: plan the student again with `nnunet-kd plan`"
        )


def teacher_files(settings: Teacher, student_fold: int | str) -> list[Path]:
    """The checkpoints of the folds that teach."""
    model = read_model_folder(settings.folder)
    return [model.checkpoint(fold, settings.checkpoint) for fold in teacher_folds(settings, student_fold)]


def teacher_folds(settings: Teacher, student_fold: int | str) -> list[int | str]:
    """The teacher's folds, "same" replaced by the student's and none twice."""
    folds = [student_fold if fold == "same" else fold for fold in settings.folds]
    return list({str(fold): fold for fold in folds}.values())


def check_patch_size(model: ModelFolder, network: nn.Module, patch_size: Sequence[int], channels: int) -> None:
    """Raise KDError unless the teacher's network can read patches of the student's size."""
    own = PlansManager(model.plans).get_configuration(model.configuration).patch_size
    if list(patch_size) == list(own):
        return
    try:
        with torch.no_grad():
            size = network.eval()(torch.zeros(1, channels, *patch_size)).shape[2:]
        if list(size) != list(patch_size):  # a transformer drops what is left over
            raise RuntimeError(f"it predicts {list(size)}")
    except (RuntimeError, AssertionError) as error:
        raise KDError(
            f"teacher {model.path} was trained on patches of {list(own)} and cannot read the student's of {list(patch_size)} "
            f"({_first_line(error)}): a U-Net needs multiples of its strides, a transformer its own size; plan the student "
            "with such a patch"
        ) from None


def check_compatible(
    model: ModelFolder, settings: Teacher, student_plans: dict, student_configuration: str, dataset_json: dict
) -> None:
    """Raise KDError unless teacher and student read the same input and write the same labels."""
    where = f"teacher {model.path}"
    if model.plans["dataset_name"] != student_plans["dataset_name"]:
        raise KDError(
            f"{where} was trained on {model.plans['dataset_name']}, the student's plans are of "
            f"{student_plans['dataset_name']}: plan the student from a teacher of its own dataset"
        )
    for key, what in (("labels", "labels"), ("regions_class_order", "regions"), ("channel_names", "input channels")):
        if model.dataset_json.get(key) != dataset_json.get(key):
            raise KDError(
                f"{where} has {what} {model.dataset_json.get(key)}, the student's dataset.json has {dataset_json.get(key)}: "
                "train teacher and student on the same dataset.json"
            )
    if model.configuration != settings.configuration:
        raise KDError(
            f'{where} is a {model.configuration} model, "{SECTION}.teacher.configuration" says {settings.configuration}: '
            "plan the student again with `nnunet-kd plan`"
        )
    teacher = PlansManager(model.plans).get_configuration(model.configuration)
    student = PlansManager(student_plans).get_configuration(student_configuration)
    if teacher.previous_stage_name is not None and student.previous_stage_name is None:
        raise KDError(
            f"{where} is the second stage of a cascade and reads the first one's segmentation, which {student_configuration} "
            f"does not load: train the student as {model.configuration}"
        )
    for key in ("spacing", "normalization_schemes", "use_mask_for_norm"):
        if teacher.configuration[key] != student.configuration[key]:
            raise KDError(
                f"{where} was trained with {key} {teacher.configuration[key]}, the student's configuration "
                f"{student_configuration} has {student.configuration[key]}: both must read the same preprocessed data"
            )
    if model.plans["transpose_forward"] != student_plans["transpose_forward"]:
        raise KDError(
            f"{where} was trained with axes in the order {model.plans['transpose_forward']}, the student's plans say "
            f"{student_plans['transpose_forward']}: both must read the same preprocessed data"
        )
    if model.plans_hash != settings.plans_hash:
        raise KDError(
            f"{model.path / 'plans.json'} has changed since the student was planned (hash {model.plans_hash}, planned with "
            f"{settings.plans_hash}): plan the student again with `nnunet-kd plan`"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
