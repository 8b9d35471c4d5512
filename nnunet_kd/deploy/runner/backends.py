"""The network itself: ONNX Runtime, or OpenVINO. Each is imported only when it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import RunnerError
from .model import Model
from .sliding import Network

BACKENDS = ("onnxruntime", "openvino")
PRECISIONS = ("f32", "bf16", "int8")


def open_networks(model: Model, backend: str, precision: str, threads: int) -> list[Network]:
    """One network per fold, for patches of the model's size.

    int8 needs a file that was exported so. bf16 is OpenVINO's, on CPUs that have it. f32 is what the model was verified with.

    Raises:
        RunnerError: the backend is not installed, or does not have this precision, or the model has no file for it.
    """
    if backend not in BACKENDS:
        raise RunnerError(f'unknown backend "{backend}": choose {" or ".join(BACKENDS)}')
    if precision not in PRECISIONS:
        raise RunnerError(f'unknown precision "{precision}": choose {", ".join(PRECISIONS)}')
    if precision == "bf16" and backend != "openvino":
        raise RunnerError("precision bf16 needs --backend openvino: add it, or leave --precision out")
    kinds = {"onnxruntime": ["onnx"], "openvino": ["openvino", "onnx"]}[backend]  # OpenVINO reads ONNX files too
    if precision == "int8":
        kinds = [f"{kind}_int8" for kind in kinds]
    files = next(filter(None, (model.files(kind) for kind in kinds)), None)
    if not files:
        raise RunnerError(f"{model.folder} holds no {precision} network for {backend}: export it, or choose another precision")
    for file in files:
        if not file.is_file():
            raise RunnerError(f"{file} is missing: export the model again")
    opened = _openvino if backend == "openvino" else _onnxruntime
    try:
        return [opened(file, model, precision, threads) for file in files]
    except ModuleNotFoundError as error:
        raise RunnerError(f"{error.name} is not installed: pip install {error.name}") from None


def _onnxruntime(file: Path, model: Model, precision: str, threads: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # a fixed size lets it plan its memory; names as the export gives them
    for name, size in zip(("batch", "x", "y", "z"), (1, *reversed(model.patch_size)), strict=False):
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunnerError(f"{file} cannot be opened ({_first_line(error)}): copy it again or export the model again") from error
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(x: np.ndarray) -> np.ndarray:
        return session.run([target], {source: x})[0]

    return run


def _openvino(file: Path, model: Model, precision: str, threads: int) -> Network:
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RunnerError("this CPU has no bf16: leave --precision out")
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",  # its own choice is bf16 where the CPU has it
    }
    try:
        network = core.read_model(str(file))
        network.reshape([1, len(model.channel_names), *model.patch_size])
        compiled = core.compile_model(network, "CPU", hints)
    except Exception as error:
        raise RunnerError(f"{file} cannot be opened ({_first_line(error)}): copy it again or export the model again") from error

    def run(x: np.ndarray) -> np.ndarray:
        return compiled(x)[0]

    return run


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
