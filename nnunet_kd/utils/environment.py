"""Where this process runs: nnU-Net's folders, the commands and trainers beside this Python, the CPUs it may use."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from nnunet_kd.utils.errors import KDError

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def require_environment(*names: str) -> None:
    """Raise KDError for the first nnUNet_* variable (default: all three) that is not set."""
    for name in names or NNUNET_FOLDERS:
        nnunet_folder(name)


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's variables names. Raises KDError if it is not set."""
    if not os.environ.get(variable):
        raise KDError(f"environment variable {variable} is not set: export {variable}=/path/to/{variable}")
    return Path(os.environ[variable])


def command_path(name: str) -> str:
    """A command of the environment this Python belongs to, whether or not it is activated; else the name, for PATH to find."""
    program = Path(sys.executable).parent / name
    return str(program) if program.exists() else name


def available_cpus() -> int:
    """CPUs that this process may use. The runner has a copy: it imports nothing of this package."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def trainers_path() -> Path:
    """The folder of trainer shims, for nnU-Net's variable `nnUNet_extTrainer`.

    Installed, it is the package `nnunet_kd.trainers`; in a source tree that is not installed, the folder trainers/.
    Raises KDError if neither is there.
    """
    spec = find_spec("nnunet_kd.trainers")
    candidates = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    candidates.append(Path(__file__).parents[2] / "trainers")
    for folder in candidates:
        if any(folder.glob("nnUNetTrainer*.py")):
            return folder.resolve()
    raise KDError(f"no trainers in {' or '.join(map(str, candidates))}: install nnunet-kd again (pip install or make install)")
