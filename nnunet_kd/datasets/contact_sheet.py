"""A picture of a few cases of a dataset: the image, and the image with the outlines of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from PIL import Image, ImageDraw
from scipy import ndimage

SIDE = 320  # pixels of a tile
SOFT_TISSUE = (-160, 240)  # HU: only CT has values far below zero
COLOURS = ((255, 220, 0), (0, 220, 255), (255, 90, 200), (120, 255, 90), (255, 140, 60), (150, 140, 255))  # label 1, 2, ...


def contact_sheet(cases: Sequence[tuple[str, Path, Path]]) -> Image.Image:
    """One column per case. 2-D: the image and its outlines; 3-D: axial and coronal slice with outlines, through the middle of
    what is marked, and the axial one without.

    cases: title, image file and label file (which need not exist). CT is
    shown in a soft tissue window, other volumes between their 1st and 99th percentile.
    """
    columns = [_tiles(image, label) for _, image, label in cases]
    sheet = Image.new("RGB", (SIDE * len(columns), SIDE * max(map(len, columns)) + 16), (20, 20, 20))
    pen = ImageDraw.Draw(sheet)
    for i, ((title, *_), tiles) in enumerate(zip(cases, columns, strict=True)):
        pen.text((i * SIDE + 4, 2), title, fill=(255, 255, 255))
        for k, tile in enumerate(tiles):
            left, top = (SIDE - tile.width) // 2, (SIDE - tile.height) // 2
            sheet.paste(tile, (i * SIDE + left, 16 + k * SIDE + top))
    return sheet


def _tiles(image: Path, label: Path) -> list[Image.Image]:
    if image.suffix == ".png":
        picture = np.asarray(Image.open(image).convert("RGB"))
        marks = np.asarray(Image.open(label)) if label.is_file() else np.zeros(picture.shape[:2], np.uint8)
        return [_tile(picture, np.zeros_like(marks), 1, 1), _tile(picture, marks, 1, 1)]
    volume = _upright(image)
    array, (x, y, *_) = SimpleITK.GetArrayFromImage(volume).astype(np.float32), volume.GetSpacing()
    marks = np.zeros(array.shape, np.uint8)
    if label.is_file():
        marks = SimpleITK.GetArrayFromImage(_upright(label)).astype(np.uint8)
    low, high = SOFT_TISSUE if array.min() < -500 else np.percentile(array[..., ::4, ::4], (1, 99))
    gray = (255 * np.clip((array - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    if gray.ndim == 2:
        return [_tile(gray, marks * 0, y, x), _tile(gray, marks, y, x)]
    z = volume.GetSpacing()[2]
    planes = (marks > 0).sum((1, 2)), (marks > 0).sum((0, 2))
    axial, coronal = (int(p.argmax()) if p.any() else len(p) // 2 for p in planes)
    front = gray[::-1, coronal], marks[::-1, coronal]
    return [_tile(gray[axial], marks[axial] * 0, y, x), _tile(gray[axial], marks[axial], y, x), _tile(*front, z, x)]


def _upright(file: Path) -> SimpleITK.Image:
    """Z up, y towards the back; of several channels the first. A 2-D image as it lies: it has no such directions."""
    volume = SimpleITK.ReadImage(str(file))
    volume = volume[:, :, :, 0] if volume.GetDimension() == 4 else volume
    return SimpleITK.DICOMOrient(volume, "LPS") if volume.GetDimension() == 3 else volume


def _tile(picture: np.ndarray, marks: np.ndarray, height_step: float, width_step: float) -> Image.Image:
    """A picture (H, W[, 3]) with a pixel of the given size (any unit), outlines of every label value drawn after enlarging."""
    height, width = picture.shape[0] * height_step, picture.shape[1] * width_step
    scale = (SIDE - 4) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    drawn = np.array(Image.fromarray(picture).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    enlarged = np.asarray(Image.fromarray(marks.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    for value in np.unique(enlarged[enlarged > 0]):
        inside = enlarged == value
        drawn[inside & ~ndimage.binary_erosion(inside)] = COLOURS[(int(value) - 1) % len(COLOURS)]
    return Image.fromarray(drawn)
