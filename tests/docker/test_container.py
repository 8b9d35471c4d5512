"""docker/process.py, run outside Docker on a made-up /input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from runner_models import images, model_folder, plans

from nnunet_kd.deploy.runner import Predictor

PROCESS = Path(__file__).parents[2] / "docker" / "process.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("container") / "model"
    return model_folder(folder, plans((16, 16, 16), (1.0, 1.0, 1.0), channels=2), mirror=(0,))


@pytest.fixture
def tree(tmp_path) -> Path:
    """/input with two modalities, one case."""
    source = images(tmp_path / "source", (18, 20, 16), channels=2, spacing=(1.2, 0.8, 1.0))
    for channel, modality in enumerate(("t2-mri", "adc")):
        (tmp_path / "input" / "images" / modality).mkdir(parents=True)
        image = SimpleITK.ReadImage(str(source / f"case_0_{channel:04d}.nii.gz"))
        SimpleITK.WriteImage(image, str(tmp_path / "input" / "images" / modality / f"{modality}-1.mha"))
    return tmp_path / "input"


def process(model: Path, tree: Path, out: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    places = {"INPUT": str(tree), "OUTPUT": str(out), "MODEL": str(model)}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | places | variables
    return subprocess.run([sys.executable, PROCESS, *options], capture_output=True, text=True, env=environment)


def test_reads_input_and_writes_output(model, tree, tmp_path):
    channels = ["images/t2-mri", "images/adc"]
    done = process(model, tree, tmp_path / "output", "--channels", *channels)
    file = tmp_path / "output" / "images" / "segmentation" / "t2-mri-1.mha"
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"wrote {file}\n")
    original, found = SimpleITK.ReadImage(str(tree / channels[0] / "t2-mri-1.mha")), SimpleITK.ReadImage(str(file))
    assert (found.GetOrigin(), found.GetDirection()) == (original.GetOrigin(), original.GetDirection())
    (expected,) = Predictor(model, threads=1).predict_folder(tmp_path / "source", tmp_path / "expected")
    read = SimpleITK.GetArrayFromImage
    assert (read(found) != read(SimpleITK.ReadImage(str(expected)))).sum() <= 1

    # the names of the folders come from variables too, as the container sets them
    done = process(model, tree, tmp_path / "again", CHANNELS=" ".join(channels), RESULT="images/lesions", NO_MIRRORING="1")
    assert done.returncode == 0
    assert [p.name for p in (tmp_path / "again" / "images" / "lesions").iterdir()] == ["t2-mri-1.mha"]


def test_errors_are_one_line(model, tree, tmp_path):
    def error(*options: str) -> str:
        done = process(model, tree, tmp_path / "output", *options)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "holds 2 folders (images/adc images/t2-mri): name one per channel" in error()
    assert "1 input channel, but the model reads 2" in error("--channels", "images/adc")
    assert "images/ct holds no image" in error("--channels", "images/t2-mri", "images/ct")
    (tree / "images" / "adc" / "adc-2.mha").write_bytes(b"")
    assert "is missing: every case needs" in error("--channels", "images/t2-mri", "images/adc")
    assert "holds no runner" in error("--model", str(tmp_path))


def test_a_photograph_as_mha(tmp_path):
    """A model of RGB pictures reads vector pixels; the segmentation is a plain .mha."""
    scheme = {"normalization_schemes": ["RGBTo01Normalization"] * 3}
    model = model_folder(
        tmp_path / "model", plans((32, 32), (1, 1), channels=3, reader="NaturalImage2DIO", **scheme), ending=".png"
    )
    values = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    picture = SimpleITK.GetImageFromArray(values, isVector=True)
    picture.SetSpacing((0.01, 0.01))
    (tmp_path / "input" / "images" / "fundus").mkdir(parents=True)
    SimpleITK.WriteImage(picture, str(tmp_path / "input" / "images" / "fundus" / "a.mha"))
    done = process(model, tmp_path / "input", tmp_path / "output")
    assert done.returncode == 0, done.stderr
    found = SimpleITK.ReadImage(str(tmp_path / "output" / "images" / "segmentation" / "a.mha"))
    expected = Predictor(model, threads=1).predict_array(np.moveaxis(values, -1, 0)[:, None], (999, 1, 1))[0]
    assert (SimpleITK.GetArrayFromImage(found) == expected).mean() > 0.999
    assert found.GetSpacing() == (0.01, 0.01)
