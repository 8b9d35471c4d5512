"""What `nnunet-kd export --onnx` writes beside the stock folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runner_models import assert_agree, plans

from nnunet_kd.cli import main as cli
from nnunet_kd.deploy.runner.model import read_model
from nnunet_kd.deploy.runner_export import add_networks, model_json, write_runner
from nnunet_kd.utils.errors import NotSupported

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def content(configuration: str = "3d_fullres", dataset: dict | None = None, **changes) -> dict:
    plan = plans((16, 16, 16), (2.0, 1.0, 1.0))
    for key, value in changes.items():
        place = plan if key in plan else plan["configurations"]["3d_fullres"]
        place[key] = value
    return model_json(plan, dataset or DATASET, configuration, (0, 2), ["0", "all"])


def test_the_runner_reads_what_the_export_writes(tmp_path):
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    write_runner(tmp_path, content(dataset=DATASET | regions))
    add_networks(tmp_path, "onnx", ["fold_0.onnx", "fold_all.onnx"])
    model = read_model(tmp_path)
    assert model.files("onnx") == [tmp_path / "fold_0.onnx", tmp_path / "fold_all.onnx"] and model.files("openvino") == []
    assert (model.outputs, model.regions_class_order, model.largest_label) == (2, [1, 2], 2)
    assert (model.mirror_axes, model.spacing, model.tile_step) == ([0, 2], [2.0, 1.0, 1.0], 0.5)
    assert (model.data_resampling.order, model.logits_resampling.order) == (3, 1)
    assert {p.name for p in (tmp_path / "runner").iterdir()} >= {"__main__.py", "README.md", "requirements.txt"}
    assert not list((tmp_path / "runner").rglob("__pycache__"))
    with pytest.raises(ValueError):
        add_networks(tmp_path, "openvino", ["fold_0.xml"])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"preprocessor_name": "Mine"}, "the preprocessor Mine"),
        ({"image_reader_writer": "MyIO"}, "the reader MyIO"),
        ({"normalization_schemes": ["MyNormalization"]}, "the normalisation MyNormalization"),
        ({"resampling_fn_data": "mine"}, "the resampling mine"),
        ({"resampling_fn_data_kwargs": {"is_seg": False, "order_z": 1}}, "set order_z = 1"),
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
    ],
)
def test_what_the_runner_lacks_is_refused(changes, reason):
    with pytest.raises(NotSupported, match=f"{reason}.* export without --onnx"):
        content(**changes)


def test_a_failed_onnx_leaves_nothing(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["export", str(tiny_teacher), "-o", str(tmp_path / "out"), "--onnx"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_and_both_commands(tiny_dataset, train, tiny_teacher, tmp_path):
    """Two folds, out of a training, by the commands; no path of this machine in any file; nnU-Net's command agrees."""
    train(tiny_dataset, fold=1, seed=1)
    model, source = tmp_path / "MODEL", tiny_dataset.raw / "imagesTr"
    commands = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")} | {"OMP_NUM_THREADS": "1"}

    def run(*command) -> str:
        return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, env=environment).stdout

    ours = [sys.executable, "-m", "nnunet_kd.cli.main"]
    said = run(*ours, "export", tiny_teacher, "-o", model, "-f", "0", "1", "--onnx")
    assert f"nnunet-kd predict -m {model} -i IMAGES -o OUT" in said
    written = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file() and p.parent.name != "runner"}
    assert written == {
        "plans.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth",
        "MODEL_CARD.md",
        "fold_0.onnx",
        "fold_1.onnx",
        "model.json",
        "predict.py",
    }
    assert "## Predict without nnU-Net" in (model / "MODEL_CARD.md").read_text()
    for file in model.rglob("*"):
        if file.is_file():
            assert not any(
                path.encode() in file.read_bytes() for path in (str(tmp_path.parent), sys.prefix, str(Path.home()) + "/")
            )

    assert run(*ours, "predict", "-m", model, "-i", source, "-o", tmp_path / "ours", "--threads", "1").startswith("wrote 6")
    shutil.copytree(model, tmp_path / "moved")
    run(sys.executable, tmp_path / "moved" / "predict.py", "-i", source, "-o", tmp_path / "again", "--threads", "1")
    run(
        commands / "nnUNetv2_predict_from_modelfolder",
        "-m",
        model,
        "-f",
        "0",
        "1",
        "-i",
        source,
        "-o",
        tmp_path / "theirs",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
    )
    assert_agree(tmp_path / "ours", tmp_path / "theirs", labels=1)
    assert_agree(tmp_path / "ours", tmp_path / "again", labels=1)
    assert json.loads((model / "model.json").read_text())["folds"] == ["0", "1"]


def test_the_default_export_is_the_stock_folder_alone(tiny_teacher, tmp_path):
    from nnunet_kd.deploy.export import export_model

    out = export_model(tiny_teacher, tmp_path / "out")
    assert not list(out.rglob("*.onnx")) and not (out / "model.json").exists() and not (out / "runner").exists()
    assert "without nnU-Net" not in (out / "MODEL_CARD.md").read_text()
