"""An exported model folder as an archive that `nnUNetv2_install_pretrained_model_from_zip` takes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from nnunet_kd.deploy.export import STOCK_TRAINER
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.utils.errors import KDError

_STOCK = ("plans.json", "dataset.json", "dataset_fingerprint.json", "MODEL_CARD.md", "fold_*/checkpoint_final.pth")


def archive_of(folder: Path) -> Path:
    """Where the archive of an exported folder goes: beside it."""
    return Path(folder).with_name(f"{Path(folder).name}.zip")


def check_archive(folder: Path, overwrite: bool) -> None:
    """Raise KDError if there is an archive already that may not be replaced."""
    file = archive_of(folder)
    if file.exists() and not overwrite:
        raise KDError(f"{file} exists: export to another folder, or pass --overwrite")


def write_archive(folder: Path) -> Path:
    """Write FOLDER.zip: DATASET/nnUNetTrainer__PLANS__CONFIGURATION/..., as nnU-Net unpacks it into nnUNet_results.

    It holds what stock nnU-Net reads and the model card, not the ONNX files and the runner: those need no nnU-Net. The
    archive appears when it is complete.
    """
    model = read_model_folder(folder)
    file = archive_of(folder)
    inside = Path(model.plans["dataset_name"]) / f"{STOCK_TRAINER}__{model.plans['plans_name']}__{model.configuration}"
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.stem}.zipping") as scratch:
        for pattern in _STOCK:
            for source in model.path.glob(pattern):
                target = Path(scratch, "content", inside, source.relative_to(model.path))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        written = shutil.make_archive(str(Path(scratch, "archive")), "zip", Path(scratch, "content"))
        os.replace(written, file)
    return file
