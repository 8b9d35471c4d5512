"""The runner's files, errors and command, without nnU-Net."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from runner_models import images, model_folder, plans

from nnunet_kd.cli import main as cli
from nnunet_kd.deploy.runner import Predictor, RunnerError
from nnunet_kd.deploy.runner.images import read, write

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} was imported")

sys.meta_path.insert(0, Blocked())
sys.argv = ["predict.py", *sys.argv[1:]]
import runpy
sys.path[0] = "{folder}"
runpy.run_path("{start}", run_name="__main__")
"""
OURS = {"torch", "nnunetv2", "nnunet_kd", "batchgenerators", "skimage", "onnx"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """3-D, two channels."""
    folder = tmp_path_factory.mktemp("runner") / "model"
    return model_folder(folder, plans((16, 16, 16), (1.0, 1.0, 1.0), channels=2), mirror=())


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return images(tmp_path_factory.mktemp("images"), (18, 20, 16), channels=2, cases=2)


def message(capsys, *arguments) -> str:
    assert cli.main(["predict", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nnunet-kd: error: ") and said.count("\n") == 1 and said.endswith("\n"), said
    return said


def test_the_folder_predicts_alone_without_torch_nnunet_and_our_package(model, source, tmp_path):
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    for trained in moved.glob("fold_*/"):
        if trained.is_dir():
            shutil.rmtree(trained)  # stock nnU-Net's part
    script = tmp_path / "start.py"
    script.write_text(BLOCKED.format(blocked=OURS, folder=moved, start=moved / "predict.py"))
    run = [sys.executable, str(script), "-i", source, "-o", tmp_path / "out", "--threads", "1"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "", "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote 2 segmentations to {tmp_path / 'out'}\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case_0.nii.gz", "case_1.nii.gz"]


def test_nothing_heavy_is_loaded_for_help_and_for_the_package():
    code = "import sys, nnunet_kd.cli.main as c, nnunet_kd.deploy.runner as r; c.build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "scipy", "SimpleITK", "onnxruntime", "openvino", "torch", "nnunetv2"} & set(loaded)


FIRST_TILE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import runner.sliding
from runner.__main__ import main

def first(*_):
    print(time.process_time())
    sys.exit(0)

runner.sliding._mirrored = first
main(["-i", sys.argv[2], "-o", sys.argv[3], "--threads", "1"])
"""


def test_the_first_tile_comes_soon(model, source, tmp_path):
    """CPU time of everything before it: imports, opening the model, reading and preparing a small image."""
    run = [sys.executable, "-c", FIRST_TILE, model, source, tmp_path / "out"]
    assert float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) < 2


def test_python_api(model, source, tmp_path):
    predictor = Predictor(model, threads=1, mirroring=False)
    files = sorted(source.glob("case_0_*"))
    labels = predictor.predict_files(files, tmp_path / "one.mha")
    assert (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "one.mha"))) == labels).all()
    image = read(files, "SimpleITKIO")
    again, maps = predictor.predict_array(image.data, image.spacing, probabilities=True)
    assert (again == labels).all() and (maps.argmax(0) == labels).mean() > 0.999
    assert np.allclose(maps.sum(0), 1, atol=1e-5)
    assert predictor.predict_folder(source, tmp_path / "out") == [tmp_path / "out" / f"case_{i}.nii.gz" for i in (0, 1)]
    with pytest.raises(RunnerError, match="give .C, Z, Y, X."):
        predictor.predict_array(image.data[0], image.spacing)
    coarse = Predictor(model, threads=1, tile_step=1).predict_files(files)
    assert coarse.shape == labels.shape


def test_one_fold_alone_and_other_endings(model, source, tmp_path):
    both = shutil.copytree(model, tmp_path / "both")
    content = json.loads((both / "model.json").read_text())
    content["networks"]["onnx"] = ["fold_0.onnx", "missing.onnx"]
    (both / "model.json").write_text(json.dumps(content))
    with pytest.raises(RunnerError, match="missing.onnx is missing"):
        Predictor(both)
    assert len(Predictor(both / "fold_0.onnx").networks) == 1

    (tmp_path / "mha").mkdir()
    for file in source.glob("case_0_*"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)), str(tmp_path / "mha" / file.name.replace(".nii.gz", ".mha")))
    (written,) = Predictor(model, threads=1).predict_folder(tmp_path / "mha", tmp_path / "out")
    assert written.name == "case_0.mha"
    original = SimpleITK.ReadImage(str(tmp_path / "mha" / "case_0_0000.mha"))
    assert SimpleITK.ReadImage(str(written)).GetDirection() == original.GetDirection()


def test_errors_of_the_command_are_one_line(model, source, tmp_path, capsys, monkeypatch):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "case_1_0001.nii.gz").unlink()
    assert "case_1_0001.nii.gz is missing: add this channel" in message(capsys, "-m", model, "-i", broken, "-o", out)
    shutil.copy(source / "case_0_0000.nii.gz", broken / "case_1_0001.nii.gz")
    shutil.copy(source / "case_0_0000.nii.gz", broken / "case_1_0002.nii.gz")
    assert "case_1_0002.nii.gz is channel 2, the model has 2" in message(capsys, "-m", model, "-i", broken, "-o", out)
    for file in broken.glob("case_*_000[12].nii.gz"):
        file.unlink()
    # a single file may hold all channels, so it has to be read first
    assert "case_0: 1 input channel, but the model reads 2" in message(capsys, "-m", model, "-i", broken, "-o", out)
    assert "no folder" in message(capsys, "-m", model, "-i", tmp_path / "nowhere", "-o", out)
    assert "holds no image that ends in .nii.gz" in message(capsys, "-m", model, "-i", empty, "-o", out)
    shutil.copy(source / "case_0_0000.nii.gz", empty / "case.nii.gz")
    assert "name files CASE_0000" in message(capsys, "-m", model, "-i", empty, "-o", out)
    assert "no model at" in message(capsys, "-m", tmp_path / "none", "-i", source, "-o", out)
    assert "model.json is missing" in message(capsys, "-m", empty, "-i", source, "-o", out)
    assert "bf16 needs --backend openvino" in message(capsys, "-m", model, "-i", source, "-o", out, "--precision", "bf16")
    assert "holds no int8 network" in message(capsys, "-m", model, "-i", source, "-o", out, "--precision", "int8")
    assert "--threads 0 must be" in message(capsys, "-m", model, "-i", source, "-o", out, "--threads", 0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed: pip install" in message(capsys, "-m", model, "-i", source, "-o", out)


def test_damaged_models_are_named(model, source, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "fold_0.onnx").write_bytes((model / "fold_0.onnx").read_bytes()[:500])
    with pytest.raises(RunnerError, match=r"fold_0.onnx cannot be opened \(.*\): copy it again"):
        Predictor(copy)
    content = json.loads((model / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(RunnerError, match="of format 99, this runner reads 1"):
        Predictor(copy)
    (copy / "model.json").write_text(json.dumps(content)[:200])
    with pytest.raises(RunnerError, match="model.json is damaged"):
        Predictor(copy)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_damaged_images_are_named(name, tmp_path):
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(20, 20, 20)))
    SimpleITK.WriteImage(image, str(tmp_path / name), True)
    assert read([tmp_path / name], "SimpleITKIO").data.shape == (1, 20, 20, 20)
    content = (tmp_path / name).read_bytes()
    for end in (len(content) // 2, 60, 0):
        (tmp_path / name).write_bytes(content[:end])
        with pytest.raises(RunnerError, match=name) as error:
            read([tmp_path / name], "SimpleITKIO")
        assert "\n" not in str(error.value)


def test_channels_must_fit_together(tmp_path, source):
    other = images(tmp_path / "other", (18, 20, 17))
    with pytest.raises(RunnerError, match="make them equal"):
        read([source / "case_0_0000.nii.gz", other / "case_0_0000.nii.gz"], "SimpleITKIO")
    other = images(tmp_path / "other", (18, 20, 16), spacing=(1, 1, 2))
    with pytest.raises(RunnerError, match="spacing .* make them equal"):
        read([source / "case_0_0000.nii.gz", other / "case_0_0000.nii.gz"], "SimpleITKIO")


def nnunet_reader(name: str):
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)()


@pytest.mark.parametrize("name", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_reads_and_writes_as_nnunets_readers(name, tmp_path):
    source = images(tmp_path / "images", (5, 6, 7), spacing=(1.5, 0.5, 2.0))
    file = source / "case_0_0000.nii.gz"
    data, properties = nnunet_reader(name).read_images([str(file)])
    image = read([file], name)
    assert np.array_equal(image.data, data)
    assert np.allclose(image.spacing, properties["spacing"])
    labels = (data[0] > 100).astype(np.uint8)
    nnunet_reader(name).write_seg(labels, str(tmp_path / "theirs.nii.gz"), properties)
    write(labels, tmp_path / "ours.nii.gz", name, image.geometry)
    ours, theirs = (SimpleITK.ReadImage(str(tmp_path / f"{who}.nii.gz")) for who in ("ours", "theirs"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(theirs))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(ours, what)(), getattr(theirs, what)(), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_pictures_as_nnunet_reads_them(mode, tmp_path):
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    if mode == "I;16":
        Image.fromarray(values[..., 0].astype(np.uint16) * 200).save(tmp_path / "a.png")
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    data, properties = nnunet_reader("NaturalImage2DIO").read_images([str(tmp_path / "a.png")])
    image = read([tmp_path / "a.png"], "NaturalImage2DIO")
    assert np.array_equal(image.data, data)
    assert image.spacing == properties["spacing"]


def test_thick_tiff_with_its_spacing(tmp_path):
    source = images(tmp_path / "images", (5, 6, 7), ending=".tif")
    (source / "case_0.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    file = source / "case_0_0000.tif"
    data, properties = nnunet_reader("Tiff3DIO").read_images([str(file)])
    image = read([file], "Tiff3DIO")
    assert np.array_equal(image.data, data)
    assert list(image.spacing) == properties["spacing"]
    write(image.data[0] > 100, tmp_path / "case_0.tif", "Tiff3DIO", image.geometry)
    assert np.array_equal(read([tmp_path / "case_0.tif"], "Tiff3DIO").data, image.data > 100)
    assert json.loads((tmp_path / "case_0.json").read_text()) == {"spacing": [3.0, 0.5, 0.5]}


def test_an_image_too_thin_for_the_models_spacing_is_named_and_the_others_are_predicted(model, source, tmp_path, capsys):
    """stock nnU-Net fails on such a volume, too: no voxel would be left."""
    folder = shutil.copytree(source, tmp_path / "images")
    thin = images(tmp_path / "thin", (1, 18, 16), channels=2, spacing=(0.3, 1.0, 1.0))
    for channel in range(2):
        shutil.copy(thin / f"case_0_{channel:04d}.nii.gz", folder / f"case_0_thin_{channel:04d}.nii.gz")
    said = message(capsys, "-m", model, "-i", folder, "-o", tmp_path / "out")
    assert "case_0_thin: too thin along z: 1 voxel of 0.3 mm with content, but the model reads voxels of 1 mm" in said
    assert "(2 of 3 cases were written to" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case_0.nii.gz", "case_1.nii.gz"]
    for k in range(5):
        (folder / f"case_0_bad{k}_0000.nii.gz").write_bytes(b"no image")
        (folder / f"case_0_bad{k}_0001.nii.gz").write_bytes(b"no image")
    said = message(capsys, "-m", model, "-i", folder, "-o", tmp_path / "again")
    assert "case_0_bad2_0000" in said and "; and 3 more (2 of 8 cases" in said
