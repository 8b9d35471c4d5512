"""The Python API: a model, opened once, for any number of cases."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import images
from .backends import open_networks
from .cases import Case, find_cases
from .errors import RunnerError
from .memory import Memory
from .model import read_model
from .preprocess import prepare
from .segment import segment
from .sliding import predict_logits

_NAMED = 3  # failed cases in the error's line


class Predictor:
    """Predicts as nnU-Net's predictor does with the same model.

    Args:
        model: a model folder, or one of its .onnx (or .xml) files for this fold alone.
        backend: "onnxruntime", or "openvino" if it is installed.
        precision: "f32", "bf16" (openvino) or "int8" (if exported).
        mirroring: average over mirrored copies, as nnU-Net does: 4 runs per tile in 2-D, 8 in 3-D.
        threads: default all CPUs of this process.
        memory_limit: bytes of one array, beyond which it goes to a temporary file (in $TMPDIR).
        tile_step: distance of tiles in patches; default the model's, 0.5.

    Raises:
        RunnerError: what is wrong, in one line. The methods raise it too.
    """

    def __init__(
        self,
        model: str | Path,
        backend: str = "onnxruntime",
        precision: str = "f32",
        mirroring: bool = True,
        threads: int | None = None,
        memory_limit: float = 2e9,
        tile_step: float | None = None,
    ) -> None:
        self.model = read_model(model)
        if tile_step is not None:
            if not 0 < tile_step <= 1:
                raise RunnerError(f"tile step {tile_step} must be above 0 and at most 1")
            self.model = replace(self.model, tile_step=tile_step)
        self.mirroring = mirroring
        self.memory = Memory(memory_limit)
        self.networks = open_networks(self.model, backend, precision, threads or available_cpus())

    def predict_array(
        self, data: np.ndarray, spacing: Sequence[float], probabilities: bool = False, progress: Callable | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Labels (Z, Y, X) of an image (C, Z, Y, X) with spacing (z, y, x) in mm; 2-D: Z = 1, spacing (999, 1, 1).

        With `probabilities` also the probabilities (K, Z, Y, X), float32. `progress(done, all)` is called per tile.
        """
        data = np.asarray(data, np.float32)
        if data.ndim != 4 or len(spacing) != 3:
            raise RunnerError(f"an image of shape {data.shape} with {len(spacing)} spacings: give (C, Z, Y, X) and (z, y, x)")
        return self._predict(images.Image(data, tuple(spacing), {}), probabilities, progress)

    def predict_files(self, files: Sequence[str | Path], out: str | Path | None = None) -> np.ndarray:
        """Labels (Z, Y, X) of one case, a file per channel; also written to `out` in the image's geometry, if given."""
        image = images.read([Path(f) for f in files], self.model.reader)
        labels = self._predict(image)
        if out is not None:
            images.write(labels, Path(out), self.model.reader, image.geometry)
        return labels

    def predict_folder(
        self, folder: str | Path, out: str | Path, probabilities: bool = False, bar: bool | None = None
    ) -> list[Path]:
        """Predict all cases of a folder into `out`; returns the files written.

        probabilities: also CASE.npz with "probabilities" (K, Z, Y, X), as nnU-Net writes it.
        bar: a progress bar; default: if stderr is a terminal.

        Raises:
            RunnerError: cases that cannot be predicted, at the end: one does not keep the others from being written.
        """
        cases = find_cases(Path(folder), self.model)
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        written, failed = [], []
        with _Bar(len(cases), bar) as progress:
            for case in cases:
                progress.case(case.name)
                try:
                    written.append(self._predict_case(case, out, probabilities, progress.tile))
                except RunnerError as error:
                    failed.append(str(error))
        if failed:
            more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
            others = f" ({len(written)} of {len(cases)} cases were written to {out})" if len(cases) > 1 else ""
            raise RunnerError(f"{'; '.join(failed[:_NAMED])}{more}{others}")
        return written

    def _predict_case(self, case: Case, out: Path, probabilities: bool, progress: Callable) -> Path:
        image = images.read(case.files, self.model.reader)
        try:
            prediction = self._predict(image, probabilities, progress)
        except RunnerError as error:
            raise RunnerError(f"{case.name}: {error}") from error
        labels, maps = prediction if probabilities else (prediction, None)
        file = out / f"{case.name}{case.ending}"
        if maps is not None:
            temporary = out / f".writing_{case.name}.npz"
            try:
                np.savez_compressed(temporary, probabilities=maps)
                temporary.replace(out / f"{case.name}.npz")
            finally:
                temporary.unlink(missing_ok=True)
        images.write(labels, file, self.model.reader, image.geometry)
        return file

    def _predict(
        self, image: images.Image, probabilities: bool = False, progress: Callable | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        prepared = prepare(image, self.model, self.memory)
        data, prepared.data = prepared.data, None  # free before the segmentation needs memory
        logits = predict_logits(data, self.networks, self.model, self.mirroring, self.memory, progress or (lambda *_: None))
        del data
        labels, maps = segment(logits, prepared, self.model, self.memory, probabilities)
        return (labels, maps) if probabilities else labels


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Bar:
    """One bar over all cases, that moves with every tile."""

    def __init__(self, cases: int, show: bool | None) -> None:
        from tqdm import tqdm

        self.done, self.shown = 0, time.monotonic()
        off = not sys.stderr.isatty() if show is None else not show
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=cases, disable=off, bar_format=form, file=sys.stderr)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def case(self, name: str) -> None:
        self.done += 1
        self.bar.set_description_str(f"{name} ({self.done}/{self.bar.total:g})")

    def tile(self, done: int, of: int) -> None:
        self.bar.update(self.done - 1 + done / of - self.bar.n)
