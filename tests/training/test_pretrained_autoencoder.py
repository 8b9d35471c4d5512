"""`act.autoencoder`: the P-SAE of an earlier training, taken over as it is."""

from pathlib import Path

import pytest
import torch
from helpers import TEACHER, plans
from small_runs import known_trainers, make, same, stopped, student

from nnunet_kd.config.run import read_config
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.utils.errors import KDError

NAME = "nnUNetTrainerGKDCrossView"
SHORT = {"epochs": 4, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "save_every": 1}


@pytest.fixture(autouse=True)
def external_trainers(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture(scope="module")
def trained(tiny_teacher) -> Path:
    """Checkpoint of a training that had a warm-up, so that its P-SAE is trained."""
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        act = {"start": 0.4, "end": 0.6}
        trainer = make(NAME, student(tiny_teacher, "KDpsae", schedule={**SHORT, "epochs": 5}, act=act))
        trainer.run_training()
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def autoencoder(checkpoint: Path) -> dict:
    state = load_checkpoint(checkpoint)["nnunet_kd"]["distiller"]["alignment"]
    return {k.removeprefix("autoencoder."): v for k, v in state.items() if k.startswith("autoencoder.")}


def with_autoencoder(teacher: Path, name: str, file: Path | str, **section) -> str:
    act = {"start": 0.0, "end": 0.5, "autoencoder": str(file)}
    return student(teacher, name, schedule=SHORT, act=act, **section)


def test_it_is_taken_over_read_and_never_trained(tiny_teacher, trained, nnunet_folders):
    kept = autoencoder(trained)
    assert int(kept["batches"]) == 2  # two steps of warm-up
    # relative to nnUNet_results, as a teacher's folder
    plans = with_autoencoder(tiny_teacher, "KDloaded", trained.relative_to(nnunet_folders.results))
    trainer = make(NAME, plans)
    trainer.on_train_start()
    assert same(trainer.distiller.alignment.autoencoder.state_dict(), kept)
    assert str(trained) in Path(trainer.log_file).read_text()
    stopped(trainer, 4)
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert same(trainer.distiller.alignment.autoencoder.state_dict(), kept)
    assert "kd/act_autoencoder" not in logged
    assert logged["kd/act_semantic_teacher"][0] > 0  # ACT reads it from the first step on
    assert logged["kd/cross_ts"][-1] > 0


def test_its_vectors_are_what_the_msans_are_drawn_to(tiny_teacher, trained):
    """Other vectors, other MSANs: the file is not only copied."""
    found = []
    for name, factor in (("KDread", 1.0), ("KDother", 2.0)):
        trainer = make(NAME, with_autoencoder(tiny_teacher, name, trained))
        trainer.on_train_start()
        trainer.distiller.alignment.autoencoder.std *= factor
        stopped(trainer, 1)
        found.append({k: v.clone() for k, v in trainer.distiller.alignment.msans.state_dict().items()})
    assert not same(*found)


def test_a_continued_training_does_not_need_the_file(tiny_teacher, trained, tmp_path):
    copy = tmp_path / "psae.pth"
    copy.write_bytes(trained.read_bytes())
    plans = with_autoencoder(tiny_teacher, "KDgone", copy)
    first = make(NAME, plans)
    first.on_train_start()
    stopped(first, 2)
    copy.unlink()
    second = make(NAME, plans, resume=True)
    second.run_training()
    assert same(autoencoder(Path(second.output_folder) / "checkpoint_final.pth"), autoencoder(trained))


def test_another_kind_of_file_is_refused_before_training(tiny_teacher, trained, tmp_path):
    stock = tiny_teacher / "fold_0/checkpoint_final.pth"
    for file, section, says in (
        (tmp_path / "none.pth", {}, "no checkpoint at .*none.pth"),
        (stock, {}, "holds no semantic autoencoder; name the checkpoint of a training with MSANs"),
        (trained, {"msan": {"dim": 64}}, "was trained for other labels, another msan.dim or other spatial"),
    ):
        trainer = make(NAME, with_autoencoder(tiny_teacher, "KDbad", file, **section))
        with pytest.raises(KDError, match=says) as error:
            trainer.run_training()
        assert "\n" not in str(error.value)
        assert not list(Path(trainer.output_folder).glob("checkpoint*"))


def test_settings_that_contradict_it():
    def read(**act):
        return read_config(plans(teacher=TEACHER, act=act), "cross-view", "nnUNetTrainerX")

    assert read(start=0.0, autoencoder="x.pth").act.autoencoder == "x.pth"
    with pytest.raises(KDError, match='"semantic" is 0, so nothing reads it'):
        read(semantic=0.0, autoencoder="x.pth")
    with pytest.raises(KDError, match="raise start, load one"):
        read(start=0.0)


def test_without_the_key_it_trains_in_the_warm_up(tiny_teacher):
    trainer = make(NAME, student(tiny_teacher, "KDown", schedule=SHORT))
    trainer.on_train_start()
    before = {k: v.clone() for k, v in trainer.distiller.alignment.autoencoder.state_dict().items()}
    stopped(trainer, 1)
    assert not same(trainer.distiller.alignment.autoencoder.state_dict(), before)
    assert torch.isfinite(trainer.distiller.alignment.autoencoder.std).all()
