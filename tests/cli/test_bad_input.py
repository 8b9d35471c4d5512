"""Files and folders that are not what they should be: one line that names them, and nothing half-written left behind.

Mistakes in the command line itself are in test_cli.py, in the plans section in test_bad_settings.py, in data sets to be
converted in datasets/, in the comparison's file in test_compare.py, and hidden code in test_security.py.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread, imsave
from small_runs import known_trainers, make, student

from nnunet_kd.cli.main import main
from nnunet_kd.evaluation.domains import read_map
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.utils.errors import KDError

FINAL = "fold_0/checkpoint_final.pth"
TINY = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    known_trainers(monkeypatch)


@pytest.fixture
def folder(tiny_teacher, tmp_path) -> Path:
    """A copy of a trained model folder, to be spoilt."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))


def tree(*roots: Path) -> dict[str, tuple[int, int]]:
    """Every file below these folders, with its size and time."""
    found = (f for root in roots for f in root.rglob("*"))
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in found if f.is_file()}


@pytest.fixture
def fails(capsys, tmp_path, tiny_dataset):
    """`fails(*arguments, says=...)`: exit code 2, one line on stderr with all of `says`, and no file more, less or other."""

    def check(*arguments: object, says: tuple[str, ...] | str) -> None:
        roots = (tmp_path, *(folder.parent for folder in (tiny_dataset.raw, tiny_dataset.preprocessed, tiny_dataset.results)))
        before = tree(*roots)
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert code == 2 and out == "", (code, out, err)
        assert err.startswith("nnunet-kd: error: ") and err.count("\n") == 1 and err.endswith("\n") and "\r" not in err, err
        for text in (says,) if isinstance(says, str) else says:
            assert text in err, err
        assert tree(*roots) == before

    return check


def commands(folder: Path, out: Path) -> dict[str, list]:
    return {
        "plan": ["plan", 950, "-c", "2d", "--teacher", folder, "--name", "BADplans"],
        "export": ["export", folder, "-o", out],
        "evaluate": ["evaluate", "--model", f"a={folder}", "--domain", "home=950:Tr", "-o", out],
        "fsd": ["fsd", "--model", folder, "--source", "a=950:Tr", "--target", "b=950:Tr", "-o", out / "fsd.json"],
    }


# --- a model folder: (which commands read the file, what is done to it, what the line says)


