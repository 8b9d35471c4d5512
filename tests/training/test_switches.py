"""nnU-Net's switches with our trainers, through the function behind `nnUNetv2_train`, in this process."""

import hashlib
import json
import multiprocessing
import multiprocessing.dummy
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training
from nnunetv2.training.logging import nnunet_logger
from small_runs import TRAINERS, known_trainers, make, one_step, same, stopped, student, weights

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.training import distillation as trainer_module
from nnunet_kd.training import scheduled
from nnunet_kd.utils.errors import KDError

CPU = torch.device("cpu")
GKD = "nnUNetTrainerGKDCrossView"  # all terms
TINY = {"epochs": 4, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "save_every": 1}


def prepare(patch) -> None:
    """Our trainers known, no pictures, and nnU-Net's worker pools as threads: a process takes seconds to start."""
    known_trainers(patch)
    get = multiprocessing.get_context
    threads = multiprocessing.dummy
    patch.setattr(multiprocessing, "get_context", lambda method=None: threads if method == "spawn" else get(method))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    prepare(monkeypatch)


@pytest.fixture
def no_teacher(tiny_teacher):
    """The teacher's folder is away."""
    away = tiny_teacher.with_name("away")
    tiny_teacher.rename(away)
    yield
    away.rename(tiny_teacher)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tiny_teacher) -> Path:
    """fold_0 of a finished GKD training with nnU-Net's final validation."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        run_training("950", "2d", 0, GKD, student(tiny_teacher, "SWtrained", schedule=TINY), device=CPU)
    return tiny_dataset.results / f"{GKD}__SWtrained__2d" / "fold_0"


def validated(fold: Path) -> dict:
    return json.loads((fold / "validation" / "summary.json").read_text())


def files(folder: Path, pattern: str) -> list[str]:
    return sorted(p.name for p in folder.glob(pattern))


def test_a_training_ends_with_nnunets_own_validation(trained):
    assert len(validated(trained)["metric_per_case"]) == 2 and 0 <= validated(trained)["foreground_mean"]["Dice"] <= 1
    assert files(trained, "checkpoint*") == ["checkpoint_best.pth", "checkpoint_final.pth"]


def test_the_log_holds_the_hash_of_the_teachers_file(trained, tiny_teacher):
    file = tiny_teacher / "fold_0" / "checkpoint_final.pth"
    log = next(trained.glob("training_log*")).read_text()
    assert f"teacher file {file}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in log
    assert "teacher weights after training: unchanged" in log and "teacher file after training: unchanged" in log


def test_a_teacher_that_was_changed_meanwhile_is_reported(tiny_teacher, tmp_path):
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))
    for change in ("replaced", "removed"):
        trainer = make("nnUNetTrainerKD", student(folder, "SWchanged", schedule={**TINY, "epochs": 1}))
        trainer.on_train_start()
        file = folder / "fold_0" / "checkpoint_final.pth"
        if change == "replaced":
            file.write_bytes(file.read_bytes() + b"x")
        else:
            shutil.rmtree(folder)
        stopped(trainer, 1)
        trainer.on_train_end()
        log = Path(trainer.log_file).read_text()
        assert "teacher file after training: CHANGED" in log and "teacher weights after training: unchanged" in log


@pytest.mark.parametrize("npz", [False, True])
def test_val(trained, no_teacher, npz):
    """--val, with and without --npz, and without the teacher."""
    before, checkpoint = validated(trained), (trained / "checkpoint_final.pth").read_bytes()
    shutil.rmtree(trained / "validation")
    run_training("950", "2d", 0, GKD, "SWtrained", only_run_validation=True, export_validation_probabilities=npz, device=CPU)
    assert validated(trained)["foreground_mean"] == before["foreground_mean"]
    found = files(trained / "validation", "*.npz")
    assert len(found) == (2 if npz else 0)
    for name in found:
        probabilities = np.load(trained / "validation" / name)["probabilities"]
        assert probabilities.shape == (2, 1, 48, 48) and np.allclose(probabilities.sum(0), 1, atol=1e-3)
    assert (trained / "checkpoint_final.pth").read_bytes() == checkpoint


def test_val_best_takes_the_best_checkpoint(trained, no_teacher):
    final, best = (load_checkpoint(trained / f"checkpoint_{n}.pth") for n in ("final", "best"))
    last = trained / "checkpoint_final.pth"
    kept, whole = last.read_bytes(), validated(trained)
    shutil.copytree(trained / "validation", trained / "validation_final")
    try:
        # the two must differ in what they predict: the best one's background wins everywhere
        weights_of_best = {k: torch.zeros_like(v) for k, v in best["network_weights"].items()}
        bias = next(k for k in reversed(weights_of_best) if k.endswith("seg_layers.1.bias"))
        weights_of_best[bias][0] = 1.0
        original = (trained / "checkpoint_best.pth").read_bytes()
        save_atomically({**best, "network_weights": weights_of_best}, trained / "checkpoint_best.pth")
        run_training("950", "2d", 0, GKD, "SWtrained", only_run_validation=True, val_with_best=True, device=CPU)
        per_case = [c["metrics"]["1"] for c in validated(trained)["metric_per_case"]]
        assert all(m["n_pred"] == 0 and m["n_ref"] > 0 for m in per_case)
        assert last.read_bytes() == kept and final["current_epoch"] == 4
    finally:
        (trained / "checkpoint_best.pth").write_bytes(original)
        shutil.rmtree(trained / "validation")
        (trained / "validation_final").rename(trained / "validation")
    assert validated(trained) == whole


def test_pretrained_weights(trained, tiny_teacher, capsys):
    """nnU-Net hands on everything but the segmentation heads; the distillation goes on from there."""
    plans = student(tiny_teacher, "SWpretrained", schedule=TINY)
    plain = make(GKD, plans)
    plain.initialize()
    seen = {}

    def look(trainer):
        seen.update(weights(trainer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.nnUNetTrainerDistillation, "run_training", look)
        patch.setattr(trainer_module.nnUNetTrainerDistillation, "perform_actual_validation", lambda *_: None)
        file = str(trained / "checkpoint_final.pth")
        run_training("950", "2d", 0, GKD, plans, pretrained_weights=file, device=CPU)
    source, fresh = load_checkpoint(trained / "checkpoint_final.pth")["network_weights"], weights(plain)
    heads = [k for k in source if ".seg_layers." in k]
    assert heads and seen.keys() == source.keys()
    for key, value in seen.items():
        assert torch.equal(value, fresh[key] if key in heads else source[key]), key


def test_disable_checkpointing(tiny_dataset, tiny_teacher):
    plans = student(tiny_teacher, "SWnone", schedule={**TINY, "epochs": 2})
    run_training("950", "2d", 0, GKD, plans, disable_checkpointing=True, device=CPU)
    fold = tiny_dataset.results / f"{GKD}__SWnone__2d" / "fold_0"
    assert files(fold, "*.pth*") == files(fold, ".*.pth*") == []
    assert len(validated(fold)["metric_per_case"]) == 2


def test_fold_all_learns_from_the_teacher_of_all(tiny_dataset, tiny_teacher, train):
    """ "same" takes the teacher's fold "all"; --c and --val find the fold too."""
    train(tiny_dataset, fold="all")
    plans = student(tiny_teacher, "SWall", schedule={**TINY, "epochs": 2})
    run_training("950", "2d", "all", GKD, plans, device=CPU)
    fold = tiny_dataset.results / f"{GKD}__SWall__2d" / "fold_all"
    assert load_checkpoint(fold / "checkpoint_final.pth")["current_epoch"] == 2
    assert len(validated(fold)["metric_per_case"]) == len(tiny_dataset.cases)
    log = "".join(p.read_text() for p in fold.glob("training_log*"))
    assert "has seen the student's validation cases" not in log and "unchanged" in log
    again = make(GKD, plans, resume=True, fold="all")
    assert again.current_epoch == 2


