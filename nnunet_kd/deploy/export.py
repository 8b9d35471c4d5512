"""A trained fold as a stock nnU-Net model folder: no nnunet_kd, no teacher, no heads, no optimizer."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunet_kd.config.recipe import config_of
from nnunet_kd.config.run import SECTION
from nnunet_kd.deploy.model_card import model_card
from nnunet_kd.deploy.openvino_folder import OpenVINO, add_openvino, check_openvino
from nnunet_kd.deploy.runner_export import add_runner
from nnunet_kd.networks.cost import count_parameters
from nnunet_kd.nnunet_io.checkpoints import save_atomically
from nnunet_kd.nnunet_io.model_folder import ModelFolder, read_model_folder
from nnunet_kd.nnunet_io.trained_fold import FINAL, OpenFold, TrainedFold
from nnunet_kd.training import distillation as trainers
from nnunet_kd.training import named as named_trainers
from nnunet_kd.training import retired as retired_trainers
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError, first_line

STOCK_TRAINER = "nnUNetTrainer"
CHECKPOINT = FINAL  # the name nnUNetv2_predict looks for


def export_model(
    training_folder: Path,
    out: Path,
    folds: Sequence[str | int] = ("0",),
    checkpoint: str = CHECKPOINT,
    name: str | None = None,
    overwrite: bool = False,
    onnx: bool = False,
    openvino: OpenVINO | None = None,
    open_fold: OpenFold = TrainedFold.open,
) -> Path:
    """Write `out`, a stock nnU-Net model folder, from nnU-Net's training folder TRAINER__PLANS__CONFIGURATION.

    Keeps plans, dataset.json, fingerprint and what nnU-Net's predictor reads of each fold's checkpoint. Teachers and
    undistilled students can be exported too, as long as their network is the one nnU-Net builds from the plans. Before
    `out` appears, nnU-Net's own predictor loads it without any external trainer, and its logits on a random patch must
    equal those of the training checkpoint exactly.

    Args:
        checkpoint: which file of each fold to take; it is written as checkpoint_final.pth.
        name: plans name of the export; the default is made from the training's plans and trainer names.
        overwrite: replace `out`, if it is a model folder.
        onnx: add what prediction without nnU-Net needs: fold_X.onnx, model.json and the runner (runner_export.py).
        openvino: add OpenVINO files too (openvino_folder.py); needs `onnx`.
        open_fold: how the folds are opened.

    Raises:
        KDError: a folder or checkpoint is missing, damaged or foreign; `out` exists; the network
            is not the one that stock nnU-Net builds, or (onnx) something in its plans is unknown to the runner.
    """
    model = read_model_folder(training_folder)
    out = Path(out)
    _check_target(out, model.path, overwrite)
    trained = [open_fold(model, fold, checkpoint) for fold in folds]
    for fold in trained:
        _check_belongs(fold)
    contents, trainer = {fold.fold: fold.content for fold in trained}, trained[0].trainer_name
    if openvino is not None:
        check_openvino(openvino, model, list(contents))

    plans = _stock_plans(model.plans, _plans_name(name, model.plans["plans_name"], trainer))
    dataset_json = _without_absolute_paths(model.dataset_json)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.exporting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write_model(temporary, model, plans, dataset_json, contents)
        network = _verify(temporary, trained)
        if onnx:
            add_runner(temporary, network, plans, dataset_json, model.configuration, contents)
        size = sum(file.stat().st_size for file in temporary.glob("fold_*/*.pth"))
        parameters = count_parameters(network)
        card = model_card(
            out.name,
            plans,
            dataset_json,
            model.plans,
            model.configuration,
            trainer,
            _distillation_terms(next(iter(contents.values())), model.plans),
            list(contents),
            parameters,
            size,
            onnx,
        )
        (temporary / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        if openvino is not None:
            add_openvino(temporary, out.name, openvino, model, list(contents))
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _check_target(out: Path, training_folder: Path, overwrite: bool) -> None:
    source = training_folder.resolve()
    if out.resolve() == source or out.resolve() in source.parents:
        raise KDError(f"{out} is or holds the training folder itself: export to another folder")
    if not out.exists():
        return
    if not overwrite:
        raise KDError(f"{out} exists: export to another folder, or pass --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and not (out / "plans.json").is_file()):
        raise KDError(f"{out} is no model folder, so --overwrite leaves it alone: export to another folder")


def _check_belongs(fold: TrainedFold) -> None:
    model, arguments = fold.model, fold.content["init_args"]
    plans = arguments.get("plans", {})
    trained = (plans.get("dataset_name", "?"), plans.get("plans_name", "?"), arguments.get("configuration", "?"))
    expected = (model.plans["dataset_name"], model.plans["plans_name"], model.configuration)
    if trained != expected:
        raise KDError(
            f"{fold.file} was trained with {' '.join(trained)}, its folder is of {' '.join(expected)}: "
            "put the file back that belongs there"
        )


def _plans_name(name: str | None, training_name: str, trainer: str) -> str:
    """A name of its own, so that the export never overwrites a training under nnUNet_results."""
    if name is None:
        return f"{training_name}_{trainer.removeprefix(STOCK_TRAINER) or 'Exported'}"
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or "__" in name:
        raise KDError(f'plans name "{name}": use letters, digits and single underscores (nnU-Net splits folder names at __)')
    if name == training_name:
        raise KDError(f'plans name "{name}" is the training\'s own: choose another with --name')
    return name


def _distillation_terms(checkpoint: dict, plans: dict) -> list[str]:
    """What the training distilled, by its checkpoint. Empty for trainers that are not of this package."""
    name = checkpoint["trainer_name"]
    classes = (getattr(module, name, None) for module in (named_trainers, retired_trainers, trainers))
    trainer = next((cls for cls in classes if hasattr(cls, "preset")), None)
    if trainer is None or SECTION not in plans:
        return []
    return config_of(checkpoint, plans, trainer)[0].distils


def _stock_plans(plans: dict, name: str) -> dict:
    stock = deepcopy(plans)
    stock.pop(SECTION, None)
    stock["plans_name"] = name
    return stock


def _without_absolute_paths(dataset_json: dict) -> dict:
    """dataset.json less the entries that name files of the training machine; prediction needs none of them."""

    def has_path(value: object) -> bool:
        if isinstance(value, dict):
            return any(has_path(v) for item in value.items() for v in item)
        if isinstance(value, list | tuple):
            return any(has_path(v) for v in value)
        return isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())

    return {key: deepcopy(value) for key, value in dataset_json.items() if not has_path(value)}


def _write_model(folder: Path, model: ModelFolder, plans: dict, dataset_json: dict, contents: dict[str, dict]) -> None:
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(plans, indent=4), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset_json, indent=4), encoding="utf-8")
    fingerprint = model.path / "dataset_fingerprint.json"
    if fingerprint.is_file():
        shutil.copyfile(fingerprint, folder / fingerprint.name)
    for fold, content in contents.items():
        (folder / f"fold_{fold}").mkdir()
        stock = {
            "network_weights": content["network_weights"],
            "trainer_name": STOCK_TRAINER,
            "init_args": {
                "plans": plans,
                "configuration": model.configuration,
                "fold": content["init_args"]["fold"],
                "dataset_json": dataset_json,
            },
            "inference_allowed_mirroring_axes": content.get("inference_allowed_mirroring_axes"),
        }
        save_atomically(stock, folder / f"fold_{fold}" / CHECKPOINT)


def _verify(folder: Path, folds: list[TrainedFold]) -> nn.Module:
    """Compare stock nnU-Net's logits on the exported folder with the training's, fold by fold. Returns the network."""
    with redirect_stdout(io.StringIO()):  # nnU-Net's search for the trainer talks
        with _environment(nnUNet_extTrainer=None, nnUNet_compile=None):
            predictor = nnUNetPredictor(device=torch.device("cpu"))
            try:  # from the files: that they are read by nnU-Net itself is what is verified
                predictor.initialize_from_trained_model_folder(str(folder), tuple(fold.fold for fold in folds), CHECKPOINT)
            except (RuntimeError, KeyError) as error:
                raise _not_exportable(folds[0].model, error) from error
        known = [str(trainers_path()), *filter(None, [os.environ.get("nnUNet_extTrainer")])]
        with _environment(nnUNet_extTrainer=os.pathsep.join(known)):
            references = [fold.network() for fold in folds]

    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    x = torch.randn(1, channels, *configuration.patch_size, generator=torch.Generator().manual_seed(0))
    exported = predictor.network.eval()
    with torch.inference_mode():
        for fold, weights, reference in zip(folds, predictor.list_of_parameters, references, strict=True):
            try:
                exported.load_state_dict(weights)
            except (RuntimeError, KeyError) as error:
                raise _not_exportable(fold.model, error) from error
            if not torch.equal(exported(x), reference(x)):
                raise KDError(
                    f"the exported fold {fold.fold} of {fold.model.path} does not predict as it was trained: its trainer "
                    "builds another network than nnU-Net does from the same plans, which stock nnU-Net cannot run"
                )
    return exported


def _not_exportable(model: ModelFolder, error: Exception) -> KDError:
    return KDError(
        f"{model.path} cannot be exported: its weights do not fit the network that stock nnU-Net builds from its plans "
        f"({first_line(error)}); only trainers that keep nnU-Net's own network can be exported"
    )


@contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    """Set variables for a while; None unsets."""
    before = {name: os.environ.get(name) for name in changes}

    def put(values: dict[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(changes)
    try:
        yield
    finally:
        put(before)


def _put_in_place(temporary: Path, out: Path) -> None:
    """Rename into place. What was there before comes back if that fails."""
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