def rewrite(name: str, **changes):
    """Change keys of a JSON file; None removes one."""

    def spoil(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return spoil


def put(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def checkpoint(**changes):
    def spoil(folder: Path) -> None:
        content = {**load_checkpoint(folder / FINAL), **changes}
        save_atomically({k: v for k, v in content.items() if v is not None}, folder / FINAL)

    return spoil


def cut(share: float):
    def spoil(folder: Path) -> None:
        whole = (folder / FINAL).read_bytes()
        (folder / FINAL).write_bytes(whole[: int(share * len(whole))])

    return spoil


def narrower(folder: Path) -> None:
    weights = load_checkpoint(folder / FINAL)["network_weights"]
    checkpoint(network_weights={k: v[:3] if v.ndim == 4 else v for k, v in weights.items()})(folder)


def renamed(folder: Path) -> None:
    weights = load_checkpoint(folder / FINAL)["network_weights"]
    checkpoint(network_weights={f"other.{k}": v for k, v in weights.items()})(folder)


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


def without_architecture(folder: Path) -> None:
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["strides"]
    (folder / "plans.json").write_text(json.dumps(plans))


ALL, WITH_WEIGHTS = ("plan", "export", "evaluate", "fsd"), ("export", "evaluate", "fsd")
FOLDERS = {
    "a file": (ALL, as_file, "does not exist"),
    "no plans": (ALL, lambda f: (f / "plans.json").unlink(), "plans.json is missing"),
    "no dataset.json": (ALL, lambda f: (f / "dataset.json").unlink(), "dataset.json is missing"),
    "half a plans.json": (ALL, put("plans.json", b'{"dataset_name": "Dat'), "plans.json is not valid JSON"),
    "binary plans": (ALL, put("plans.json", b"\xff\xfe\x00\x00"), "plans.json is not valid JSON"),
    "plans are a list": (ALL, put("plans.json", b"[]"), 'plans.json is not nnU-Net\'s ("dataset_name"'),
    "plans without configurations": (ALL, rewrite("plans.json", configurations=None), '("configurations" is missing'),
    "configurations are a list": (ALL, rewrite("plans.json", configurations=["2d"]), "no dict"),
    "a configuration is a number": (ALL, rewrite("plans.json", configurations={"2d": 5}), "configurations.2d is damaged"),
    "plans without a dataset": (ALL, rewrite("plans.json", dataset_name=None), '"dataset_name" is missing'),
    "an architecture with a gap": (("plan", "evaluate"), without_architecture, "plans.json"),
    "dataset.json is a number": (ALL, put("dataset.json", b"5"), "dataset.json is not nnU-Net's"),
    "dataset.json without labels": (ALL, rewrite("dataset.json", labels=None), '("labels" is missing'),
    "dataset.json without channels": (ALL, rewrite("dataset.json", channel_names=None), "dataset.json"),
    "no checkpoint": (WITH_WEIGHTS, lambda f: (f / FINAL).unlink(), FINAL),
    "no fold": (ALL, lambda f: [shutil.rmtree(fold) for fold in f.glob("fold_*")], ""),
    "an empty checkpoint": (WITH_WEIGHTS, put(FINAL, b""), "is not a checkpoint"),
    "text for a checkpoint": (WITH_WEIGHTS, put(FINAL, b"weights"), "is not a checkpoint"),
    "half a checkpoint": (WITH_WEIGHTS, cut(0.5), "truncated or damaged"),
    "a checkpoint without its end": (WITH_WEIGHTS, cut(0.99), "truncated or damaged"),
    "weights are a list": (WITH_WEIGHTS, checkpoint(network_weights=[1]), "no network_weights"),
    "no trainer's name": (WITH_WEIGHTS, checkpoint(trainer_name=None), "no trainer_name"),
    "no arguments": (WITH_WEIGHTS, checkpoint(init_args=None), "no init_args"),
    "weights of a narrower network": (("export", "evaluate"), narrower, "not fit the network"),
    "weights by other names": (("export", "evaluate"), renamed, "not fit the network"),
    "a trainer nobody knows": (("export", "evaluate"), checkpoint(trainer_name="nnUNetTrainerTheirs"), "nnUNetTrainerTheirs"),
}


@pytest.mark.parametrize(("what", "command"), [(what, c) for what, (read, *_) in FOLDERS.items() for c in read])
def test_a_spoilt_model_folder(fails, folder, tmp_path, what, command):
    _, spoil, says = FOLDERS[what]
    spoil(folder)
    fails(*commands(folder, tmp_path / "out")[command], says=(str(tmp_path), says))


# --- the teacher, when the student's training starts (more in test_trainer.py)


@pytest.mark.parametrize(
    "what",
    [
        "plans are a list",
        "half a plans.json",
        "dataset.json is a number",
        "text for a checkpoint",
        "half a checkpoint",
        "weights are a list",
        "weights of a narrower network",
        "weights by other names",
        "a trainer nobody knows",
    ],
)
def test_a_teacher_that_was_spoilt_after_planning(folder, what):
    plans = student(folder, "BADteacher", schedule=TINY)
    FOLDERS[what][1](folder)
    refuses_to_train("nnUNetTrainerKD", plans, str(folder))


def refuses_to_train(name: str, plans: str, says: str) -> None:
    trainer = make(name, plans)
    with pytest.raises(KDError) as error:
        trainer.run_training()
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not list(Path(trainer.output_folder).glob("*.pth*")) and not list(Path(trainer.output_folder).glob(".*.pth*"))


def test_a_stage_table_that_is_not_the_teachers(tiny_teacher):
    plans = student(tiny_teacher, "BADtable", schedule=TINY)
    stages = change_plans(tiny_teacher, plans, lambda p: p["nnunet_kd"]["teacher"]["stages"])
    stages["channels"] = [8, 16, 64]
    change_plans(tiny_teacher, plans, lambda p: p["nnunet_kd"]["teacher"].update(stages=stages))
    refuses_to_train("nnUNetTrainerGKD", plans, '"nnunet_kd.teacher.stages" says channels [8, 16, 64]')


def change_plans(teacher: Path, plans: str, change):
    file = Path(os.environ["nnUNet_preprocessed"], teacher.parent.name, f"{plans}.json")
    content = json.loads(file.read_text())
    found = change(content)
    file.write_text(json.dumps(content))
    return found


def test_a_student_is_not_its_own_teacher(tiny_dataset, tiny_teacher):
    plans = student(tiny_teacher, "BADself", schedule=TINY)
    make("nnUNetTrainerKD", plans).run_training()
    own = tiny_dataset.results / f"nnUNetTrainerKD__{plans}__2d"
    kept = (own / FINAL).read_bytes()
    change_plans(tiny_teacher, plans, lambda p: p["nnunet_kd"]["teacher"].update(folder=str(own)))
    trainer = make("nnUNetTrainerKD", plans)
    with pytest.raises(KDError, match="teacher and student are the same folder.*--name"):
        trainer.run_training()
    assert (own / FINAL).read_bytes() == kept


# --- a training's own files


def test_a_configuration_that_was_not_planned(tiny_teacher):
    from nnunetv2.run.run_training import get_trainer_from_args

    plans = student(tiny_teacher, "BADconfiguration", schedule=TINY)
    with pytest.raises(KDError, match='"BADconfiguration" have no configuration 3d_fullres, only 2d: pass 2d') as error:
        get_trainer_from_args("950", "3d_fullres", 0, "nnUNetTrainerKD", plans, False, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_training_without_a_place_for_its_results(tiny_teacher, monkeypatch):
    plans = student(tiny_teacher, "BADresults", schedule=TINY)
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(KDError, match="nnUNet_results is not set: export nnUNet_results="):
        make("nnUNetTrainerKD", plans)


@pytest.mark.parametrize("spoil", [cut(0.5), put(FINAL, b"weights"), checkpoint(network_weights=[1])])
def test_a_training_is_not_continued_from_a_spoilt_checkpoint(tiny_teacher, spoil):
    plans = student(tiny_teacher, "BADcontinue", schedule=TINY)
    trainer = make("nnUNetTrainerScheduled", plans)
    trainer.run_training()
    spoil(Path(trainer.output_folder_base))
    with pytest.raises(KDError, match="checkpoint_final.pth") as error:
        make("nnUNetTrainerScheduled", plans, resume=True)
    assert "\n" not in str(error.value)


def test_a_training_is_not_continued_with_other_plans(tiny_teacher):
    """Other widths under the same name: the checkpoint does not fit any more. Other MSANs are not used (test_recipe.py)."""
    plans = student(tiny_teacher, "BADother", schedule=TINY)
    make("nnUNetTrainerGKD", plans).run_training()
    change_plans(tiny_teacher, plans, lambda p: p["nnunet_kd"].update({"msan": {"dim": 8}}))
    assert make("nnUNetTrainerGKD", plans, resume=True).kd.msan.dim == 16
    features = {"features_per_stage": [4, 4, 4]}
    change_plans(tiny_teacher, plans, lambda p: p["configurations"]["2d"]["architecture"]["arch_kwargs"].update(features))
    with pytest.raises(KDError, match="checkpoint_final.pth does not fit these plans.*--name") as error:
        make("nnUNetTrainerGKD", plans, resume=True)
    assert "\n" not in str(error.value)


# --- images


@pytest.fixture
def domain(tiny_dataset, tmp_path) -> Path:
    """Images and labels of three cases, to be spoilt."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for case in tiny_dataset.cases[:3]:
            name = f"{case}_0000.png" if part == "images" else f"{case}.png"
            shutil.copy(tiny_dataset.raw / f"{part}Tr" / name, tmp_path / part / name)
    return tmp_path


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("an image")


def other_size(file: Path) -> None:
    imsave(file, imread(file)[:40], check_contrast=False)


@pytest.mark.parametrize("spoil", [half, empty, text])
@pytest.mark.parametrize("part", ["images/case_01_0000.png", "images/case_00_0000.png", "labels/case_02.png"])
def test_evaluate_names_the_file_that_cannot_be_read(fails, tiny_teacher, domain, part, spoil):
    """Before anything is predicted, so that no hours are lost."""
    spoil(domain / part)
    place = f"d={domain / 'images'},{domain / 'labels'}"
    says = (f"cannot read {domain / part}", "copy it again")
    fails("evaluate", "--model", f"t={tiny_teacher}", "--domain", place, "-o", domain / "out", says=says)


def test_evaluate_names_a_label_of_another_size(fails, tiny_teacher, domain):
    other_size(domain / "labels" / "case_01.png")
    place = f"d={domain / 'images'},{domain / 'labels'}"
    fails(
        "evaluate",
        "--model",
        f"t={tiny_teacher}",
        "--domain",
        place,
        "-o",
        domain / "out",
        says=(f"{domain / 'labels' / 'case_01.png'} is 40x48", "its image case_01_0000.png 48x48"),
    )


@pytest.mark.parametrize("spoil", [half, empty, text])
def test_fsd_names_the_file_that_cannot_be_read(fails, tiny_teacher, domain, spoil):
    plans = student(tiny_teacher, "BADfsd", schedule={**TINY, "epochs": 2})
    trainer = make("nnUNetTrainerGKD", plans)
    trainer.run_training()
    spoil(domain / "images" / "case_01_0000.png")
    target = f"d={domain / 'images'},{domain / 'labels'}"
    fails(
        "fsd",
        "--model",
        trainer.output_folder_base,
        "--source",
        "a=950:Tr",
        "--target",
        target,
        "--networks",
        "student",
        "-o",
        domain / "fsd.json",
        says=f"cannot read {domain / 'images' / 'case_01_0000.png'}",
    )


def test_a_truncated_volume_is_not_filled_up_with_zeros(tmp_path):
    """SimpleITK reads what is there, fills up and says nothing."""
    import SimpleITK

    file = tmp_path / "case_0000.nii.gz"
    generator = np.random.default_rng(0)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(generator.integers(0, 255, (16, 32, 32)).astype(np.uint8)), str(file))
    assert read_map(file)[0].shape == (16, 32, 32)
    half(file)
    with pytest.raises(KDError, match=f"cannot read {file}"):
        read_map(file)
    file.write_bytes(gzip.compress(b"no volume"))
    with pytest.raises(KDError, match=f"cannot read {file}"):
        read_map(file)


def test_an_unseen_domain_without_images(fails, tiny_dataset, tiny_teacher, tmp_path):
    arguments = ["evaluate", "--model", f"t={tiny_teacher}", "--domain", "home=950:Tr", "-o", tmp_path / "out", "--domain"]
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    place = f"d={tmp_path / 'images'},{tmp_path / 'labels'}"
    fails(*arguments, place, says=f"{tmp_path / 'images'} holds no images named CASE_0000")
    empty_set = tiny_dataset.raw.parent / "Dataset944_Empty"
    try:
        for part in ("imagesTr", "labelsTr"):
            (empty_set / part).mkdir(parents=True)
        shutil.copy(tiny_dataset.raw / "dataset.json", empty_set)
        fails(*arguments, "d=944", says=f"domain d: no CASE.png files in {empty_set / 'labelsTr'}")
        shutil.copy(tiny_dataset.raw / "labelsTr" / "case_00.png", empty_set / "labelsTr")
        fails(*arguments, "d=944", says="label case_00.png has no image")
        (empty_set / "dataset.json").write_text("[]")
        fails(*arguments, "d=944", says="dataset.json")
    finally:
        shutil.rmtree(empty_set)
