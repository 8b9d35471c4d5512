"""One trained fold of a model folder: its checkpoint, read once and safely, and what its readers need of it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_kd.config.run import SECTION
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network, configuration_of, model_path, read_descriptions
from nnunet_kd.utils.errors import KDError, first_line

FINAL = "checkpoint_final.pth"
_UNREAD = ("optimizer_state", "grad_scaler_state")  # as large as the weights, and of no use but to go on training


@dataclass(frozen=True, eq=False)
class TrainedFold:
    """A fold's checkpoint in memory, with the folder it belongs to. Made by `TrainedFold.open`.

    Attributes:
        model: plans, dataset.json and configuration of its folder.
        fold: "0", ..., or "all".
        name: of the checkpoint's file.
        content: of the checkpoint, without the optimizer's state. It is shared: readers change nothing in it.
    """

    model: ModelFolder
    fold: str
    name: str
    content: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path | ModelFolder, fold: int | str = 0, name: str = FINAL) -> TrainedFold:
        """Read a fold's checkpoint, without running code from it, and unless they are given its folder's plans.

        Raises:
            KDError: files are missing, damaged, foreign, or would run code.
        """
        if isinstance(folder, ModelFolder):
            return cls(folder, str(fold), name, _read(folder.path, fold, name))
        path, plans, dataset_json = read_descriptions(folder)
        content = _read(path, fold, name)
        return cls(ModelFolder(path, plans, dataset_json, configuration_of(path, plans, [content])), str(fold), name, content)

    @property
    def file(self) -> Path:
        """The checkpoint's file."""
        return self.model.checkpoint(self.fold, self.name)

    @property
    def weights(self) -> dict[str, Any]:
        """The network's state_dict."""
        return self.content["network_weights"]

    @property
    def trainer_name(self) -> str:
        """Name of the trainer class that wrote it."""
        return self.content["trainer_name"]

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """The spatial axes along which nnU-Net mirrors in prediction with this fold: those of its training."""
        return tuple(self.content.get("inference_allowed_mirroring_axes") or ())

    @property
    def epoch(self) -> int | None:
        """Epochs that were trained."""
        return self.content.get("current_epoch")

    @property
    def msans(self) -> dict[str, Any] | None:
        """state_dict of the training's alignment networks; None for a control, a stock model or an export."""
        return self.content.get(SECTION, {}).get("distiller", {}).get("alignment")

    def network(self) -> nn.Module:
        """The trained network, in eval mode, strictly loaded; a new one at each call.

        Raises:
            KDError: nnU-Net cannot build it from the folder's plans, or the weights are of another network.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's search for the trainer talks
            network = build_network(self.model, self.trainer_name)
        try:
            network.load_state_dict(self.weights)
        except (RuntimeError, KeyError) as error:
            raise KDError(
                f"{self.file} does not fit the network of {self.model.path / 'plans.json'}: {first_line(error)}; the file is "
                "from another training, put the right one in place"
            ) from None
        return network.eval()


OpenFold = Callable[..., TrainedFold]  # `TrainedFold.open`, or the `open` of an `OpenedFolds`


class OpenedFolds:
    """Opens each fold once and keeps it, for a program that meets a fold in many places (a model, its students' teacher)."""

    def __init__(self) -> None:
        self._folds: dict[tuple[Path, str, str], TrainedFold] = {}

    def open(self, folder: str | Path | ModelFolder, fold: int | str = 0, name: str = FINAL) -> TrainedFold:
        """As `TrainedFold.open`."""
        path = folder.path if isinstance(folder, ModelFolder) else model_path(folder)
        key = path.resolve(), str(fold), name
        if key not in self._folds:
            self._folds[key] = TrainedFold.open(folder, fold, name)
        return self._folds[key]


def _read(path: Path, fold: int | str, name: str) -> dict[str, Any]:
    file = path / f"fold_{fold}" / name
    if not file.is_file():
        folds = ", ".join(sorted(p.parent.name.removeprefix("fold_") for p in path.glob(f"fold_*/{escape(name)}"))) or "none"
        raise KDError(
            f"no checkpoint at {file} (folds with a {name}: {folds}): train fold {fold} of that model first, or name another "
            f'fold or checkpoint file (of a teacher: "{SECTION}.teacher.fold")'
        )
    return {key: value for key, value in load_checkpoint(file).items() if key not in _UNREAD}
