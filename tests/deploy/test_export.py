from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread

import nnunet_kd
from nnunet_kd.deploy.archive import check_archive, write_archive
from nnunet_kd.deploy.export import export_model
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError


@pytest.fixture(scope="module")
def student(tiny_dataset, tiny_teacher, train) -> Path:
    """A distilled student: half the teacher's width, trained by our own trainer. Its section holds an absolute path."""
    from nnunet_kd.planning.plans import plan_student
    from nnunet_kd.planning.requests import StudentRequest

    planned = plan_student(
        StudentRequest(tiny_dataset.id, "2d", str(tiny_teacher.resolve()), features=[4, 8, 16], iterations=2)
    )
    plans = json.loads(planned.file.read_text())
    plans["nnunet_kd"]["teacher"]["folder"] = str(tiny_teacher.resolve())
    plans["nnunet_kd"]["losses"] = {"logits": {"dml": {}}}
    planned.file.write_text(json.dumps(plans))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", str(trainers_path()))
        return train(tiny_dataset, "nnUNetTrainerGKD", planned.plans_name)


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory) -> Path:
    return export_model(student, tmp_path_factory.mktemp("exported") / "MODEL")


@pytest.fixture
def copy(tiny_teacher, tmp_path) -> Path:
    """A training folder that a test may spoil."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))


def change(file: Path, **entries) -> None:
    save_atomically(load_checkpoint(file) | entries, file)


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_holds_what_stock_nnunet_reads_and_nothing_else(exported, student):
    assert files(exported) == {
        "plans.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "fold_0/checkpoint_final.pth",
        "MODEL_CARD.md",
    }
    # without our list of numpy names: an exported checkpoint has nothing but tensors and plain Python values
    content = torch.load(exported / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert set(content) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
    assert set(content["init_args"]) == {"plans", "configuration", "fold", "dataset_json"}
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["inference_allowed_mirroring_axes"] == (0, 1)
    trained = load_checkpoint(student / "fold_0" / "checkpoint_final.pth")
    assert content["network_weights"].keys() == trained["network_weights"].keys()
    assert all(torch.equal(v, trained["network_weights"][k]) for k, v in content["network_weights"].items())


def test_names(exported, student):
    plans = json.loads((exported / "plans.json").read_text())
    training = json.loads((student / "plans.json").read_text())
    assert plans["plans_name"] == f"{training['plans_name']}_GKD"
    assert plans["dataset_name"] == training["dataset_name"] == "Dataset950_Tiny"
    assert plans["configurations"] == training["configurations"]


def test_the_archive_installs_as_a_model_of_its_own(exported, tmp_path, monkeypatch):
    from nnunetv2.model_sharing import model_import

    folder = tmp_path / "gkd"
    shutil.copytree(exported, folder)
    (folder / "fold_0.onnx").write_bytes(b"needs no nnU-Net")
    file = write_archive(folder)
    assert file == tmp_path / "gkd.zip" and {p.name for p in tmp_path.iterdir()} == {"gkd", "gkd.zip"}
    with pytest.raises(KDError, match="gkd.zip exists: .*--overwrite"):
        check_archive(folder, overwrite=False)
    check_archive(folder, overwrite=True)
    monkeypatch.setattr(model_import, "nnUNet_results", str(tmp_path / "results"))
    model_import.install_model_from_zip_file(str(file))
    plans = json.loads((exported / "plans.json").read_text(encoding="utf-8"))
    installed = tmp_path / "results" / "Dataset950_Tiny" / f"nnUNetTrainer__{plans['plans_name']}__2d"
    assert files(installed) == files(exported)
    for name in files(exported):
        assert (installed / name).read_bytes() == (exported / name).read_bytes()


def test_no_trace_of_the_training_machine(exported, student, tiny_teacher):
    assert str(tiny_teacher.resolve()) in (student / "plans.json").read_text()  # else the test would prove nothing
    content = torch.load(exported / "fold_0" / "checkpoint_final.pth", weights_only=True)
    texts = [json.dumps(content["init_args"]), *(f.read_text() for f in exported.glob("*.json"))]
    for text in texts:
        assert "nnunet_kd" not in text and str(tiny_teacher.parents[1]) not in text and '"/' not in text
    assert str(tiny_teacher.parents[1]) not in (exported / "MODEL_CARD.md").read_text()


def test_paths_in_dataset_json_are_left_out(copy, tmp_path):
    dataset_json = json.loads((copy / "dataset.json").read_text())
    dataset_json |= {"dataset": {"case_00": {"images": ["/data/case_00.png"]}}, "licence": "CC0", "origin": "C:\\data"}
    (copy / "dataset.json").write_text(json.dumps(dataset_json))

    out = export_model(copy, tmp_path / "MODEL")

    written = json.loads((out / "dataset.json").read_text())
    assert written == {k: v for k, v in dataset_json.items() if k not in ("dataset", "origin")}
    assert "its dataset.json says: CC0" in (out / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_stock_nnunet_predicts_the_same_without_this_package(exported, student, tiny_dataset, tmp_path):
    """nnU-Net's own command on the export, where importing nnunet_kd fails, against the same on the training."""
    poison = tmp_path / "poison" / "nnunet_kd"
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text("raise ImportError('stock nnU-Net must not need nnunet_kd')")
    (tmp_path / "images").mkdir()
    for case in tiny_dataset.cases[:2]:
        shutil.copy(tiny_dataset.raw / "imagesTr" / f"{case}_0000.png", tmp_path / "images")

    def predict(model: Path, out: Path, **variables: str) -> dict[str, np.ndarray]:
        command = [Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder", "-m", model, "-o", out]
        command += ["-i", tmp_path / "images", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
        command += ["--save_probabilities", "--disable_progress_bar"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")} | variables
        result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        maps = {file.name: np.load(file)["probabilities"] for file in out.glob("*.npz")}
        return maps | {file.name: imread(file) for file in out.glob("*.png")}

    stock = predict(exported, tmp_path / "stock", PYTHONPATH=str(poison.parent))
    source = str(Path(nnunet_kd.__file__).parents[1])
    ours = predict(student, tmp_path / "ours", PYTHONPATH=source, nnUNet_extTrainer=str(trainers_path()))

    assert len(stock) == 4 and stock.keys() == ours.keys()
    for name in stock:
        np.testing.assert_array_equal(stock[name], ours[name])


def test_a_teacher_and_several_folds(tiny_dataset, tiny_teacher, train, tmp_path):
    train(tiny_dataset, fold=1)

    out = export_model(tiny_teacher, tmp_path / "MODEL", folds=("0", 1))

    assert json.loads((out / "plans.json").read_text())["plans_name"] == "nnUNetPlans_Exported"
    weights = [load_checkpoint(out / f"fold_{k}" / "checkpoint_final.pth")["network_weights"] for k in (0, 1)]
    assert not torch.equal(weights[0]["decoder.seg_layers.1.weight"], weights[1]["decoder.seg_layers.1.weight"])
    card = (out / "MODEL_CARD.md").read_text()
    assert "Nothing was distilled into it" in card and "-f 0 1 " in card


def test_checkpoint_best_becomes_the_default_file(copy, tmp_path):
    change(copy / "fold_0" / "checkpoint_best.pth", inference_allowed_mirroring_axes=(1,))
    out = export_model(copy, tmp_path / "MODEL", checkpoint="checkpoint_best.pth")
    assert load_checkpoint(out / "fold_0" / "checkpoint_final.pth")["inference_allowed_mirroring_axes"] == (1,)


def test_3d_regions_and_channels(make_dataset, train, tmp_path):
    dataset = make_dataset(953, "Regions3d", dims=3, channels=2, foreground=2, regions=True)
    out = export_model(train(dataset), tmp_path / "MODEL")
    card = (out / "MODEL_CARD.md").read_text()
    assert "16 x 16 x 16" in card and "region_1 [1, 2], region_2 [2]" in card


def test_the_card(exported, student):
    card = (exported / "MODEL_CARD.md").read_text()
    weights = load_checkpoint(exported / "fold_0" / "checkpoint_final.pth")["network_weights"]
    parameters = sum({v.data_ptr(): v.numel() for v in weights.values()}.values())
    megabytes = (exported / "fold_0" / "checkpoint_final.pth").stat().st_size / 1e6
    assert f"| parameters | {parameters:,} |" in card
    assert f"| checkpoint files | {megabytes:.2f} MB |" in card
    assert "distilled with nnUNetTrainerGKD (terms: kd, intra, inter, cross, losses.logits.dml)" in card
    assert "from the teacher Dataset950_Tiny/nnUNetTrainer__nnUNetPlans__2d (trainer nnUNetTrainer," in card
    assert "nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT -m MODEL -f 0 -device cpu" in card
    assert "inherit the terms of the data" in card and "32 x 32" in card


def test_existing_folder(tiny_teacher, tmp_path):
    out = tmp_path / "MODEL"
    export_model(tiny_teacher, out, name="First")
    with pytest.raises(KDError, match="exists: .* --overwrite"):
        export_model(tiny_teacher, out, name="Second")
    assert json.loads((out / "plans.json").read_text())["plans_name"] == "First"

    (out / "old_file").touch()
    export_model(tiny_teacher, out, name="Second", overwrite=True)

    assert json.loads((out / "plans.json").read_text())["plans_name"] == "Second"
    assert not (out / "old_file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["MODEL"]


def test_overwrite_spares_folders_that_are_no_model(tiny_teacher, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(KDError, match="no model folder"):
        export_model(tiny_teacher, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("parents", [0, 1])
def test_the_training_itself_is_never_replaced(copy, parents):
    target = [copy, *copy.parents][parents]
    with pytest.raises(KDError, match="training folder itself"):
        export_model(copy, target, overwrite=True)
    assert (copy / "fold_0" / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("name", ["my plans", "a/b", "a__b", "", "nnUNetPlans"])
def test_bad_plans_names(tiny_teacher, tmp_path, name):
    with pytest.raises(KDError, match="plans name"):
        export_model(tiny_teacher, tmp_path / "MODEL", name=name)


def spoil_truncate(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:5000])


def spoil_foreign_data_set(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    arguments = load_checkpoint(file)["init_args"]
    change(file, init_args=arguments | {"plans": arguments["plans"] | {"dataset_name": "Dataset777_Other"}})


def spoil_foreign_weights(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    weights = load_checkpoint(file)["network_weights"]
    change(file, network_weights={k: v[:4] if v.ndim == 4 else v for k, v in weights.items()})


def spoil_missing_plans(folder: Path) -> None:
    (folder / "plans.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "fold_0"), "no checkpoint at"),
        (spoil_truncate, "truncated or damaged"),
        (spoil_foreign_data_set, "trained with Dataset777_Other"),
        (spoil_foreign_weights, "weights do not fit"),
        (spoil_missing_plans, "plans.json is missing"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_bad_training_folders(copy, tmp_path, spoil, message):
    spoil(copy)
    with pytest.raises(KDError, match=message) as caught:
        export_model(copy, tmp_path / "MODEL")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "MODEL").exists() and not list(tmp_path.glob(".MODEL*"))


def test_a_trainer_with_a_network_of_its_own_is_refused(copy, tmp_path, monkeypatch):
    """Same parameters, other function: only the comparison of logits can tell."""
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "nnUNetTrainerReLU.py").write_text(
        "from torch import nn\n"
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerReLU(nnUNetTrainer):\n"
        "    @staticmethod\n"
        "    def build_network_architecture(*args, **kwargs):\n"
        "        network = nnUNetTrainer.build_network_architecture(*args, **kwargs)\n"
        "        for module in network.modules():\n"
        "            if isinstance(module, nn.LeakyReLU):\n"
        "                module.negative_slope = 0.0\n"
        "        return network\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    change(copy / "fold_0" / "checkpoint_final.pth", trainer_name="nnUNetTrainerReLU")
    with pytest.raises(KDError, match="does not predict as it was trained"):
        export_model(copy, tmp_path / "MODEL")
    assert not (tmp_path / "MODEL").exists()
