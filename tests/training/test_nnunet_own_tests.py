"""nnU-Net's own unit tests, as its wheel ships them, with this package installed and its trainers in nnUNet_extTrainer.

The wheel's integration tests are scripts that want a GPU and hours; test_hippocampus.py runs what they do, shortened.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nnunetv2
import pytest
from small_runs import TRAINERS

TESTS = Path(nnunetv2.__file__).parent / "tests"
# and leave nothing bent
LOAD = "import nnunet_kd.training.distillation, nnunet_kd.training.named, unittest; unittest.main(module=None)"


def result(*start: str, **variables: str) -> tuple[int, int]:
    """How many of nnU-Net's unit tests ran, and how many of them failed."""
    files = [f"nnunetv2.tests.{file.stem}" for file in sorted(TESTS.glob("test_*.py"))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    run = subprocess.run([sys.executable, *start, *files], env=kept | variables, capture_output=True, text=True, check=False)
    ran = re.search(r"^Ran (\d+) tests?", run.stderr, re.MULTILINE)
    assert ran, run.stderr[-2000:]
    failed = re.findall(r"(?:failures|errors|skipped)=(\d+)", run.stderr.splitlines()[-1])
    return int(ran[1]), sum(map(int, failed))


@pytest.mark.slow
def test_the_result_is_the_same_with_and_without_this_package():
    alone = result("-m", "unittest")
    beside = result("-c", LOAD, nnUNet_extTrainer=TRAINERS)
    assert alone == beside and alone[0] >= 7 and alone[1] == 0
