"""Where the time of one prediction goes: the runner's steps, and nnU-Net's that do the same, in CPU seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Clock:
    """CPU seconds by name. Threads included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = function(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return result


def steps(student: Path, files: Sequence[Path], out: Path, backend: str, precision: str, threads: int) -> dict[str, tuple]:
    """step -> CPU seconds of (runner, nnU-Net; None where nnU-Net's was not run), for one case without mirroring.

    nnU-Net runs on the runner's logits: its network and its sums are not timed here.
    """
    from nnunet_kd.deploy.runner import Predictor, images
    from nnunet_kd.deploy.runner.preprocess import prepare
    from nnunet_kd.deploy.runner.segment import segment
    from nnunet_kd.deploy.runner.sliding import predict_logits

    predictor = Predictor(student, backend, precision, mirroring=False, threads=threads)
    model, memory, clock = predictor.model, predictor.memory, Clock()

    def counted(network: Callable) -> Callable:
        return lambda x: clock.timed("network", network, x)

    networks = [counted(n) for n in predictor.networks]
    image = clock.timed("read", images.read, list(files), model.reader)
    prepared = clock.timed("normalise, resample", prepare, image, model, memory)
    arguments = (prepared.data, networks, model, False, memory, lambda *_: None)
    logits = clock.timed("tiles", predict_logits, *arguments)
    labels, _ = clock.timed("logits to labels", segment, logits, prepared, model, memory, False)
    clock.timed("write", images.write, labels, out, model.reader, image.geometry)
    found = clock.seconds
    found["sum of the tiles"] = found.pop("tiles") - found["network"]
    stock = _nnunet(student, files, logits, labels)
    order = ("read", "normalise, resample", "network", "sum of the tiles", "logits to labels", "write")
    return {name: (found[name], stock.get(name)) for name in order}


def _nnunet(student: Path, files: Sequence[Path], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(json.loads((student / "plans.json").read_text(encoding="utf-8")))
    dataset_json = json.loads((student / "dataset.json").read_text(encoding="utf-8"))
    configuration, clock = plans.get_configuration("3d_fullres"), Clock()
    image, properties = clock.timed("read", SimpleITKIO().read_images, [str(f) for f in files])
    preprocessor = DefaultPreprocessor(verbose=False)
    _, _, properties = clock.timed(
        "normalise, resample", preprocessor.run_case_npy, image, None, properties, plans, configuration, dataset_json
    )
    found = clock.timed(
        "logits to labels",
        convert_predicted_logits_to_segmentation_with_correct_shape,
        torch.from_numpy(np.ascontiguousarray(logits)),
        plans,
        configuration,
        plans.get_label_manager(dataset_json),
        properties,
    )
    if not np.array_equal(found, labels):
        print(f"note: {np.mean(found != labels):.2e} of nnU-Net's labels differ from the runner's")
    return clock.seconds
