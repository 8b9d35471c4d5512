from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from helpers import network
from torch import nn

from nnunet_kd.deploy.onnx_export import INPUT, OUTPUT, total_strides, write_onnx
from nnunet_kd.utils.errors import KDError


def run(file, x: torch.Tensor) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file)).run([OUTPUT], {INPUT: x.numpy()})[0]


def test_any_batch_and_size_and_nothing_of_this_machine(tmp_path):
    net = network(3, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], supervision=True)
    file = write_onnx(net, tmp_path / "fold_0.onnx", 1, [2, 4, 4])
    assert [p.name for p in tmp_path.iterdir()] == ["fold_0.onnx"]
    assert net.decoder.deep_supervision and net.training  # the caller's network is as it was
    net.eval()
    net.decoder.deep_supervision = False
    for size in ((1, 1, 6, 12, 20), (3, 1, 10, 8, 16)):
        x = torch.randn(size)
        with torch.no_grad():
            assert np.allclose(run(file, x), net(x).numpy(), atol=1e-4)
    content = file.read_bytes()
    for trace in (b"site-packages", b".py", b"/home", b"/work", b"/tmp", sys.prefix.encode(), str(tmp_path).encode()):
        assert trace not in content
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 1, "z", "y", "x"]


class Unexportable(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) > 0 else -x  # a way that depends on the data: nothing a graph can hold


class Random(nn.Module):
    """Not the same function twice, as dropout that eval() does not turn off."""

    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize("net, message", [(Unexportable(), "cannot write Unexportable"), (Random(), "differs from torch")])
def test_what_cannot_be_written_leaves_no_file(net, message, tmp_path):
    with pytest.raises(KDError, match=message) as error:
        write_onnx(net, tmp_path / "a.onnx", 1, [4, 4])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(KDError, match=r'needs the package onnxscript.*pip install "nnunet-kd\[onnx\]"'):
        write_onnx(network(2), tmp_path / "a.onnx", 1, [4, 4])


def test_total_strides():
    arch = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    assert total_strides({"patch_size": [8, 16, 16], "architecture": {"arch_kwargs": arch}}) == [2, 4, 4]
    assert total_strides({"patch_size": [16, 16], "architecture": {"arch_kwargs": {"strides": [1, 2, 2]}}}) == [4, 4]
