"""OpenVINO files in an exported model folder, entered in model.json and in the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.deploy.int8 import PATCHES, fold_data, measure_dice, write_int8
from nnunet_kd.deploy.onnx_export import total_strides
from nnunet_kd.deploy.openvino_export import write_openvino
from nnunet_kd.deploy.runner.model import FILE
from nnunet_kd.deploy.runner_export import add_networks
from nnunet_kd.nnunet_io.model_folder import ModelFolder
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.tables import markdown_table

_CARD = """
## OpenVINO

The files fold_*.xml and .bin are the same networks for OpenVINO, usually the fastest on CPUs:

    python {folder}/predict.py -i IMAGES -o OUTPUT --backend openvino
"""
_INT8 = """
fold_*_int8.xml are quantised to 8-bit integers (`--precision int8`), calibrated on {patches} patches of the training cases.
{measured}
"""


@dataclass(frozen=True)
class OpenVINO:
    """half: weights in float16. int8: a quantised network too. measure: with the Dice it costs, or not at all."""

    half: bool = False
    int8: bool = False
    measure: bool = True


def check_openvino(options: OpenVINO, model: ModelFolder, folds: Sequence[str]) -> None:
    """Raise KDError if int8 is asked for and its data are missing, before anything is written."""
    if options.int8:
        for fold in folds:
            fold_data(model, fold, options.measure)


def add_openvino(folder: Path, name: str, options: OpenVINO, model: ModelFolder, folds: Sequence[str]) -> dict:
    """Add OpenVINO files of every fold to an exported folder with ONNX files, and their section to model card and model.json.

    Args:
        name: the folder's final name. model: the training folder.

    Returns:
        Per fold the mean Dice on its validation cases: {"0": {"cases": 4, "f32": 0.81, "bf16": 0.81, "int8": 0.80}};
        empty without int8.

    Raises:
        KDError: see `write_openvino`, `fold_data`, `write_int8`.
    """
    config = PlansManager(model.plans).get_configuration(model.configuration).configuration
    channels = len(channel_names(model.dataset_json))
    for fold in folds:
        source = folder / f"fold_{fold}.onnx"
        write_openvino(source, folder / f"fold_{fold}.xml", channels, total_strides(config), options.half)
    add_networks(folder, "openvino", [f"fold_{fold}.xml" for fold in folds])
    card, dice_by_fold = _CARD.format(folder=name), {}
    if options.int8:
        dice_by_fold = {fold: _quantise(folder, fold, options, model, config["patch_size"]) for fold in folds}
        add_networks(folder, "openvino_int8", [f"fold_{fold}_int8.xml" for fold in folds])
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        content["dice_of_precisions"] = dice_by_fold if options.measure else "not measured"
        (folder / FILE).write_text(json.dumps(content, indent=4), encoding="utf-8")
        measured = _table(dice_by_fold) if options.measure else "What that costs in Dice was NOT measured."
        card += _INT8.format(patches=PATCHES, measured=measured)
    with (folder / "MODEL_CARD.md").open("a", encoding="utf-8") as file:
        file.write(card)
    return dice_by_fold if options.measure else {}


def measured_text(folder: Path) -> str:
    """What int8 costs, in a line per fold, from the model.json of an exported folder."""
    dice_by_fold = json.loads((folder / FILE).read_text(encoding="utf-8"))["dice_of_precisions"]
    if not isinstance(dice_by_fold, dict):
        return f"int8: Dice {dice_by_fold}"
    return "\n".join(
        f"int8, fold {k}: Dice {d['int8']:.4f}, f32 has {d['f32']:.4f} ({d['cases']} cases)" for k, d in dice_by_fold.items()
    )


def _quantise(folder: Path, fold: str, options: OpenVINO, model: ModelFolder, patch_size: Sequence[int]) -> dict:
    import openvino

    data = fold_data(model, fold, options.measure)
    source, file = folder / f"fold_{fold}.xml", folder / f"fold_{fold}_int8.xml"
    write_int8(source, file, data, patch_size)
    if not options.measure:
        return {}
    core = openvino.Core()
    hints = {"f32": "f32", "int8": "f32"}
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        hints["bf16"] = "bf16"
    networks = {name: core.read_model(str(file if name == "int8" else source)) for name in hints}
    return {"cases": len(data.validation), **measure_dice(networks, data, model, hints)}


def _table(dice_by_fold: dict) -> str:
    names = [n for n in ("f32", "bf16", "int8") if n in next(iter(dice_by_fold.values()))]
    rows = [["fold", "validation cases", *(f"Dice {n}" for n in names)]]
    for fold, dice in dice_by_fold.items():
        each = [f"{dice[n]:.4f}" + (f" ({dice[n] - dice['f32']:+.4f})" if n != "f32" else "") for n in names]
        rows.append([fold, str(dice["cases"]), *each])
    return f"\nMean foreground Dice at the training's spacing, without mirroring:\n\n{markdown_table(rows)}"
