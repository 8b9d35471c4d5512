"""Milliseconds per patch of several networks on this CPU, in turn, in torch, ONNX Runtime and OpenVINO; peak memory."""

from __future__ import annotations

import ctypes
import gc
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnunet_kd.utils.progress import progress

BACKENDS = ("torch", "onnxruntime", "openvino")
_SLOW = 1.5  # seconds a forward; what is slower runs in torch alone, and once
_ROUNDS = 7


def installed_backends() -> list[str]:
    """What can be measured here: torch, and whatever else is installed (ONNX Runtime and OpenVINO read ONNX)."""
    return [b for b in BACKENDS if b == "torch" or (find_spec(b) and find_spec("onnx"))]


def measure_in_turn(
    networks: dict[str, nn.Module],
    channels: int,
    patch_size: Sequence[int],
    threads: int,
    backends: Sequence[str] | None = None,
    rounds: int = _ROUNDS,
) -> dict[str, dict[str, float]]:
    """Median milliseconds of one forward of one patch, and the peak memory of torch's forward, per network.

    All networks and backends take turns, so that other work on the machine meets all alike. A network that needs over
    1.5 s in torch is not measured elsewhere, and only twice.

    Args:
        networks: name -> network in float32. Weights do not matter.
        channels: input channels. patch_size: (y, x) or (z, y, x).
        threads: CPU threads of every backend.

    Returns:
        name -> {"torch": ms, "onnxruntime": ms, "openvino": ms, "memory": MB}; what was not measured is missing.
    """
    backends = list(backends or installed_backends())
    x = np.random.default_rng(0).standard_normal((1, channels, *patch_size)).astype(np.float32)
    jobs: dict[tuple[str, str], Callable[[], object]] = {}
    measured: dict[str, dict[str, float]] = {name: {} for name in networks}
    shown = progress if len(networks) > 1 else lambda items, *_: items  # a search by bisection measures many, one at a time
    with torch_threads(threads), torch.inference_mode():
        for name, network in shown(networks.items(), "preparing", len(networks), "network"):
            forward = torch_forward(network, x)
            forward()  # what torch loads and keeps at its first call is none of the network's
            memory, seconds = peak_memory(forward)
            if memory is not None:
                measured[name]["memory"] = memory + sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6
            if "torch" in backends or seconds > _SLOW:
                jobs[name, "torch"] = forward
            others = [b for b in backends if b != "torch"] if seconds <= _SLOW else []
            content = onnx_bytes(network, x) if others else b""
            for backend in others:
                jobs[name, backend] = OPEN[backend](content, x, threads)
    spent: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    with torch_threads(threads), torch.inference_mode():
        for i in shown(range(rounds + 1), "measuring", rounds + 1, "round"):  # the first is a warm-up
            for job, run in jobs.items():
                if i < 2 or min(spent[job]) < _SLOW:
                    start = time.perf_counter()
                    run()
                    spent[job].append(time.perf_counter() - start)
    for (name, backend), seconds in spent.items():
        measured[name][backend] = 1e3 * statistics.median(seconds[1:])
    return measured


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Fix torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_forward(network: nn.Module, x: np.ndarray) -> Callable[[], torch.Tensor]:
    """The network's forward of ``x`` in torch, in eval mode, as a function without arguments."""
    network, tensor = network.eval(), torch.from_numpy(x)
    return lambda: network(tensor)


def peak_memory(run: Callable[[], object]) -> tuple[float | None, float]:
    """MB by which the process grows at most during ``run``, and its seconds. None where Linux's counters are missing."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory kept from before would hide what run needs
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (OSError, AttributeError, KeyError):
        before = None
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return (None if before is None else max(0.0, (_status("VmHWM") - before) / 1e3)), seconds


def _status(key: str) -> float:
    """An entry of /proc/self/status in kB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return float(lines[key].split()[0])


def onnx_bytes(network: nn.Module, x: np.ndarray) -> bytes:
    """The network as ONNX for inputs of x's shape alone, to be timed and thrown away.

    By torch's older exporter: it takes a second where the one of the export (deploy/onnx_export.py) takes half a minute, and
    writes the same operators.
    """
    import onnx

    from nnunet_kd.deploy.onnx_rewrites import fold_rows

    file = io.BytesIO()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.from_numpy(x),), file, dynamo=False, input_names=["image"], output_names=["logits"]
        )
    model = onnx.load_from_string(file.getvalue())
    fold_rows(model)
    return model.SerializeToString()


def open_onnxruntime(content: bytes | str, x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """ONNX Runtime's forward of ``x``. content: an ONNX file, or its bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that wait in a loop would take the cores from the other backends that take turns with it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, size in zip(("batch", "x", "y", "z"), (1, *reversed(x.shape[2:])), strict=False):
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})[0]


def open_openvino(model: bytes | object, x: np.ndarray, threads: int, precision: str = "f32") -> Callable[[], np.ndarray]:
    """OpenVINO's forward of ``x``. model: bytes of an ONNX file, or an openvino.Model. precision: "f32" or "bf16"."""
    import openvino

    from nnunet_kd.deploy.openvino_export import openvino_model

    if isinstance(model, bytes):
        model = openvino_model(model)
    model.reshape(list(x.shape))
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    return lambda: compiled(x)[0]


OPEN = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
