"""nnU-Net's model folder: plans and dataset.json of a trained network, read safely, and the network that they describe."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.config.recipe import RETIRED
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.nnunet_io.trust import check_architectures
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError, first_line


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
        relevant = {
            "dataset": self.plans["dataset_name"],
            "configuration": self.configuration,
            "plans": self.plans["configurations"],
        }
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]

    def checkpoint(self, fold: int | str, name: str = "checkpoint_final.pth") -> Path:
        return self.path / f"fold_{fold}" / name

    def trained_folds(self, name: str = "checkpoint_final.pth") -> list[str]:
        return sorted(p.parent.name[len("fold_") :] for p in self.path.glob(f"fold_*/{escape(name)}"))


def resolve_folder(folder: str | Path) -> Path:
    """An absolute path, or one relative to nnUNet_results (tried first) or to the current folder; of a file likewise."""
    folder = Path(folder).expanduser()
    if folder.is_absolute():
        return folder
    if nnUNet_results.is_set() and (Path(str(nnUNet_results)) / folder).exists():
        return Path(str(nnUNet_results)) / folder
    return folder.resolve()


def model_path(folder: str | Path) -> Path:
    """The absolute path of a model folder (``.../fold_0`` is accepted too), which need not exist."""
    path = resolve_folder(folder)
    return path.parent if path.name.startswith("fold_") else path


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Read plans and dataset.json of a trained model folder (``.../fold_0`` is accepted too).

    Raises:
        KDError: the folder or one of its files is missing or unreadable, its name does not tell the configuration, or its
            plans name what is no network class (trust.py).
    """
    path, plans, dataset_json = read_descriptions(folder)
    contents = (load_checkpoint(file) for file in sorted(path.glob("fold_*/checkpoint_*.pth")))
    return ModelFolder(path, plans, dataset_json, configuration_of(path, plans, contents))


def read_descriptions(folder: str | Path) -> tuple[Path, dict, dict]:
    """A model folder's path, plans and dataset.json, checked as `read_model_folder` says."""
    path = model_path(folder)
    if not path.is_dir():
        raise _not_found(path)
    plans = _read_object(path / "plans.json", {"dataset_name": str, "plans_name": str, "configurations": dict})
    dataset_json = _read_object(path / "dataset.json", {"labels": dict, "file_ending": str})
    try:
        channel_names(dataset_json)
    except KeyError:
        raise KDError(f"{path / 'dataset.json'} names no input channels (channel_names): restore the file") from None
    check_architectures(plans, path / "plans.json")
    return path, plans, dataset_json


def configuration_of(path: Path, plans: dict, checkpoints: Iterable[dict]) -> str:
    """A model folder's configuration: by its name, or of a renamed one (an export, say) by the first of these checkpoints.

    Raises:
        KDError: neither tells.
    """
    configuration = path.name.split("__")[-1]
    if configuration in plans["configurations"]:
        return configuration
    for content in checkpoints:
        configuration = content["init_args"].get("configuration")
        if configuration in plans["configurations"]:
            return configuration
    raise KDError(
        f"{path} is not named TRAINER__PLANS__CONFIGURATION and holds no checkpoint that tells its configuration: "
        f"name it so that it ends in __CONFIGURATION (one of {', '.join(plans['configurations'])})"
    )


def _not_found(path: Path) -> KDError:
    """What to say of a folder that is not there: where it was looked for, by `resolve_folder`'s rule."""
    here = Path.cwd()
    if not path.is_relative_to(here):
        return KDError(f"model folder {path} does not exist: pass nnU-Net's folder TRAINER__PLANS__CONFIGURATION")
    name = path.relative_to(here)
    if nnUNet_results.is_set():
        return KDError(
            f"model folder {name} does not exist: neither in nnUNet_results ({nnUNet_results}) nor in the current directory "
            f"({here}); pass nnU-Net's folder TRAINER__PLANS__CONFIGURATION of a training"
        )
    return KDError(
        f"model folder {name} does not exist in the current directory ({here}), and the environment variable nnUNet_results, "
        "where it is looked for first, is not set: export nnUNet_results=/path/to/nnUNet_results, or pass the whole path"
    )


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


def build_network(model: ModelFolder, trainer_name: str = "nnUNetTrainer") -> nn.Module:
    """The untrained network of a model folder, built by the trainer class that trained it, without deep supervision.

    Raises:
        KDError: nnU-Net does not find the class, or it cannot build a network from these plans.
    """
    manager = PlansManager(model.plans)
    configuration = manager.get_configuration(model.configuration)
    inputs = determine_num_input_channels(manager, configuration, model.dataset_json)
    outputs = manager.get_label_manager(model.dataset_json).num_segmentation_heads
    if trainer_name in RETIRED or (trainers_path() / f"{trainer_name}.py").is_file():
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
            f"cannot build the network of {model.path / 'plans.json'}: {first_line(error)}; if its trainer lives outside "
            "nnU-Net, set nnUNet_extTrainer to its folder (ours: `nnunet-kd trainers-path`)"
        ) from error