VARIANTS = """\
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainer_onlyMirror01_1500ep, nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam1en3
from nnunetv2.training.nnUNetTrainer.variants.sampling.nnUNetTrainer_probabilisticOversampling import (
    nnUNetTrainer_probabilisticOversampling,
)

from nnunet_kd.training.named import nnUNetTrainerGKDCrossView as Ours


class OursDA5(Ours, nnUNetTrainerDA5): pass
class OursNoDA(Ours, nnUNetTrainerNoDA): pass
class OursNoMirroring(Ours, nnUNetTrainerNoMirroring): pass
class OursMirror01(Ours, nnUNetTrainer_onlyMirror01_1500ep): pass
class OursDice(Ours, nnUNetTrainerDiceLoss): pass
class OursBN(Ours, nnUNetTrainerBN): pass
class OursNoDeepSupervision(Ours, nnUNetTrainerNoDeepSupervision): pass
class OursAdam(Ours, nnUNetTrainerAdam1en3): pass
class OursOversampling(Ours, nnUNetTrainer_probabilisticOversampling): pass
class DA5Ours(nnUNetTrainerDA5, Ours): pass
class DiceOurs(nnUNetTrainerDiceLoss, Ours): pass
class AdamOurs(nnUNetTrainerAdam1en3, Ours): pass
"""


@pytest.fixture
def variants(tmp_path, monkeypatch):
    """A user's own folder of trainers beside ours, as nnUNet_extTrainer takes several."""
    (tmp_path / "my_trainers").mkdir()
    (tmp_path / "my_trainers" / "trainers_of_a_user.py").write_text(VARIANTS)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([TRAINERS, str(tmp_path / "my_trainers")]))


