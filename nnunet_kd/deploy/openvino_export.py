"""An exported ONNX file as OpenVINO IR (.xml and .bin): the fastest on CPUs. Compared with ONNX Runtime before it appears."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_kd.deploy.onnx_rewrites import fold_rows, split_narrow_norms
from nnunet_kd.utils.errors import KDError

if TYPE_CHECKING:
    import openvino

TOLERANCE = {False: 1e-3, True: 2e-2}  # of the largest logit; True: weights rounded to float16
INSTALL = 'install it with: pip install "nnunet-kd[openvino,onnx]"'


def write_openvino(source: Path, file: Path, channels: int, strides: Sequence[int], half: bool = False) -> Path:
    """Write the network of an ONNX file as OpenVINO IR: `file` (.xml) and the weights beside it (.bin), sizes dynamic.

    OpenVINO must give ONNX Runtime's logits in f32 at two sizes before the files appear.

    Args:
        source: an ONNX file of `write_onnx`.
        channels: input channels. strides: total stride per spatial axis; sizes are multiples of it.
        half: store the weights in float16: half the file, and rounded logits.

    Raises:
        KDError: a package is missing, the ONNX file cannot be read, or the logits differ.
    """
    _require_packages("openvino", "onnx", "onnxruntime")
    import openvino

    model = openvino_model(Path(source), strides)
    compare(compile_cpu(model), source, channels, strides, TOLERANCE[False])
    file = Path(file)
    with temporary_name(file) as temporary:
        openvino.save_model(model, str(temporary), compress_to_fp16=half)
        if half:
            compare(compile_cpu(openvino.Core().read_model(str(temporary))), source, channels, strides, TOLERANCE[True])
    return file


def openvino_model(source: Path | bytes, strides: Sequence[int] | None = None) -> openvino.Model:
    """An ONNX file (or its bytes) as OpenVINO's model, narrow convolutions and norms rewritten (onnx_rewrites.py).

    Args:
        strides: total stride per spatial axis; not needed if the file has fixed sizes.
    """
    _require_packages("openvino", "onnx")
    import onnx
    import openvino

    try:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    except FileNotFoundError:
        raise KDError(f"{source} is missing: export the ONNX file first") from None
    except Exception as error:  # protobuf's own
        raise KDError(f"{source} is no ONNX file ({type(error).__name__}): export it again") from None
    fold_rows(model, None if strides is None else strides[-2])
    split_narrow_norms(model)
    return openvino.convert_model(io.BytesIO(model.SerializeToString()))


def compile_cpu(model: openvino.Model, precision: str = "f32") -> openvino.CompiledModel:
    """Compile for this CPU. OpenVINO's own choice of precision is bf16 wherever the CPU has it, hence the hint."""
    import openvino

    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})


def compare(compiled: openvino.CompiledModel, source: Path, channels: int, strides: Sequence[int], tolerance: float) -> float:
    """Largest difference from ONNX Runtime's logits at two sizes and batch sizes, relative to the largest logit.

    Raises:
        KDError: it exceeds `tolerance`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    worst = 0.0
    for batch, factors in ((1, (2, 3, 4)), (2, (5, 2, 3))):
        size = [s * f * (4 if s == 1 else 1) for s, f in zip(strides, factors, strict=False)]
        x = np.random.default_rng(0).standard_normal((batch, channels, *size)).astype(np.float32)
        expected, logits = session.run(None, {name: x})[0], compiled(x)[0]
        largest = max(float(np.abs(expected).max()), 1e-6)
        difference = float(np.abs(logits - expected).max()) / largest if logits.shape == expected.shape else np.inf
        if not difference <= tolerance:
            raise KDError(
                f"OpenVINO's logits of {source} differ from ONNX Runtime's by {difference:.2g} of the largest at {x.shape}: "
                "use ONNX Runtime for this model, or another version of openvino"
            )
        worst = max(worst, difference)
    return worst


@contextmanager
def temporary_name(file: Path) -> Iterator[Path]:
    """Where to save a model first. Its two files become `file` (.xml) and its .bin at the end; an error leaves neither."""
    temporary = file.with_name(f".{file.stem}.tmp.xml")
    try:
        yield temporary
        os.replace(temporary.with_suffix(".bin"), file.with_suffix(".bin"))  # weights first: the .xml makes it a model
        os.replace(temporary, file)
    finally:
        for suffix in (".xml", ".bin"):
            temporary.with_suffix(suffix).unlink(missing_ok=True)


def _require_packages(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise KDError(f"OpenVINO files need the package {package}: {INSTALL}") from None
