"""ONNX graphs rewritten for speed, OpenVINO files and int8."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import network

from nnunet_kd.cli.main import main
from nnunet_kd.deploy import int8, openvino_folder
from nnunet_kd.deploy.onnx_rewrites import fold_rows, split_narrow_norms
from nnunet_kd.deploy.openvino_export import compare, openvino_model, write_openvino
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.utils.errors import KDError

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Norms with a scale and a shift, which fresh ones lack."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.rand(parameter.shape, generator=generator)
    return net.eval()


def as_onnx(net: torch.nn.Module, dims: int, file: Path) -> Path:
    """By torch's older exporter, which is quicker; sizes dynamic."""
    axes = {0: "batch", **{i: f"s{i}" for i in range(2, 2 + dims)}}
    x = torch.zeros(1, 1, *[16] * dims)
    names = {"input_names": ["image"], "output_names": ["logits"], "dynamic_axes": {"image": axes, "logits": axes}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(file), dynamo=False, **names)
    return file


@pytest.fixture(scope="module", params=["2-D", "3-D", "2-D residual"])
def exported(request, tmp_path_factory):
    """(dims, network, ONNX file): 4 and 8 channels are narrow, 16 are not; total stride 4.

    Narrow bottlenecks, as the 3-D network's, have sizes that are multiples of nothing.
    """
    dims = int(request.param[0])
    features = (4, 4, 4) if dims == 3 else (4, 8, 16)
    net = randomised(network(dims, features, residual="residual" in request.param))
    return dims, net, as_onnx(net, dims, tmp_path_factory.mktemp("onnx") / "network.onnx")


def logits(model, x: np.ndarray) -> np.ndarray:
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]


def test_rewritten_graphs_give_the_same_logits_at_any_size(exported):
    dims, net, file = exported
    model = onnx.load(file)
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    folded, split = fold_rows(model, 4), split_narrow_norms(model)
    assert 0 < folded < len(convs) and split > 0
    onnx.checker.check_model(model, full_check=True)
    kernels = [list(a.ints) for n in model.graph.node for a in n.attribute if n.op_type == "Conv" and a.name == "kernel_shape"]
    assert {k[dims - 2] for k in kernels if k[-1] == 3} >= {6, 3}  # four rows at once, and convolutions left alone
    for batch, size in ((1, (8, 12, 20)), (2, (20, 4, 8))):
        x = np.random.default_rng(0).standard_normal((batch, 1, *size[:dims])).astype(np.float32)
        with torch.no_grad():
            assert np.abs(logits(model, x) - net(torch.from_numpy(x)).numpy()).max() < 1e-4
    assert fold_rows(model, 4) == 0  # what is folded stays as it is


def test_rows_are_only_folded_where_every_size_is_a_multiple(exported):
    dims, _, file = exported
    for stride, most in ((1, 1), (2, 2), (4, 4)):
        model = onnx.load(file)
        fold_rows(model, stride)
        strides = [
            a.ints[dims - 2] for n in model.graph.node for a in n.attribute if n.op_type == "Conv" and a.name == "strides"
        ]
        plain = [
            a.ints[dims - 2]
            for n in onnx.load(file).graph.node
            for a in n.attribute
            if n.op_type == "Conv" and a.name == "strides"
        ]
        assert max(strides) == max(most, *plain)


def test_openvino_files_give_onnx_runtimes_logits(exported, tmp_path):
    dims, _, file = exported
    written = write_openvino(file, tmp_path / "network.xml", 1, [4] * dims)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["network.bin", "network.xml"]
    read = openvino.Core().read_model(str(written))
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compare(compiled, file, 1, [4] * dims, 1e-3) < 1e-3
    assert str(Path.home()) not in written.read_text() and str(tmp_path) not in written.read_text()
    half = write_openvino(file, tmp_path / "half.xml", 1, [4] * dims, half=True)
    assert half.with_suffix(".bin").stat().st_size < 0.7 * written.with_suffix(".bin").stat().st_size


