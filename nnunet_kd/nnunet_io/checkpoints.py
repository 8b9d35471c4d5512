"""Read and write nnU-Net checkpoints: no code runs while one is read, and no valid file is lost while one is written.

nnU-Net itself reads checkpoints with `weights_only=False`, which executes whatever a pickle asks for, and writes them
in place, so that a process killed inside `torch.save` destroys the previous valid file.
"""

from __future__ import annotations

import _codecs
import contextlib
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_kd.nnunet_io.trust import VARIABLE, how_to_trust, trusted
from nnunet_kd.utils.errors import KDError

REQUIRED_KEYS = {"network_weights": dict, "trainer_name": str, "init_args": dict}
_NAME_ANOTHER = "name a file that nnUNetv2_train wrote"
_LOGGED = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read an nnU-Net checkpoint without running code from it.

    Beyond what `torch.load(weights_only=True)` admits, only the numpy numbers that nnU-Net's logger leaves in every
    checkpoint are allowed.

    A file that asks for more is read all the same, with all that it asks for, if `nnUNet_kd_trust` names it or its folder.

    Returns nnU-Net's dictionary: network_weights, trainer_name, init_args, and whatever else was saved.
    Raises KDError if the file is missing, truncated, no nnU-Net checkpoint, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise KDError(f"no checkpoint at {path}: train that fold first, or name another fold or checkpoint file")
    try:
        with numpy_numbers_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on foreign files before it refuses them
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except PermissionError as error:
        raise KDError(f"cannot read the checkpoint {path}: {error.strerror}; mend its permissions") from error
    except Exception as error:  # a damaged pickle can raise anything
        if not trusted(path):
            raise KDError(_why_unreadable(path, error)) from error
        checkpoint = _load_with_its_code(path, map_location)
    if not isinstance(checkpoint, dict):
        checkpoint = {}
    wrong = [key for key, kind in REQUIRED_KEYS.items() if not isinstance(checkpoint.get(key), kind)]
    if wrong:
        raise KDError(f"{path} is not an nnU-Net checkpoint (no {', '.join(wrong)}): {_NAME_ANOTHER}")
    return checkpoint


def logged_curves(checkpoint: Mapping) -> dict[str, list[float | None]]:
    """Losses, pseudo Dice and distillation terms (``kd/...``) of every epoch in a checkpoint's log; None for what was off."""
    return {
        k: [float(x) if isinstance(x, int | float | np.number) and not np.isnan(x) else None for x in values]
        for k, values in checkpoint.get("logging", {}).items()
        if k in _LOGGED or k.startswith("kd/")
    }


def numpy_numbers_allowed() -> torch.serialization.safe_globals:
    """A context in which `torch.load(weights_only=True)` admits the numpy numbers of nnU-Net's logger as well."""
    return torch.serialization.safe_globals(_numpy_numbers())


def _load_with_its_code(path: Path, map_location: str | torch.device) -> Any:
    print(f"nnunet-kd: warning: {path} is loaded with whatever code it holds, as {VARIABLE} says", file=sys.stderr)
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:
        raise KDError(_why_unreadable(path, error)) from error


def save_atomically(obj: Any, path: str | Path) -> None:
    """`torch.save` that leaves either the old file or the complete new one, whenever the process or the machine dies.

    Writes to a temporary file in the same folder, forces it to disk, then renames it over `path`. The temporary's name
    is fixed, so what a killed process leaves behind is overwritten by the next save. Only one process may save a path
    at a time.

    Raises KDError if the disk is full or the folder cannot be written to; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = _os_error(error)
        if cause is not None and isinstance(error, Exception):
            raise cannot_write(path, cause) from error
        raise
    _sync_folder(path.parent)


def check_writable(folder: Path) -> None:
    """Make sure, before hours of training, that checkpoints can be written into `folder`.

    Also removes the temporary files that a killed training left there. Raises KDError if nothing can be written.
    """
    probe = folder / ".checkpoint_probe.pth.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        for left in folder.glob(".checkpoint_*.pth.tmp"):
            left.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: str | Path, error: OSError) -> KDError:
    """What to say when a file or folder of a training cannot be written."""
    return KDError(
        f"cannot write {path}: {error.strerror or error}; free disk space there or mend its permissions, then run the command "
        "again, nnUNetv2_train with --c if it had begun; files that were there before are intact"
    )


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind `error`: torch's writer answers a failed write with a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Force the rename to disk. Only POSIX can open a folder; elsewhere the rename is left to the file system."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numpy_numbers() -> list[Any]:
    """The callables and types that a pickled numpy scalar or array names, under numpy 1.x's and 2.x's module names."""
    scalar = np.dtype("f8").type(0).__reduce__()[0]
    reconstruct = np.zeros(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, np.ndarray, _codecs.encode]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    # Unpickling a dtype sets its concrete class's state, so each class has to be named. Numbers only, no object dtype.
    allowed += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return allowed


def _why_unreadable(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    text = str(error)
    if not is_zip or "TorchScript" in text:
        return f"{path} is not a checkpoint: {_NAME_ANOTHER}"
    refusals = ("GLOBAL", "unrecognized function", "Can only")  # torch's three ways to say it; other texts mean damage
    if isinstance(error, pickle.UnpicklingError) and any(refusal in text for refusal in refusals):
        refused = text.split("GLOBAL ", 1)[1].split()[0] if "GLOBAL " in text else "an object"
        return (
            f"refused to load {path}: it holds {refused}, which no nnU-Net checkpoint holds and which could run code; get the "
            f"checkpoint from a source you trust, or train it again; {how_to_trust(path)}"
        )
    return f"the checkpoint {path} is truncated or damaged: copy it again from where it was trained, or train it again"
