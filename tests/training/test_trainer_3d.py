"""Whole trainings on volumes, and on overlapping regions with an ignore label: every term is there and teaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from small_runs import known_trainers, one_step

from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest

TERMS = ("intra", "inter", "cross_ts", "cross_st")


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


class Run:
    """A training of 10 epochs of 1 step, and the size of every term's gradient in the student at every step."""

    def __init__(self, dataset, teacher: Path, trainer: str) -> None:
        name = f"KD{trainer.removeprefix('nnUNetTrainer')}"
        plan_student(StudentRequest(dataset.id, dataset.configuration, teacher, width=0.5, iterations=10, epochs=10, name=name))
        device = torch.device("cpu")
        self.trainer = get_trainer_from_args(str(dataset.id), dataset.configuration, 0, trainer, name, device=device)
        self.gradients: dict[str, list[float]] = {}
        self.masks: list[torch.Tensor | None] = []
        self.trainer.initialize()
        terms = self.trainer.distiller.terms

        def watched(step):
            found = terms(step)
            parameters = list(self.trainer.network.parameters())
            for term, (_, value) in found.items():
                gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                size = float(sum(g.abs().sum() for g in gradients if g is not None))
                self.gradients.setdefault(term, []).append(size)
            self.masks.append(step.mask)
            return found

        self.trainer.distiller.terms = watched
        self.trainer.run_training()
        self.logged = self.trainer.logger.local_logger.my_fantastic_logging

    def check(self, kd: bool) -> None:
        """Every value that the preset has is finite and not 0 from the epoch on in which it starts, and teaches."""
        parts = ["reconstruction", "consistency", "agreement", "semantic", "decoded"]
        starts = dict.fromkeys(TERMS, 3) | {"seg_loss": 0, "act_autoencoder": 0} | ({"kd": 0} if kd else {})
        starts |= {f"act_{p}_{n}": 1 for p in parts for n in ("teacher", "student")}
        assert {k.removeprefix("kd/") for k in self.logged if k.startswith("kd/")} == set(starts)
        for term, start in starts.items():
            values = np.array(self.logged[f"kd/{term}"])[start:]
            # the autoencoder trains before ACT only, and MSANs are frozen or joint after it
            values = values[:1] if term == "act_autoencoder" else values[:2] if term.startswith("act_") else values
            assert np.isfinite(values).all() and (values != 0).all(), (term, values)
        assert set(self.gradients) == {*TERMS, *(["kd"] if kd else [])}
        for term, sizes in self.gradients.items():
            assert len(sizes) == (10 if term == "kd" else 7)
            assert np.isfinite(sizes).all() and min(sizes) > 0, (term, sizes)
        assert np.isfinite(self.logged["train_losses"]).all() and np.isfinite(self.logged["val_losses"]).all()


@pytest.fixture(scope="module")
def volumes(make_dataset, train):
    dataset = make_dataset(966, "Train3d", dims=3)
    return dataset, train(dataset)


@pytest.mark.parametrize(("trainer", "kd"), [("nnUNetTrainerGKDCrossView", True), ("nnUNetTrainerGKDPaper", False)])
def test_volumes(volumes, trainer, kd, tmp_path):
    run = Run(*volumes, trainer)
    assert run.trainer.batch_size == 2 and run.trainer.configuration_manager.patch_size == [16, 16, 16]
    run.check(kd)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(run.trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = volumes[0].raw / "imagesTr" / "case_00_0000.nii.gz"
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "case_00")])
    assert (tmp_path / "case_00.nii.gz").is_file()


def test_narrow_volumes_step_in_bfloat16(volumes):
    # channels_last is for images; a volume's weights have five axes
    dataset, teacher = volumes
    options = {"width": 0.5, "iterations": 10, "epochs": 10, "cpu_precision": "bfloat16"}
    plan_student(StudentRequest(dataset.id, dataset.configuration, teacher, **options, name="KDhalf3d"))
    device = torch.device("cpu")
    trainer = get_trainer_from_args(
        str(dataset.id), dataset.configuration, 0, "nnUNetTrainerGKDCrossView", "KDhalf3d", device=device
    )
    trainer.on_train_start()
    assert all(p.is_contiguous() for p in trainer.network.parameters())
    assert trainer.network.encoder.output_channels[0] < 16
    for epoch in (0, 1, 5):
        assert np.isfinite(one_step(trainer, epoch)["loss"])


def test_overlapping_regions_and_an_ignore_label(make_dataset, train):
    """Each alone: test_label_modes.py."""
    dataset = make_dataset(967, "TrainRegions", ignore=True, foreground=2, regions=True)
    run = Run(dataset, train(dataset), "nnUNetTrainerGKDCrossView")
    assert run.trainer.label_manager.has_regions and run.trainer.distiller.alignment.autoencoder.regions
    run.check(kd=True)
    masks = torch.stack(run.masks)  # (10, B, 1, *S)
    assert masks.shape[2] == 1 and masks.dtype == torch.bool
    ignored = 1 - masks.float().mean()
    assert 0 < ignored < 0.5  # a stripe of 4 of 48 rows is painted
