"""One training of a comparison in a process of its own: `python -m nnunet_kd.comparison.running.train`, started by execute.py.

nnU-Net's own trainer, resuming and all. It differs from `nnUNetv2_train` in three things: the number of threads is the
comparison's (nnU-Net takes all cores on a CPU), there is no validation after the training (every domain is predicted from
the exported model), and the CPU seconds are written down after every epoch.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path

from nnunet_kd.comparison.git import code_version
from nnunet_kd.utils.files import write_json

RECORD = "compare_training.json"  # in the fold's folder; it also says that the training is a comparison's


def train(dataset: str, configuration: str, fold: int, plans: str, trainer_name: str, device: str, resume: bool) -> None:
    """Train to the end. ``resume`` goes on from nnU-Net's latest checkpoint."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    cpu, wall = time.process_time(), time.perf_counter()
    trainer = get_trainer_from_args(dataset, configuration, fold, trainer_name, plans, resume, torch.device(device))
    maybe_load_checkpoint(trainer, resume, False)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # as nnU-Net's run_training does
    file = Path(trainer.output_folder) / RECORD
    record = read_record(file) if trainer.current_epoch else read_record(None)
    epochs = record["epochs"]
    # unknown where the epochs before the checkpoint were not recorded
    before = epochs.get(str(trainer.current_epoch)) if trainer.current_epoch else [0.0, 0.0]
    # of another commit's code, in part, where a training was stopped and goes on
    record["commit"] = "+".join(dict.fromkeys([*filter(None, record["commit"].split("+")), code_version()]))
    write_json(file, record)
    epoch_end = trainer.on_epoch_end

    def on_epoch_end() -> None:
        # before nnU-Net saves its checkpoint: no checkpoint is ever without its record
        spent = (time.process_time() - cpu, time.perf_counter() - wall)
        epochs[str(trainer.current_epoch + 1)] = before and [round(b + s, 3) for b, s in zip(before, spent, strict=True)]
        write_json(file, record)
        epoch_end()

    trainer.on_epoch_end = on_epoch_end
    trainer.run_training()


def read_record(file: Path | None) -> dict:
    """``{"commit": of the code, "epochs": {epochs done: [CPU seconds, wall seconds] or None if unknown}}``."""
    empty = {"commit": "", "epochs": {}}
    return empty | json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else empty


def main() -> None:
    """Train one network, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("dataset", "configuration", "fold", "plans", "trainer", "device", "threads"):
        parser.add_argument(name, type=int if name in ("fold", "threads") else str)
    parser.add_argument("--c", action="store_true", help="go on from the latest checkpoint")
    o = parser.parse_args()
    # Slurm's warning before the time limit goes to every process of a job; the parent answers it and ends this one
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    import torch

    torch.set_num_threads(o.threads)
    train(o.dataset, o.configuration, o.fold, o.plans, o.trainer, o.device, o.c)


if __name__ == "__main__":
    main()
