"""A trained fold is read once: by evaluation with FSD, by an export, and by a student that loads its teacher."""

from __future__ import annotations

import builtins
import collections
import io
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import known_trainers, make, student

from nnunet_kd.cli.main import main
from nnunet_kd.deploy.export import export_model
from nnunet_kd.evaluation.domains import parse_domain
from nnunet_kd.evaluation.evaluate import EvaluationRequest, Model, evaluate
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.nnunet_io.model_folder import build_network, read_model_folder
from nnunet_kd.nnunet_io.trained_fold import FINAL, OpenedFolds, TrainedFold
from nnunet_kd.utils.errors import KDError


@pytest.fixture(scope="module")
def gkd(tiny_dataset, tiny_teacher) -> Path:
    """Training folder of a student with MSANs."""
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        trainer = make("nnUNetTrainerGKD", student(tiny_teacher, "TrainedFold", epochs=1, iterations=1))
        trainer.run_training()
    return Path(trainer.output_folder_base)


@pytest.fixture
def reads(monkeypatch) -> collections.Counter:
    """How often each checkpoint is opened, by whoever: torch opens files by `open`, and nothing else may."""
    counted = collections.Counter()
    load, opened = torch.load, builtins.open

    def count(file) -> None:
        if isinstance(file, str | Path) and str(file).endswith(".pth"):
            counted[Path(file).resolve()] += 1

    def counting_load(file, *args, **kwargs):
        count(file)
        with monkeypatch.context() as inner:  # its own opening is no second read
            inner.setattr(builtins, "open", opened)
            return load(file, *args, **kwargs)

    def counting_open(file, mode="r", *args, **kwargs):
        if "r" in mode:
            count(file)
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counting_load)
    monkeypatch.setattr(builtins, "open", counting_open)
    monkeypatch.setattr(io, "open", counting_open)  # pathlib's
    return counted


def test_evaluation_with_fsd_reads_every_checkpoint_once(gkd, tiny_dataset, tiny_teacher, tmp_path, reads):
    main(["export", str(gkd), "-o", str(tmp_path / "MODEL")])
    reads.clear()
    home = parse_domain("home=950:Tr:case_0[0-3]", tiny_dataset.raw.parent)
    models = [
        Model("teacher", tiny_teacher),
        Model("gkd", gkd),  # its teacher is the first model
        Model("light", tmp_path / "MODEL", gkd, {"home": home.labels}),  # renamed: the checkpoint tells the configuration
    ]
    report = evaluate(EvaluationRequest(models, [home], tmp_path / "out", bootstrap=10))
    assert {r["model"] for r in report["fsd"]} == {"gkd", "light"} and report["note"] == ""
    assert all(m["cpu_seconds_per_case"] > 0 for m in report["models"])
    expected = {tiny_teacher / "fold_0" / FINAL, gkd / "fold_0" / FINAL, tmp_path / "MODEL" / "fold_0" / FINAL}
    assert reads == {file.resolve(): 1 for file in expected}


def test_an_export_reads_its_source_once(gkd, tmp_path, reads):
    export_model(gkd, tmp_path / "MODEL")
    assert reads[(gkd / "fold_0" / FINAL).resolve()] == 1


def test_a_student_reads_an_exported_teacher_once_and_hashes_its_file_once(tiny_teacher, tmp_path, monkeypatch, reads):
    export_model(tiny_teacher, tmp_path / "renamed")
    reads.clear()
    known_trainers(monkeypatch)
    trainer = make("nnUNetTrainerKD", student(tmp_path / "renamed", "TrainedFoldKD", epochs=1, iterations=1))
    reads.clear()
    trainer.on_train_start()
    assert reads[(tmp_path / "renamed" / "fold_0" / FINAL).resolve()] == 2


def test_it_hands_out_what_its_readers_need(gkd, tiny_teacher):
    fold = TrainedFold.open(gkd)
    content = load_checkpoint(fold.file)
    assert fold.file == gkd / "fold_0" / FINAL and fold.model.configuration == "2d" and fold.fold == "0"
    assert fold.trainer_name == "nnUNetTrainerGKD" and fold.mirror_axes == (0, 1) and fold.epoch == 1
    assert fold.msans.keys() == content["nnunet_kd"]["distiller"]["alignment"].keys()
    assert TrainedFold.open(tiny_teacher).msans is None
    assert "optimizer_state" in content and "optimizer_state" not in fold.content
    first, second = fold.network(), fold.network()
    assert first is not second and not first.training
    for network in (first, second):
        assert all(torch.equal(v, content["network_weights"][k]) for k, v in network.state_dict().items())
    with torch.no_grad():
        first.encoder.stages[0][0].convs[0].conv.weight.zero_()
    assert not torch.equal(*(n.encoder.stages[0][0].convs[0].conv.weight for n in (first, fold.network())))


def test_opened_folds_are_one_by_file(tiny_teacher, monkeypatch, tmp_path):
    folds = OpenedFolds()
    first = folds.open(tiny_teacher, 0)
    monkeypatch.chdir(tiny_teacher.parent)
    for same in (Path(tiny_teacher.name), str(tiny_teacher), tiny_teacher / "fold_0", read_model_folder(tiny_teacher)):
        assert folds.open(same, "0") is first
    other = Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))
    assert folds.open(other, 0) is not first


def test_a_missing_fold_and_a_foreign_network_are_named(tiny_teacher, tmp_path):
    with pytest.raises(KDError, match=rf"no checkpoint at .*fold_4/{FINAL} \(folds with a {FINAL}: 0.*\): train fold 4"):
        TrainedFold.open(tiny_teacher, 4)
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))
    file = folder / "fold_0" / FINAL
    weights = {k: v[:1] for k, v in build_network(read_model_folder(folder)).state_dict().items()}
    save_atomically({**load_checkpoint(file), "network_weights": weights}, file)
    with pytest.raises(KDError, match="does not fit the network of .*plans.json"):
        TrainedFold.open(folder).network()
