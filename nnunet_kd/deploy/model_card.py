"""The MODEL_CARD.md of an exported model: where it comes from, what it is, how to predict with it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath

from nnunet_kd import __version__
from nnunet_kd.config.run import SECTION
from nnunet_kd.nnunet_io.configurations import resolved_configuration
from nnunet_kd.utils.dataset_json import channel_names

_CARD = """\
# {folder}

{origin}

| | |
| --- | --- |
| data set | {dataset} |
| labels | {labels} |
| input channels | {channels} |
| trainer, plans, configuration | {trainer}, {training_plans}, {configuration} |
| folds | {folds} |
| network | {network} |
| parameters | {parameters:,} |
| checkpoint files | {megabytes:.2f} MB |
| patch size | {patch} pixels or voxels |
| spacing | {spacing} |
| written by | nnunet_kd {nnunet_kd}, nnunetv2 {nnunetv2}, torch {torch} |

## Predict

This is a stock nnU-Net model folder. It needs neither nnunet_kd nor the variable nnUNet_extTrainer:

    nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT -m {folder} -f {folds} -device cpu

Name the folds with `-f`: without it, nnU-Net looks for folds 0 to 4. To call it by name instead, put the folder at
`$nnUNet_results/{dataset}/nnUNetTrainer__{plans}__{configuration}`; then

    nnUNetv2_predict -i IMAGES -o OUTPUT -d {dataset} -p {plans} -c {configuration} -f {folds} -device cpu

The images must be prepared as the training images were (channels, file ending {ending}, normalisation, spacing).
{runner}
## Licence

The weights inherit the terms of the data they were trained on{terms}; check them before passing the model on.
nnunet_kd, which wrote this folder, is under the Apache License 2.0, as is nnU-Net. Not a medical device.
"""


_RUNNER = """
## Predict without nnU-Net

The files fold_*.onnx, model.json and the folder runner/ predict the same without nnU-Net and torch:

    pip install -r {folder}/runner/requirements.txt
    python {folder}/predict.py -i IMAGES -o OUTPUT
"""


def model_card(
    folder: str,
    plans: dict,
    dataset_json: dict,
    training_plans: dict,
    configuration: str,
    trainer: str,
    terms: Sequence[str],
    folds: Sequence[str],
    parameters: int,
    size: int,
    runner: bool = False,
) -> str:
    """The text of MODEL_CARD.md.

    Args:
        folder: name of the exported folder.
        plans: the exported plans; `training_plans` still hold the section "nnunet_kd", if there was one.
        configuration: "2d", "3d_fullres", ...
        trainer: name of the trainer class that trained it. `terms`: its distillation terms, none for a plain training.
        parameters: number of parameters. `size`: bytes of all checkpoint files.
        runner: the folder also holds ONNX files and the runner.
    """
    settings = resolved_configuration(plans, configuration)
    licence = dataset_json.get("licence") or dataset_json.get("license")
    return _CARD.format(
        folder=folder,
        origin=_origin(training_plans.get(SECTION, {}).get("teacher"), trainer, terms, parameters),
        dataset=plans["dataset_name"],
        labels=", ".join(f"{label} {value}" for label, value in dataset_json["labels"].items()),
        channels=", ".join(f"{index} {name}" for index, name in enumerate(channel_names(dataset_json))),
        trainer=trainer,
        plans=plans["plans_name"],
        training_plans=training_plans["plans_name"],
        configuration=configuration,
        folds=" ".join(folds),
        network=settings["architecture"]["network_class_name"].rsplit(".", 1)[-1],
        parameters=parameters,
        megabytes=size / 1e6,
        patch=" x ".join(map(str, settings["patch_size"])),
        spacing=" x ".join(f"{spacing:g}" for spacing in settings["spacing"]),
        ending=dataset_json["file_ending"],
        runner=_RUNNER.format(folder=folder) if runner else "",
        terms=f" (its dataset.json says: {licence})" if licence else "",
        nnunet_kd=__version__,
        nnunetv2=version("nnunetv2"),
        torch=version("torch"),
    )


def _origin(teacher: dict | None, trainer: str, terms: Sequence[str], parameters: int) -> str:
    if teacher is None or not terms:
        return f"Trained with {trainer}. Nothing was distilled into it."
    # Of the teacher's path only DATASET/TRAINER__PLANS__CONFIGURATION: the rest is the training machine's business.
    folder = PurePath(teacher["folder"])
    size = teacher["stages"]["parameters"]
    return (
        f"A light student, distilled with {trainer} (terms: {', '.join(terms)}) from the teacher "
        f"{'/'.join(folder.parts[-2:])} (trainer {folder.name.split('__')[0]}, fold: {teacher.get('fold', 'same')}, "
        f"{size:,} parameters, {size / parameters:.1f} times as many)."
    )
