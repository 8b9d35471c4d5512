"""A network as an ONNX file with dynamic batch and spatial size, compared with torch before it appears."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from nnunet_kd.deploy.onnx_rewrites import fold_rows
from nnunet_kd.utils.errors import KDError

INPUT, OUTPUT = "image", "logits"  # names of the ONNX graph's only input and output
AXES = ("batch", "channel", "z", "y", "x")  # names of their dimensions, without z in 2-D
TOLERANCE = 1e-3  # of the largest logit; torch and ONNX Runtime sum in different orders
INSTALL = 'install it with: pip install "nnunet-kd[onnx]"'


def write_onnx(network: nn.Module, file: Path, channels: int, strides: Sequence[int]) -> Path:
    """Write `network` to `file`: (B, channels, *S) to (B, K, *S), float32, any B and any S that is a multiple of `strides`.

    ONNX Runtime must give torch's logits at two sizes and batch sizes before `file` appears. The file holds its weights and
    nothing of the machine that wrote it: no stack traces, no paths. `network` itself is left as it is.

    Args:
        network: an encoder-decoder; its deep supervision is turned off for the export, its dropout is off (eval).
        channels: input channels.
        strides: total stride of the network per spatial axis, (16, 16) say. Sizes must be multiples of it.

    Raises:
        KDError: the packages of the extra "onnx" are missing, torch cannot trace the network, or the logits differ.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KDError(f"writing ONNX needs the package {error.name}: {INSTALL}") from None
    network = _for_inference(network)
    file = Path(file)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        _export(network, temporary, channels, strides)
        _tidy(temporary, strides)
        _compare(network, temporary, channels, strides)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def total_strides(configuration: dict) -> list[int]:
    """Total stride per axis of a configuration of nnU-Net's plans: the product of its stages' strides.

    Without stages (transformers) it is the patch size.
    """
    dims = len(configuration["patch_size"])
    strides = configuration["architecture"]["arch_kwargs"].get("strides")
    if strides is None:
        return list(configuration["patch_size"])
    total = [1] * dims
    for stride in strides:
        stride = [stride] * dims if isinstance(stride, int) else stride
        total = [t * s for t, s in zip(total, stride, strict=True)]
    return total


def _for_inference(network: nn.Module) -> nn.Module:
    network = deepcopy(network).cpu().float().eval()
    for module in network.modules():
        if hasattr(module, "deep_supervision"):
            module.deep_supervision = False
    return network


def _export(network: nn.Module, file: Path, channels: int, strides: Sequence[int]) -> None:
    """torch.export's guards need "size = stride x something": a plain dimension fails where skip connections meet."""
    axes = [torch.export.Dim(name, min=1, max=1 << 20) for name in AXES[-len(strides) :]]
    shapes = {0: torch.export.Dim(AXES[0], min=1, max=1 << 20)}
    shapes |= {2 + i: stride * axis if stride > 1 else axis for i, (stride, axis) in enumerate(zip(strides, axes, strict=True))}
    x = _random(2, channels, [2 * s + (s == 1) * 4 for s in strides])
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(
                network,
                (x,),
                str(file),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # the exporter wraps whatever happens inside
        reason = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), type(error).__name__)
        raise KDError(
            f"torch cannot write {type(network).__name__} as ONNX ({reason.strip()}): export without --onnx; "
            "the nnU-Net folder runs everywhere nnU-Net does"
        ) from error


def _tidy(file: Path, strides: Sequence[int]) -> None:
    """Drop what the exporter notes per node for debugging, stack traces with this machine's paths too; name the dimensions.

    Narrow convolutions are rewritten for speed (onnx_rewrites.py).
    """
    import onnx

    model = onnx.load(file)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for node in graph.node:  # names by number: the exporter's repeat the Python module tree
        node.ClearField("name")
    graph.ClearField("value_info")  # runtimes infer it; one entry per tensor is more than a light student's weights
    model.ClearField("functions")
    graph.name = "network"
    for tensor in (*graph.input, *graph.output):
        dims = tensor.type.tensor_type.shape.dim
        for name, dim in zip((*AXES[:2], *AXES[-(len(dims) - 2) :]), dims, strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = name
    fold_rows(model, strides[-2])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _compare(network: nn.Module, file: Path, channels: int, strides: Sequence[int]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for batch, factors in ((1, (2, 3, 4)), (2, (5, 2, 3))):
        x = _random(batch, channels, [s * f * (4 if s == 1 else 1) for s, f in zip(strides, factors, strict=False)])
        with torch.no_grad():
            expected = network(x)
        logits = torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])
        largest = float(expected.abs().max())
        difference = float((logits - expected).abs().max()) if logits.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE * max(largest, 1e-6):
            raise KDError(
                f"the ONNX file of {type(network).__name__} differs from torch by {difference:.2g} (largest logit "
                f"{largest:.2g}) at {tuple(x.shape)}: try another version of torch or onnxscript, or export without --onnx"
            )


def _random(batch: int, channels: int, size: Sequence[int]) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on stdout, in the log and as warnings about its own code."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
