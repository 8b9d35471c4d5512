"""Tiny nnU-Net data sets and trainings, made by nnU-Net's own code inside the test process.

`tiny_dataset` is a preprocessed 2-D data set, `tiny_teacher` a stock training of it. `make_dataset` and `train` make
others.
"""

from __future__ import annotations

import json
import locale
import multiprocessing
import multiprocessing.dummy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ["nnUNet_def_n_proc"] = "1"  # nnU-Net reads it once, when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from skimage.io import imsave

torch.set_num_threads(1)
# As in CI, where the environment is not activated: its commands must be found beside the interpreter
_BIN = Path(sys.executable).parent
os.environ["PATH"] = os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if Path(p) != _BIN)


@pytest.fixture(autouse=True)
def keep_locale() -> Iterator[None]:
    """A test that leaves another locale behind fails, instead of one that reads text after it in the same process."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    after = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, before)
    assert after == before, f"the test changed the locale of the process to {after}"


@dataclass(frozen=True)
class TinyDataset:
    """A preprocessed data set: its id and name, and nnU-Net's three folders for it."""

    id: int
    name: str  # "Dataset950_Tiny"
    raw: Path
    preprocessed: Path
    results: Path
    cases: tuple[str, ...]
    configuration: str

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / "nnUNetPlans.json"


@dataclass(frozen=True)
class NNUNetFolders:
    raw: Path
    preprocessed: Path
    results: Path


@pytest.fixture(scope="session")
def nnunet_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NNUNetFolders]:
    """Empty nnUNet_raw, nnUNet_preprocessed and nnUNet_results; the variables point to them for the whole session."""
    root = tmp_path_factory.mktemp("nnunet")
    folders = NNUNetFolders(root / "raw", root / "preprocessed", root / "results")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            getattr(folders, name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(getattr(folders, name)))
        patch.setenv("nnUNet_n_proc_DA", "0")  # augment in the training process: no workers to start
        patch.delenv("nnUNet_extTrainer", raising=False)
        yield folders


@pytest.fixture(scope="session")
def make_dataset(nnunet_folders: NNUNetFolders) -> Callable[..., TinyDataset]:
    """`make_dataset(id, name, dims=2, channels=1, foreground=1, regions=False, ...)`: see `_make_dataset`."""

    def make(dataset_id: int, name: str, **options) -> TinyDataset:
        return _make_dataset(nnunet_folders, dataset_id, name, **options)

    return make


@pytest.fixture(scope="session")
def tiny_dataset(make_dataset: Callable[..., TinyDataset]) -> TinyDataset:
    """2-D, six PNG cases of 48x48 pixels, one channel, one foreground label; patch 32x32, 3 stages, batch 2."""
    return make_dataset(950, "Tiny")


@pytest.fixture(scope="session")
def train() -> Callable[..., Path]:
    """`train(dataset, trainer="nnUNetTrainer", plans="nnUNetPlans", fold=0, epochs=1, ...)` -> the model folder."""
    return _train


@pytest.fixture(scope="session")
def tiny_teacher(tiny_dataset: TinyDataset) -> Path:
    """Model folder of a stock nnUNetTrainer, two steps on fold 0 of `tiny_dataset`. Read only: copy it to change it."""
    return _train(tiny_dataset)


