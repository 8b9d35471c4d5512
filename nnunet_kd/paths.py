"""Where the installed package keeps what other programs must be pointed to."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nnunet_kd
from nnunet_kd.errors import KDError


def trainers_path() -> Path:
    """The folder of trainer shims, for nnU-Net's variable `nnUNet_extTrainer`.

    Installed, it is the package `nnunet_kd.trainers`; in a source tree that is not installed, the folder trainers/.
    Raises KDError if neither is there.
    """
    spec = find_spec("nnunet_kd.trainers")
    candidates = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    candidates.append(Path(nnunet_kd.__file__).parents[1] / "trainers")
    for folder in candidates:
        if any(folder.glob("nnUNetTrainer*.py")):
            return folder.resolve()
    raise KDError(f"no trainers in {' or '.join(map(str, candidates))}: install nnunet-kd again (pip install or make install)")
