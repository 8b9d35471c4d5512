"""Our commands and nnU-Net's as processes of their own, as a user types them."""

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def without_nnunet() -> dict[str, str]:
    """This process's environment without nnU-Net's variables, nnUNet_extTrainer among them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    # nnU-Net takes every core for the CPU; on busy ones its spinning threads make these tiny networks 50 times slower
    return kept | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run(command: list, environment: dict[str, str], timeout: int = 240) -> subprocess.CompletedProcess:
    command = [str(BIN / command[0]), *map(str, command[1:])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)


def succeeds(command: list, environment: dict[str, str], timeout: int = 240) -> str:
    result = run(command, environment, timeout)
    assert result.returncode == 0, f"{command}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}"
    return result.stdout
