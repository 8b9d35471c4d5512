"""What is left of a training that ends before it should: nothing of one that never began, and how to continue another."""

from __future__ import annotations

import contextlib
from pathlib import Path

from nnunet_kd.utils.errors import Stopped


def forget_training(fold: Path, log: Path) -> None:
    """Remove the log of a training that has not begun, and the folders that nnU-Net made for it. What else lies there stays.

    Args:
        fold: nnU-Net's DATASET/TRAINER__PLANS__CONFIGURATION/fold_X.
        log: the file of this run in it, which holds nothing but the settings.
    """
    log.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        for folder in (fold, *fold.parents[:2]):
            folder.rmdir()


def stopped(fold: Path, epoch: int) -> Stopped:
    """Ctrl-C in an epoch, as one line that says how to continue."""
    if (fold / "checkpoint_latest.pth").is_file():
        return Stopped(f"stopped in epoch {epoch}: the same command with --c continues from {fold / 'checkpoint_latest.pth'}")
    if (fold / "checkpoint_final.pth").is_file():
        return Stopped(f"stopped after the last epoch: the same command with --val validates {fold}")
    return Stopped(
        f"stopped in epoch {epoch}, before the first checkpoint: the same command starts again (schedule.save_every in the "
        "plans says how often one is written)"
    )