@contextmanager
def _threads_for_processes() -> Iterator[None]:
    """Let nnU-Net's worker pools run as threads of this process: a spawned worker takes seconds to import nnU-Net."""
    get_context = multiprocessing.get_context

    def threads_if_spawn(method: str | None = None):
        return multiprocessing.dummy if method == "spawn" else get_context(method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", threads_if_spawn)
        yield


def _make_dataset(
    folders: NNUNetFolders,
    dataset_id: int,
    name: str,
    *,
    dims: int = 2,
    channels: int = 1,
    foreground: int = 1,
    regions: bool = False,
    ignore: bool = False,
    cases: int = 6,
    size: int | None = None,
    patch: int | None = None,
    features: tuple[int, ...] = (8, 16, 32),
    batch_size: int = 2,
    seed: int = 0,
    ending: str | None = None,
    together: bool = False,
) -> TinyDataset:
    """Write blobs on noise, then fingerprint, plan and preprocess them with nnU-Net; its plans are cut down.

    dims: 2 (PNG) or 3 (NIfTI). foreground: number of foreground labels; the higher, the brighter, and label k+1 lies
    inside label k. regions: region k is the union of the labels from k on. ignore: adds an ignore label and paints a
    stripe of it. features: one number per stage. ending: of the files, in place of the usual.
    together: all channels in one picture (RGB, RGBA) instead of a file each.
    """
    size = size or (48 if dims == 2 else 24)
    patch = patch or (32 if dims == 2 else 16)
    full_name = f"Dataset{dataset_id:03d}_{name}"
    ending = ending or (".png" if dims == 2 else ".nii.gz")
    case_names = tuple(f"case_{i:02d}" for i in range(cases))
    raw = folders.raw / full_name
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    generator = np.random.default_rng(seed)
    for case in case_names:
        segmentation = _nested_blobs(generator, dims, size, foreground)
        drawn = [60 + 50 * segmentation + generator.normal(0, 10, segmentation.shape) for _ in range(channels)]
        for channel, image in enumerate([np.stack(drawn, -1)] if together else drawn):
            _write(raw / "imagesTr" / f"{case}_{channel:04d}{ending}", image.clip(0, 255).astype(np.uint8))
        if ignore:
            segmentation[:4] = foreground + 1
        _write(raw / "labelsTr" / f"{case}{ending}", segmentation)
    (raw / "dataset.json").write_text(json.dumps(_dataset_json(channels, foreground, regions, ignore, cases, ending)))

    configuration = "2d" if dims == 2 else "3d_fullres"
    _plan_and_preprocess(dataset_id, folders.preprocessed / full_name, configuration, patch, features, batch_size)
    return TinyDataset(
        dataset_id,
        full_name,
        raw,
        folders.preprocessed / full_name,
        folders.results / full_name,
        case_names,
        configuration,
    )


def _nested_blobs(generator: np.random.Generator, dims: int, size: int, foreground: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(size)] * dims, indexing="ij"))
    segmentation = np.zeros((size,) * dims, np.uint8)
    for _ in range(3):
        centre = generator.uniform(0.25 * size, 0.75 * size, dims).reshape(-1, *[1] * dims)
        distance = np.sqrt(((grid - centre) ** 2).sum(0))
        for label in range(1, foreground + 1):
            radius = 0.2 * size * (foreground + 1 - label) / foreground
            segmentation[(distance < radius) & (segmentation < label)] = label
    return segmentation


def _write(file: Path, array: np.ndarray) -> None:
    if file.suffix in (".png", ".bmp"):
        imsave(file, array, check_contrast=False)
    elif file.suffix == ".tif":
        import tifffile

        # tifffile would take a narrow volume for colours
        tifffile.imwrite(file, array, photometric="rgb" if array.ndim == 3 and array.shape[-1] in (3, 4) else "minisblack")
    else:
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file))


def _dataset_json(channels: int, foreground: int, regions: bool, ignore: bool, cases: int, ending: str) -> dict:
    names = range(1, foreground + 1)
    labels: dict[str, int | list[int]] = {"background": 0}
    if regions:
        labels |= {f"region_{k}": list(range(k, foreground + 1)) for k in names}
    else:
        labels |= {f"label_{k}": k for k in names}
    if ignore:
        labels["ignore"] = foreground + 1
    content = {
        "channel_names": {str(channel): "intensity" for channel in range(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ending,
    }
    return content | ({"regions_class_order": list(names)} if regions else {})


def _plan_and_preprocess(
    dataset_id: int, preprocessed: Path, configuration: str, patch: int, features: tuple[int, ...], batch_size: int
) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiments,
        preprocess,
    )

    class SmallExtractor(DatasetFingerprintExtractor):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.num_foreground_voxels_for_intensitystats = 10_000  # nnU-Net draws 1e8, which takes seconds

    with _threads_for_processes(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_n_proc_DA", "1")  # planning sets this many torch threads
        extract_fingerprint_dataset(dataset_id, SmallExtractor, num_processes=1, show_progress_bar=False)
        plan_experiments([dataset_id])
        torch.set_num_threads(1)
        plans_file = preprocessed / "nnUNetPlans.json"
        plans = json.loads(plans_file.read_text())
        _make_tiny(plans["configurations"][configuration], patch, features, batch_size)
        plans_file.write_text(json.dumps(plans, indent=4))
        preprocess([dataset_id], configurations=(configuration,), num_processes=(1,), show_progress_bar=False)


def _make_tiny(configuration: dict, patch: int, features: tuple[int, ...], batch_size: int) -> None:
    """Cut the planned configuration down, in place: isotropic, all stages but the first halve the resolution."""
    stages, dims = len(features), len(configuration["patch_size"])
    configuration |= {"patch_size": [patch] * dims, "batch_size": batch_size}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }


def _train(
    dataset: TinyDataset,
    trainer: str = "nnUNetTrainer",
    plans: str = "nnUNetPlans",
    fold: int = 0,
    epochs: int = 1,
    iterations: int = 2,
    seed: int = 0,
) -> Path:
    """Train in this process on the CPU. Returns the model folder, TRAINER__PLANS__CONFIGURATION. Draws no picture."""
    from nnunetv2.run.run_training import get_trainer_from_args
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    torch.manual_seed(seed)
    np.random.seed(seed)
    with _threads_for_processes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
        run = get_trainer_from_args(dataset.name, dataset.configuration, fold, trainer, plans, device=torch.device("cpu"))
        run.num_epochs, run.num_iterations_per_epoch, run.num_val_iterations_per_epoch = epochs, iterations, 1
        run.run_training()
    return Path(run.output_folder_base)
