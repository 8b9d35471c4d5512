"""Tiny copies of the published folder trees, drawn here: no image of a real set is in this repository."""

from __future__ import annotations

import multiprocessing
import multiprocessing.dummy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    """The folder with the published sets; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def nnunet_accepts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`nnunet_accepts(folder)`: nnU-Net's own check of a raw dataset, in threads; it raises for what it does not like."""

    def accepts(folder: Path) -> None:
        from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

        get_context = multiprocessing.get_context
        threads = lambda method=None: multiprocessing.dummy if method else get_context()  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(multiprocessing, "get_context", threads)
            verify_dataset_integrity(str(folder), 1)

    return accepts


@pytest.fixture
def disc() -> Callable[..., np.ndarray]:
    """`disc(height, width, radius)`: bool, centred."""
    return _disc


@pytest.fixture
def fundus() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`fundus(height, width, radius, seed)`: RGB image, label, field of view."""
    return _fundus


@pytest.fixture
def chase_tree(tmp_path: Path) -> Path:
    return _write_chase(tmp_path / "CHASEDB1")


@pytest.fixture
def drive_tree(tmp_path: Path) -> Path:
    return _write_drive(tmp_path / "DRIVE")


def _disc(height: int, width: int, radius: float) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) <= radius


def _fundus(height: int, width: int, radius: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A disc on black with dark lines: RGB uint8, label bool (crossing the disc's edge), field of view bool."""
    rng = np.random.default_rng(seed)
    fov = _disc(height, width, radius)
    label = np.zeros((height, width), bool)
    for position in rng.integers(height // 4, 3 * height // 4, 3):
        label[position : position + 2] = True
    rgb = np.stack([rng.integers(low, low + 20, fov.shape) for low in (160, 90, 40)], axis=-1)
    rgb[label] //= 2
    return (rgb * fov[..., None]).astype(np.uint8), label, fov


def _write_chase(root: Path) -> Path:
    """28 photographs of 104x100 pixels; observer 2 saw the lines 7 pixels lower. No field-of-view masks."""
    root.mkdir()
    for child in range(1, 15):
        for eye in "LR":
            name = f"Image_{child:02d}{eye}"
            rgb, label, _ = _fundus(100, 104, 46, seed=2 * child + (eye == "R"))
            Image.fromarray(rgb).save(root / f"{name}.jpg", quality=95)
            Image.fromarray(label).save(root / f"{name}_1stHO.png")
            Image.fromarray(np.roll(label, 7, axis=0)).save(root / f"{name}_2ndHO.png")
    return root


def _write_drive(root: Path) -> Path:
    """40 photographs of 56x58 pixels with masks smaller than the lit disc; observer 2 in the test half, palette GIFs."""
    for half, numbers in (("training", range(21, 41)), ("test", range(1, 21))):
        for part in ("images", "1st_manual", "mask") + (("2nd_manual",) if half == "test" else ()):
            (root / half / part).mkdir(parents=True)
        for i in numbers:
            rgb, label, _ = _fundus(58, 56, 27, seed=i)
            Image.fromarray(rgb).save(root / half / "images" / f"{i:02d}_{half}.tif")
            Image.fromarray(label.astype(np.uint8) * 255).save(root / half / "1st_manual" / f"{i:02d}_manual1.gif")
            Image.fromarray(_disc(58, 56, 24).astype(np.uint8) * 255).save(root / half / "mask" / f"{i:02d}_{half}_mask.gif")
            if half == "test":
                indices = Image.fromarray(np.roll(label, 7, axis=0).astype(np.uint8))  # putpalette makes it a palette image
                indices.putpalette([0, 0, 0, 253, 253, 253])
                indices.save(root / half / "2nd_manual" / f"{i:02d}_manual2.gif")
    return root
