from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.utils.errors import KDError


def checkpoint(**more) -> dict:
    weights = {"conv.weight": torch.arange(6.0).reshape(2, 3)}
    return {"network_weights": weights, "trainer_name": "nnUNetTrainer", "init_args": {"fold": 0}} | more


class RunsCode:
    """Unpickled without protection, creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def error_of(path: Path) -> str:
    with pytest.raises(KDError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_numpy_numbers_of_the_logger_survive(tmp_path):
    logging = {"train_losses": [np.float32(0.5), np.float64(0.25)], "dice": [np.array([0.1, 0.2])], "n": [np.int64(3)]}
    save_atomically(checkpoint(logging=logging, _best_ema=np.float32(0.7)), tmp_path / "c.pth")

    loaded = load_checkpoint(tmp_path / "c.pth")

    assert torch.equal(loaded["network_weights"]["conv.weight"], torch.arange(6.0).reshape(2, 3))
    assert loaded["logging"]["train_losses"] == [0.5, 0.25] and loaded["_best_ema"].dtype == np.float32
    np.testing.assert_array_equal(loaded["logging"]["dice"][0], [0.1, 0.2])


def test_names_of_numpy_1_are_known(tmp_path):
    """A checkpoint from numpy 1.x calls its module numpy.core, one from numpy 2.x numpy._core."""
    save_atomically(checkpoint(_best_ema=np.float64(0.7)), tmp_path / "c.pth")
    reader = torch._C.PyTorchFileReader(str(tmp_path / "c.pth"))
    old = reader.get_record("data.pkl").replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "old.pth"))
    for record in reader.get_all_records():
        content = old if record == "data.pkl" else reader.get_record(record)
        if record != "version" and not record.startswith("."):
            writer.write_record(record, content, len(content))
    writer.write_end_of_file()

    assert load_checkpoint(tmp_path / "old.pth")["_best_ema"] == 0.7


def test_a_stock_nnunet_checkpoint_loads(tiny_teacher):
    loaded = load_checkpoint(tiny_teacher / "fold_0" / "checkpoint_final.pth")

    assert loaded["trainer_name"] == "nnUNetTrainer" and loaded["init_args"]["configuration"] == "2d"
    assert len(loaded["logging"]["train_losses"]) == 1
    assert loaded["optimizer_state"]["state"]


def test_missing(tmp_path):
    assert "no checkpoint at" in error_of(tmp_path / "checkpoint_final.pth")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated(tmp_path, share):
    path = tmp_path / "c.pth"
    save_atomically(checkpoint(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "truncated or damaged" in error_of(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", pickle.dumps({"network_weights": 1})])
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    assert "is not a checkpoint" in error_of(path)


def test_another_programs_checkpoint(tmp_path):
    save_atomically({"state_dict": {}}, tmp_path / "c.pth")
    assert "not an nnU-Net checkpoint (no network_weights, trainer_name, init_args)" in error_of(tmp_path / "c.pth")


def test_code_is_refused_and_not_run(tmp_path):
    save_atomically(checkpoint(logging=RunsCode(tmp_path / "marker")), tmp_path / "c.pth")

    assert "it holds posix.mkdir" in error_of(tmp_path / "c.pth")

    assert not (tmp_path / "marker").exists()
    # the same file does run code where nothing protects
    torch.load(tmp_path / "c.pth", weights_only=False)
    assert (tmp_path / "marker").is_dir()


def test_objects_in_arrays_are_refused(tmp_path):
    save_atomically(checkpoint(logging=np.array([{"a": 1}], dtype=object)), tmp_path / "c.pth")
    assert "refused to load" in error_of(tmp_path / "c.pth")


def test_an_interrupted_save_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_latest.pth"
    save_atomically(checkpoint(current_epoch=1), path)
    real_save = torch.save

    def dies_half_way(obj, file):
        real_save(obj, file)
        file.truncate(100)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_atomically(checkpoint(current_epoch=2), path)

    assert load_checkpoint(path)["current_epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    (tmp_path / ".checkpoint_latest.pth.tmp").write_bytes(b"half a checkpoint")
    save_atomically(checkpoint(current_epoch=3), path)
    assert load_checkpoint(path)["current_epoch"] == 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_permissions_are_the_usual_ones(tmp_path):
    save_atomically(checkpoint(), tmp_path / "c.pth")
    torch.save(checkpoint(), tmp_path / "usual.pth")
    assert (tmp_path / "c.pth").stat().st_mode == (tmp_path / "usual.pth").stat().st_mode
