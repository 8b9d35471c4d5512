"""A model folder from a stranger is data, not code: pickles, plans and archives that try to run something."""

from __future__ import annotations

import ast
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from small_runs import known_trainers, make, student

import nnunet_kd
from nnunet_kd.cli.main import main
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.nnunet_io.trust import VARIABLE
from nnunet_kd.utils.errors import KDError

PACKAGE = Path(nnunet_kd.__file__).parent
FINAL = "fold_0/checkpoint_final.pth"
ROOTED = Path("/tmp/nnunet_kd_escaped.txt")
TINY = {"epochs": 2, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "save_every": 1}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    known_trainers(monkeypatch)
    monkeypatch.delenv(VARIABLE, raising=False)


class RunsCode:
    """Unpickled without protection, makes the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def poison(checkpoint: Path, marker: Path) -> None:
    """Hide code in a valid checkpoint. A marker is made where it runs."""
    torch.save({**load_checkpoint(checkpoint), "logging": RunsCode(marker)}, checkpoint)


def poison_plans(file: Path, marker: Path, key: str = "nonlin", name: str = "os.mkdir", argument: str = "path") -> None:
    """Have the network's builder call a function with an argument of our choosing: plain JSON."""
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs[key], kwargs[f"{key}_kwargs"] = name, {argument: str(marker)}
    file.write_text(json.dumps(plans))


@pytest.fixture
def folder(tiny_teacher, tmp_path) -> Path:
    """A copy of the teacher's model folder."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))


@pytest.fixture
def marker(tmp_path) -> Path:
    """What hidden code would make; nothing must."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "hidden code has run"


COMMANDS = {
    "plan": lambda f, o: ["plan", 950, "-c", "2d", "--teacher", f, "--name", "SECplans", "--overwrite"],
    "export": lambda f, o: ["export", f, "-o", o],
    "evaluate": lambda f, o: ["evaluate", "--model", f"a={f}", "--domain", "home=950:Tr", "-o", o],
    "fsd": lambda f, o: ["fsd", "--model", f, "--source", "a=950:Tr", "--target", "b=950:Tr", "-o", o / "fsd.json"],
}


def refused(command: str, folder: Path, out: Path, capsys) -> str:
    """The one line of a command that would not touch the folder."""
    capsys.readouterr()
    code = main([str(a) for a in COMMANDS[command](folder, out)])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "refused" in error and "could run code" in error, error
    assert not out.exists() and f"export {VARIABLE}={folder}" in error
    return error


@pytest.mark.parametrize("command", ["export", "evaluate", "fsd"])
def test_a_checkpoint_with_code_in_it_is_refused(folder, marker, tmp_path, capsys, command):
    poison(folder / FINAL, marker)
    assert "it holds posix.mkdir" in refused(command, folder, tmp_path / "out", capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_plans_that_name_a_function_are_refused(folder, marker, tmp_path, capsys, command):
    poison_plans(folder / "plans.json", marker)
    assert "names 'os.mkdir' as nonlin" in refused(command, folder, tmp_path / "out", capsys)


def test_without_the_check_such_plans_do_run_code(folder, tmp_path):
    """nnU-Net's own builder, so that the tests above test something."""
    poison_plans(folder / "plans.json", tmp_path / "ran")
    architecture = json.loads((folder / "plans.json").read_text())["configurations"]["2d"]["architecture"]
    with pytest.raises(Exception):  # noqa: B017 - whatever it says once the folder has been made
        get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 2
        )
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.functional.torch.os.mkdir",
        "torch.nn.modules.module.torch.load",
        "dynamic_network_architectures.os.mkdir",
        "torch.nn.functional.leaky_relu",
        "subprocess.Popen",
        "nowhere.at.all",
        "torch.nn.Nothing",
        "torch",
        "",
        5,
        ["torch.nn.ReLU"],
        "dynamic_network_architectures.architectures.nowhere.get_matching_convtransp",
        "dynamic_network_architectures.architectures.nowhere.Nothing",
    ],
)
@pytest.mark.parametrize("key", ["network_class_name", "norm_op"])
def test_nothing_but_network_classes_may_be_named(folder, name, key):
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    (architecture if key == "network_class_name" else architecture["arch_kwargs"])[key] = name
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(KDError, match=f"refused to use .*plans.json: configurations.2d.architecture names .* as {key}"):
        read_model_folder(folder)


