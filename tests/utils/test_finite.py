"""Steps with NaN or Inf on several ranks. The guard of one process, and in a training: tests/training/test_guard.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import on_two_ranks

from nnunet_kd.utils.finite import SkipStep, StepGuard, require_finite


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    said = []
    guard = StepGuard(said.append)
    require_finite({"kd": 1.0}, torch.device("cpu"))
    try:
        require_finite({"kd": float("nan") if rank == 1 else 1.0}, torch.device("cpu"))
    except SkipStep as skip:
        guard.skipped(str(skip), {"data": torch.zeros(1, 1), "keys": [f"case_{rank}"]})
    Path(folder, f"{rank}.json").write_text(json.dumps([said, guard.in_a_row]))


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_all_ranks_skip_together(tmp_path):
    on_two_ranks(_rank, str(tmp_path))
    for rank in (0, 1):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said == [["WARNING: step skipped: rank 1: kd is nan (cases case_1)"], 1]