@pytest.mark.parametrize(
    "name", ["DA5", "NoDA", "NoMirroring", "Mirror01", "Dice", "BN", "NoDeepSupervision", "Adam", "Oversampling"]
)
def test_variants_of_nnunet_are_mixed_in_behind_our_trainer(tiny_teacher, variants, name):
    trainer = make(f"Ours{name}", student(tiny_teacher, f"SW{name}", epochs=10, iterations=20))
    trainer.on_train_start()
    assert (trainer.num_epochs, trainer.initial_lr) == (10, 0.1)  # the plans' schedule, a small student's rate
    for epoch, active in ((0, {"kd"}), (2, {"kd"}), (5, {"kd", "intra", "inter", "cross_ts", "cross_st"})):
        before, values = weights(trainer), one_step(trainer, epoch)
        assert {k for k in ("kd", "intra", "inter", "cross_ts", "cross_st") if np.isfinite(values[k])} == active
        assert np.isfinite(values["loss"]) and not same(before, weights(trainer))
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    loader = trainer.dataloader_train.data_loader
    expected = {
        "DA5": "BlankRectangle" in str([vars(t) for t in loader.transforms.transforms]),
        "NoDA": trainer.inference_allowed_mirroring_axes is None,
        "NoMirroring": trainer.inference_allowed_mirroring_axes is None,
        "Mirror01": trainer.inference_allowed_mirroring_axes == (0,),
        "Dice": "MemoryEfficientSoftDiceLoss" in wrapped(trainer.loss),
        "BN": any(isinstance(m, torch.nn.BatchNorm2d) for m in trainer.network.modules()),
        "NoDeepSupervision": not trainer.enable_deep_supervision,
        "Adam": isinstance(trainer.optimizer, torch.optim.AdamW),
        "Oversampling": loader.get_do_oversample == loader._probabilistic_oversampling,
    }
    assert expected[name]


def wrapped(loss) -> list[str]:
    """Names of the classes that our loss closes over."""
    found = []
    for cell in getattr(loss, "__closure__", None) or ():
        inner = cell.cell_contents
        found += [type(inner).__name__, type(getattr(inner, "loss", None)).__name__, *wrapped(inner)]
    return found


@pytest.mark.parametrize(("name", "hidden"), [("DiceOurs", "_build_loss"), ("AdamOurs", "configure_optimizers")])
def test_a_variant_that_would_hide_ours_is_an_error(tiny_teacher, variants, name, hidden):
    """Written the other way round the training would run, without any distillation."""
    with pytest.raises(KDError, match=f"so that its {hidden} hides .*write class {name}\\(nnUNetTrainerGKDCrossView, nnUNet"):
        make(name, student(tiny_teacher, "SWorder", schedule=TINY))
    make("DA5Ours", student(tiny_teacher, "SWorder", schedule=TINY))  # hides nothing


@pytest.mark.slow
def test_compile(tiny_teacher, monkeypatch):
    """torch.compile, which nnU-Net switches on for CUDA only: same steps, taps alive, plain names in the checkpoint."""
    found, compiler = [], torch.compile
    for compiles in (False, True):
        with monkeypatch.context() as patch:
            if compiles:
                torch._dynamo.reset()
                patch.setattr(scheduled.nnUNetTrainer, "_do_i_compile", lambda self: True)
                # inductor takes minutes on a CPU; what we depend on is the tracing
                patch.setattr(torch, "compile", lambda module: compiler(module, backend="aot_eager"))
            trainer = make(GKD, student(tiny_teacher, "SWcompile", epochs=10, iterations=20))
            trainer.on_train_start()
            assert isinstance(trainer.network, torch._dynamo.OptimizedModule) == compiles
            steps = [one_step(trainer, epoch) for epoch in (0, 2, 5, 6)]
            with torch.no_grad():
                trainer.on_validation_epoch_start()
                steps.append({"loss": float(trainer.validation_step(next(trainer.dataloader_val))["loss"])})
            trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
            again = make(GKD, "SWcompile", resume=True)
            assert same(weights(again), weights(trainer)) and isinstance(again.network, type(trainer.network))
            found.append((steps, load_checkpoint(Path(trainer.output_folder) / "checkpoint_latest.pth")["network_weights"]))
    (plain, saved), (compiled, saved_compiled) = found
    assert saved.keys() == saved_compiled.keys()
    for a, b in zip(plain, compiled, strict=True):
        assert {k for k in a if np.isfinite(a[k])} == {k for k in b if np.isfinite(b[k])}
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, nan_ok=True), key


class FakeRun(SimpleNamespace):
    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))


def test_wandb(tiny_teacher, monkeypatch):
    """nnU-Net's Weights & Biases logger gets our terms, the plans' section and the summary; --c too."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options=options, config={}, summary={}, step=0, logged=[]))
        return runs[-1]

    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=init))
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    plans = student(tiny_teacher, "SWwandb", schedule=TINY)
    run_training("950", "2d", 0, GKD, plans, device=CPU)
    (run,) = runs
    assert run.options["mode"] == "offline" and run.config["plans"]["nnunet_kd"]["seed"] == 0
    assert 0 <= run.summary["final_val/foreground_dice"] <= 1
    for key in ("train_losses", "kd/kd", "kd/seg_loss", "kd/inter", "kd/act_reconstruction_teacher"):
        assert [step for step, values in run.logged if key in values] == [0, 1, 2, 3], key
    assert np.isfinite([values["kd/kd"] for _, values in run.logged if "kd/kd" in values]).all()
    again = make(GKD, plans, resume=True)
    assert again.current_epoch == 4 and runs[-1].options["resume"] == "allow"