def test_a_wrong_network_is_refused_and_leaves_nothing(exported, tmp_path, monkeypatch):
    dims, _, file = exported

    def spoiled(source, strides=None):
        model = onnx.load(file)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("bias") and len(tensor.dims):
                tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
        fresh = tmp_path / "spoiled.onnx"
        onnx.save(model, fresh)
        read = openvino_model(fresh, strides)
        fresh.unlink()
        return read

    monkeypatch.setattr("nnunet_kd.deploy.openvino_export.openvino_model", spoiled)
    with pytest.raises(KDError, match="differ from ONNX Runtime's by"):
        write_openvino(file, tmp_path / "network.xml", 1, [4] * dims)
    assert not list(tmp_path.iterdir())


def test_unreadable_sources(tmp_path):
    with pytest.raises(KDError, match="none.onnx is missing"):
        openvino_model(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_text("no protobuf")
    with pytest.raises(KDError, match="bad.onnx is no ONNX file"):
        openvino_model(tmp_path / "bad.onnx")


def test_int8_needs_data_and_validation_cases(tiny_dataset, tiny_teacher):
    model = read_model_folder(tiny_teacher)
    data = int8.fold_data(model, "0")
    assert data.validation and not set(data.validation) & set(data.training)
    with pytest.raises(KDError, match="fold all has no validation cases.*--int8-unmeasured"):
        int8.fold_data(model, "all")
    assert len(int8.fold_data(model, "all", measure=False).training) == len(tiny_dataset.cases)
    model.plans = {**model.plans, "dataset_name": "Dataset999_Gone"}
    with pytest.raises(KDError, match="Dataset999_Gone.* does not exist: run nnUNetv2_preprocess, or leave --int8 out"):
        int8.fold_data(model, "0")


def test_patches_have_the_planned_size_and_hold_foreground(tiny_teacher):
    data = int8.fold_data(read_model_folder(tiny_teacher), "0")
    for size in ((32, 32), (64, 40)):  # larger than the images of 48 x 48
        patches = list(int8._patches(data, size, 6, seed=0))
        assert {p.shape for p in patches} == {(1, *size)} and all(p.dtype == np.float32 for p in patches)
        assert len({p.tobytes() for p in patches}) > 3


@pytest.mark.slow
def test_the_command_writes_openvino_and_int8_with_their_dice(tiny_teacher, tmp_path, capsys):
    pytest.importorskip("nncf")
    assert main(["export", str(tiny_teacher), "-o", str(tmp_path / "M"), "--int8"]) == 0
    content = json.loads((tmp_path / "M" / "model.json").read_text())
    assert content["networks"]["openvino"] == ["fold_0.xml"] and content["networks"]["openvino_int8"] == ["fold_0_int8.xml"]
    found = content["dice_of_precisions"]["0"]
    assert 0 <= found["int8"] <= 1 and 0 <= found["f32"] <= 1 and found["cases"] == 2
    assert f"int8, fold 0: Dice {found['int8']:.4f}" in capsys.readouterr().out
    card = (tmp_path / "M" / "MODEL_CARD.md").read_text()
    assert f"{found['int8']:.4f} ({found['int8'] - found['f32']:+.4f})" in card
    assert not [f for f in (tmp_path / "M").glob("*.xml") if str(tmp_path) in f.read_text()]
    assert main(["export", str(tiny_teacher), "-o", str(tmp_path / "N"), "--int8-unmeasured"]) == 0
    assert "NOT measured" in (tmp_path / "N" / "MODEL_CARD.md").read_text()


def test_dice_counts_and_its_table():
    truth = np.array([[1, 0], [0, 1]])
    assert int8._dice(truth, truth, [1], None) == 1
    assert int8._dice(truth, 1 - truth, [1], None) == 0
    assert int8._dice(truth, np.ones_like(truth), [1, (1, 2)], None) == pytest.approx(2 / 3)
    assert np.isnan(int8._dice(np.zeros((4, 4)), np.zeros((4, 4)), [1], None))
    ignored = np.array([[2, 1], [0, 0]])
    assert int8._dice(ignored, np.array([[1, 1], [0, 0]]), [1], 2) == 1
    assert openvino_folder._table({"0": {"cases": 2, "f32": 0.8, "int8": 0.79}}).endswith(
        "| 0 | 2 | 0.8000 | 0.7900 (-0.0100) |"
    )
