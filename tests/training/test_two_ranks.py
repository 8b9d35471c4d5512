"""`-num_gpus 2` in miniature: two gloo ranks on the CPU run our trainers under DDP.

nnU-Net's command hard-codes cuda and nccl. Here the device is set after construction and nnU-Net's name for DDP is replaced
in its module by one without device ids. Nothing is claimed about the command itself, which needs two GPUs. Batches are even:
nnU-Net's own batch Dice gathers ranks' values one by one and fails where ranks hold different numbers of patches.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from small_runs import known_trainers, make, stopped, student, weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")]

NAME = "nnUNetTrainerGKDCrossView"
SCHEDULE = {"epochs": 6, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}
ALL = {  # every term, what learns beside the student, and a memory
    "terms": {"kd": {"balance": 0.5}, "cross": {"balance": 0.5}},
    "losses": {"bottleneck": {"fitnets": {}}, "decoder0": {"cirkd-memory": {}}},
    "ramp": 0.0,
}


def plan(teacher: Path, name: str, batch_size: int, **section) -> str:
    name = student(teacher, name, schedule=SCHEDULE, **section)
    file = teacher.parent.parent.parent / "preprocessed" / teacher.parent.name / f"{name}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["2d"]["batch_size"] = batch_size
    file.write_text(json.dumps(plans))
    return name


def on_cpu(name: str, plans: str, resume: bool = False):
    """nnU-Net's trainer of this rank, moved from the GPU it takes for granted."""
    trainer = make(name, plans)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    if resume:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    return trainer


def state(trainer) -> dict:
    distiller = trainer.distiller
    found = {
        "weights": {k.removeprefix("module."): v for k, v in weights(trainer).items()},
        "momentum": trainer.optimizer.state_dict()["state"],
        "losses": trainer.logger.local_logger.my_fantastic_logging,
        "views": distiller.generator.get_state(),
    }
    if distiller.alignment is not None:
        found["alignment"] = distiller.alignment.state_dict()
    if distiller.pair_losses is not None:
        found["learned"] = dict(distiller.pair_losses.named_parameters())
    if distiller.frequencies is not None:
        found["frequencies"] = distiller.frequencies
    return copy.deepcopy(found)


def rank_of(rank: int, folder: str, name: str, plans: str, epochs: int, stop: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        ddp = nnunet_module.DDP
        patch.setattr(nnunet_module, "DDP", lambda network, device_ids: ddp(network))
        trainer = on_cpu(name, plans)
        trainer.on_train_start()
        assert isinstance(trainer.network, ddp)
        stopped(trainer, epochs if stop is None else stop)
        if stop is not None:
            dist.barrier()  # rank 0 has saved
            trainer = on_cpu(name, plans, resume=True)
            assert trainer.current_epoch == stop
            trainer.on_train_start()
            stopped(trainer, epochs - stop)
        torch.save({**state(trainer), "batch": next(trainer.dataloader_train)["data"]}, f"{folder}/{rank}.pt")
        dist.barrier()
    # torch's reducer can wait for ever for gloo's thread when Python takes it down after the process group
    os._exit(0)


def two_ranks(folder: Path, *arguments) -> list[dict]:
    mp.spawn(rank_of, (str(folder), *arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def whole(tiny_teacher, tmp_path_factory) -> list[dict]:
    """What both ranks hold after a training through all phases."""
    plans = plan(tiny_teacher, "Ranks", 4, **ALL)
    return two_ranks(tmp_path_factory.mktemp("whole"), NAME, plans, 6, None)


def test_two_ranks_hold_one_student_and_one_pair_of_msans(whole):
    first, second = whole
    for part in ("weights", "momentum", "alignment", "learned", "frequencies"):
        assert equal(first[part], second[part]), part
    assert not torch.equal(first["views"], second["views"]) and not torch.equal(first["batch"], second["batch"])
    logged, other = first["losses"], second["losses"]
    for key in ("val_losses", "mean_fg_dice", "train_losses"):
        assert logged[key] == other[key] and len(logged[key]) == 6, key


def test_a_stopped_training_continues_to_the_same_result(whole, tiny_teacher, tmp_path):
    """Each rank with its own random numbers: from rank 0's alone, both would draw the same patches and views."""
    shutil.rmtree(tiny_teacher.parent / f"{NAME}__Ranks__2d")
    again = two_ranks(tmp_path, NAME, "Ranks", 6, 3)
    for rank in (0, 1):
        for part in ("weights", "momentum", "alignment", "learned", "frequencies", "views", "batch"):
            assert equal(again[rank][part], whole[rank][part]), (rank, part)