def test_a_teacher_with_code_in_it_teaches_nobody(folder, marker, tmp_path):
    """Planned from in good faith, then replaced."""
    plans = student(folder, "SECteacher", schedule=TINY)
    poison(folder / FINAL, marker)
    trainer = make("nnUNetTrainerKD", plans)
    with pytest.raises(KDError, match="refused to load .*it holds posix.mkdir"):
        trainer.run_training()
    shutil.copy(folder / "plans.json", tmp_path)
    poison_plans(folder / "plans.json", marker)
    with pytest.raises(KDError, match="refused to use .*names 'os.mkdir'"):
        make("nnUNetTrainerKD", plans).run_training()


def test_a_training_is_not_continued_from_a_checkpoint_with_code_in_it(tiny_teacher, marker):
    plans = student(tiny_teacher, "SECcontinue", schedule=TINY)
    trainer = make("nnUNetTrainerScheduled", plans)
    trainer.run_training()
    poison(Path(trainer.output_folder) / "checkpoint_final.pth", marker)
    with pytest.raises(KDError, match="refused to load .*checkpoint_final.pth"):
        make("nnUNetTrainerScheduled", plans, resume=True)


@pytest.mark.parametrize("parent", [False, True])
def test_who_trusts_a_file_says_so(folder, tmp_path, monkeypatch, capsys, parent):
    """The flag names a file or a folder above it, and the warning says what was done and why."""
    poison(folder / FINAL, tmp_path / "ran")
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["/nowhere", str(folder if parent else folder / FINAL)]))
    assert "network_weights" in load_checkpoint(folder / FINAL)
    assert (tmp_path / "ran").is_dir()
    error = capsys.readouterr().err
    assert error == f"nnunet-kd: warning: {folder / FINAL} is loaded with whatever code it holds, as {VARIABLE} says\n"
    if parent:
        poison_plans(folder / "plans.json", tmp_path / "ran", name="torch.nn.functional.leaky_relu")
        assert read_model_folder(folder).configuration == "2d"


def test_trusting_one_file_trusts_no_other(folder, marker, tmp_path, monkeypatch):
    poison(folder / FINAL, marker)
    for named in ("", tmp_path / "other", f"{folder}x", folder / "fold_1"):
        monkeypatch.setenv(VARIABLE, str(named))
        with pytest.raises(KDError, match="refused to load"):
            load_checkpoint(folder / FINAL)


def test_an_archive_from_a_stranger(folder, marker, tmp_path, monkeypatch):
    """nnU-Net unpacks archives, this package none: nothing lands outside, and what lands inside is data."""
    poison(folder / FINAL, marker)
    results = tmp_path / "inner" / "results"
    results.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, f"Dataset950_Tiny/{folder.name}/{file.relative_to(folder)}")
        climbing = (
            "../../escaped.txt",
            "..\\escaped.txt",
            "Dataset950_Tiny/../../../escaped.txt",
            "/tmp/nnunet_kd_escaped.txt",
        )
        for name in climbing:
            archive.writestr(name, "out")
    monkeypatch.setenv("nnUNet_results", str(results))
    install_model_from_zip_file(str(tmp_path / "model.zip"))
    assert not list(tmp_path.glob("*escaped*")) and not list((tmp_path / "inner").glob("*escaped*"))
    assert not ROOTED.exists()
    model = results / "Dataset950_Tiny" / folder.name
    with pytest.raises(KDError, match="refused to load"):
        load_checkpoint(read_model_folder(model).checkpoint(0))


def test_no_file_of_the_package_reads_archives_or_pickles_in_another_way():
    """torch.load stands in checkpoints.py, and in scheduled.py for what nnU-Net has just written into memory.

    Elsewhere it reads tensors only. Published data sets are unpacked by datasets/sources.py (tests/datasets/test_sources.py).
    """
    archives, pickles = {"zipfile", "tarfile"}, {"shelve", "marshal", "dill", "joblib", "cloudpickle"}
    calls: dict[str, int] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            forbidden = pickles if file.name == "sources.py" else pickles | archives
            assert not forbidden & {n.split(".")[0] for n in names}, file
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            bare = called.split(".")[-1]
            assert bare not in ("unpack_archive", "extractall", "eval_", "literal_eval", "unsafe_load"), (file, called)
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load"), (file, called)
            assert not (called == "np.load" and "allow_pickle=True" in ast.unparse(node)), file
            if called == "torch.load" and "weights_only=True" not in ast.unparse(node):
                calls[file.name] = calls.get(file.name, 0) + 1
    assert calls == {"checkpoints.py": 1, "scheduled.py": 1}
