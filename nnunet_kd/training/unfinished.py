"""What is left of a training that ends before it should: nothing of one that never began, and how to continue another."""

from __future__ import annotations

import contextlib
from pathlib import Path


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


def stopped(fold: Path, epoch: int) -> KeyboardInterrupt:
    """Ctrl-C in an epoch, with one line that says how to continue. No class of its own: the exit code 130 is for this one."""
    latest = fold / "checkpoint_latest.pth"
    if latest.is_file():
        text = f"stopped in epoch {epoch}: the same command with --c continues from {latest}"
    elif (fold / "checkpoint_final.pth").is_file():
        text = f"stopped after the last epoch: the same command with --val validates {fold}"
    else:
        text = f"stopped in epoch {epoch}, before the first checkpoint (schedule.save_every in the plans): start again"
    return KeyboardInterrupt(text)
