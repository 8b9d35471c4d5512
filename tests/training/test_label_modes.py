"""nnU-Net's label modes, one and three channels, images and volumes: every term is there, finite and above 0."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from small_runs import known_trainers, one_step

from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest

MODES = {
    "plain": {},
    "regions": {"regions": True},
    "ignore": {"ignore": True},
    "regions+ignore": {"regions": True, "ignore": True},
}
# of the 16 combinations 8, among which every pair is: each mode with both numbers of channels and with both dimensions
CELLS = [
    (mode, channels, 2 if (channels == 1) == (mode in ("plain", "regions+ignore")) else 3)
    for mode, channels in itertools.product(MODES, (1, 3))
]
TERMS = ("intra", "inter", "cross_ts", "cross_st")


def _of_both(*parts: str) -> list[str]:
    return [f"act_{part}_{network}" for part in parts for network in ("teacher", "student")]


# what a preset reports in a step of its warm-up, of ACT, and while it distils
EXPECTED = {
    "nnUNetTrainerGKD": (
        ["kd", "act_autoencoder"],
        ["kd", "act_alignment_student", *_of_both("reconstruction", "semantic", "consistency")],
        ["kd", *TERMS, "act_alignment_student", *_of_both("reconstruction", "semantic", "consistency")],
    ),
    "nnUNetTrainerKDAdjustedMirrored": (
        ["kd", "act_autoencoder"],
        ["kd", *_of_both("reconstruction", "semantic")],
        ["kd", *_of_both("reconstruction", "semantic")],
    ),
    "nnUNetTrainerGKDPaper": (
        ["act_autoencoder"],
        _of_both("reconstruction", "semantic", "consistency", "decoded", "agreement"),
        list(TERMS),
    ),
}


class Cell(NamedTuple):
    mode: str
    channels: int
    dims: int
    dataset: object
    teacher: Path

    def trainer(self, name: str, epochs: int, iterations: int, **section):
        planned = plan_student(
            StudentRequest(
                self.dataset.id,
                self.dataset.configuration,
                self.teacher,
                width=0.5,
                iterations=epochs * iterations,
                epochs=epochs,
                name=f"Modes{name.removeprefix('nnUNetTrainer')}",
            )
        )
        plans = planned.plans
        plans["nnunet_kd"].update(section)
        planned.file.write_text(json.dumps(plans))
        where = (str(self.dataset.id), self.dataset.configuration, 0)
        return get_trainer_from_args(*where, name, planned.plans_name, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture(scope="module", params=CELLS, ids=[f"{m}-{c}ch-{d}d" for m, c, d in CELLS])
def cell(request, make_dataset, train):
    mode, channels, dims = request.param
    number = 900 + CELLS.index(request.param)
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        dataset = make_dataset(number, f"Mode{number}", dims=dims, channels=channels, foreground=2, cases=5, **MODES[mode])
        return Cell(mode, channels, dims, dataset, train(dataset))


def test_all_terms_and_a_loss_that_reads_labels(cell):
    trainer = cell.trainer("nnUNetTrainerGKDCrossView", 2, 3, losses={"decoder0": {"ifvd": {}}})
    masks, prepare = [], None

    def watched(data, onehot, mask, *rest):
        assert data.shape[1] == cell.channels and onehot.shape[1] == 3 - trainer.label_manager.has_regions
        masks.append(mask)
        return prepare(data, onehot, mask, *rest)

    trainer.initialize()
    prepare, trainer.distiller.prepare = trainer.distiller.prepare, watched
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    # a step of warm-up, one of ACT, four that distil
    in_both = ["seg_loss", "kd", "ifvd@decoder0", *TERMS, *_of_both("reconstruction", "semantic", "consistency", "decoded")]
    for key in (*in_both, *_of_both("agreement")):
        assert np.isfinite(logged[f"kd/{key}"]).all() and (np.array(logged[f"kd/{key}"]) != 0).all(), key
    assert logged["kd/act_autoencoder"][0] > 0
    assert np.isfinite(logged["train_losses"]).all() and np.isfinite(logged["val_losses"]).all()
    if "ignore" in cell.mode:
        assert all(m.shape[1] == 1 and m.dtype == torch.bool for m in masks)
        assert 0 < 1 - torch.stack(masks).float().mean() < 0.6
    else:
        assert masks == [None] * 6


@pytest.mark.parametrize("name", EXPECTED)
def test_every_term_of_a_preset(cell, name):
    trainer = cell.trainer(name, 10, 1)
    trainer.on_train_start()
    for epoch, expected in zip((0, 1, 5), EXPECTED[name], strict=True):
        values = one_step(trainer, epoch)
        found = {k for k, v in values.items() if np.isfinite(v)} - {"loss", "seg_loss"}
        assert found == set(expected), epoch
        assert all(values[k] > 0 for k in expected), values
        assert np.isfinite(values["loss"])
