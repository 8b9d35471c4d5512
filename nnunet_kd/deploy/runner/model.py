"""model.json: everything about a model but its weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import RunnerError

FILE = "model.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Normalization:
    """One channel's: nnU-Net's scheme, whether only the non-zero region counts, and the training data's intensities."""

    scheme: str
    use_mask: bool
    intensity: dict


@dataclass(frozen=True)
class Resampling:
    """How arrays change their spacing: spline order, None for not at all; thick slices get the nearest across them."""

    order: int | None
    force_separate_z: bool | None  # None: if one axis is coarser than the others by more than the threshold
    anisotropy_threshold: float
    keep_type: bool  # nnU-Net rounds resampled logits to float16, their type


@dataclass(frozen=True)
class Model:
    """An exported model. Axes are (Z, Y, X), of the network's input those of the image in the order `transpose_forward`."""

    folder: Path
    name: str
    channel_names: list[str]
    reader: str
    file_ending: str
    transpose_forward: list[int]
    transpose_backward: list[int]
    spacing: list[float]
    normalization: list[Normalization]
    data_resampling: Resampling
    logits_resampling: Resampling
    patch_size: list[int]
    tile_step: float
    mirror_axes: list[int]
    outputs: int
    largest_label: int
    regions_class_order: list[int] | None
    networks: dict[str, list[str]]

    def files(self, kind: str) -> list[Path]:
        """The files of all folds, kind: "onnx", "openvino", "openvino_int8", ...; empty if it was not exported."""
        return [self.folder / name for name in self.networks.get(kind, [])]


def read_model(path: str | Path) -> Model:
    """Read a model folder, its model.json, or one of its network files (then this fold alone).

    Raises:
        RunnerError: nothing is there, it is not an exported model, or it is of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise RunnerError(f"no model at {path}: pass the folder that `nnunet-kd export --onnx` wrote, or its .onnx file")
    folder = path if path.is_dir() else path.parent
    file = folder / FILE
    if not file.is_file():
        raise RunnerError(f"{file} is missing: export the model with `nnunet-kd export MODEL -o OUT --onnx`")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise RunnerError(f"{file} is of format {version}, this runner reads {FORMAT_VERSION}: use the model's own runner")
        networks = content["networks"]
        if path.is_file() and path != file:
            networks = _only(path, networks)
        resampling = {k: Resampling(**v) for k, v in content["resampling"].items()}
        return Model(
            folder=folder,
            networks=networks,
            data_resampling=resampling["data"],
            logits_resampling=resampling["logits"],
            normalization=[Normalization(**n) for n in content["normalization"]],
            largest_label=max(_numbers(v for k, v in content["labels"].items() if k != "ignore")),
            **{
                key: content[key]
                for key in (
                    "name",
                    "channel_names",
                    "reader",
                    "file_ending",
                    "transpose_forward",
                    "transpose_backward",
                    "spacing",
                    "patch_size",
                    "tile_step",
                    "mirror_axes",
                    "outputs",
                    "regions_class_order",
                )
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunnerError(f"{file} is damaged ({type(error).__name__}: {error}): export the model again") from None


def _only(path: Path, networks: dict[str, list[str]]) -> dict[str, list[str]]:
    for kind, names in networks.items():
        if path.name in names:
            return {kind: [path.name]}
    if path.suffix in (".onnx", ".xml"):  # a file that was added by hand
        return {"onnx" if path.suffix == ".onnx" else "openvino": [path.name]}
    raise RunnerError(f"{path} is no network of {path.parent / FILE}: pass the folder or one of its .onnx files")


def _numbers(labels: Iterable) -> list[int]:
    return [int(n) for label in labels for n in (label if isinstance(label, list) else [label])]
