"""Corrupted copies of fundus photographs: source validation for cameras that no training view imitates.

Settings (presets, weights, views) may be chosen on them, because they come from the source domain alone. They act on the
colour photograph before channel choice and resizing, as a camera or a file format would, at one fixed severity each.
Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions", ICLR 2019, is the custom
followed: never train on them.

The views (augmentation/views.py) come near three of them, so severities lie outside the views' ranges: `resolution` leaves
0.39 of the detail at a field of view of 512 pixels (views: 0.5 and more), `vignetting` leaves less than a third of the
light at the rim (views: random smooth fields), and `inversion` is in no preset of views as a step of its own, though
GIN's random mappings can be falling ones.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image
from skimage import color

Case = TypeVar("Case")  # photographs.FundusCase, which knows this file


def corrupt(image: np.ndarray, fov: np.ndarray, corruption: str, case: str) -> np.ndarray:
    """A photograph under one corruption.

    image: uint8 (H, W, 3), not modified; fov: bool (H, W); corruption: a name in CORRUPTIONS; case: seeds what is
    random, together with the corruption. Returns uint8 (H, W, 3), 0 outside the field of view. Raises KeyError for an
    unknown corruption.
    """
    digest = hashlib.sha256(f"{case} {corruption}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return np.where(fov[..., None], CORRUPTIONS[corruption](image, fov, generator), 0).astype(np.uint8)


def corrupted(cases: Sequence[Case]) -> list[Case]:
    """Every case once per corruption, named `CASE__CORRUPTION`; all of them training cases for nnU-Net, which has no
    other place for labelled images that belong to no test part."""
    return [replace(c, name=f"{c.name}__{k}", corruption=k, tag="Tr") for c in cases for k in CORRUPTIONS]


# --- corruptions: uint8 (H, W, 3), field of view bool (H, W), generator -> uint8 (H, W, 3) ----------------------------


def white_balance(image: np.ndarray, fov: np.ndarray, generator: np.random.Generator, lamp: str, camera: str) -> np.ndarray:
    """The colours of `lamp` light rendered by a camera balanced for `camera` (CIE illuminants): the white point is
    exchanged in CIELAB, which mixes the channels. Gains on red, green and blue would not do: a single channel that is
    z-scored does not change under a gain."""
    return _to_uint8(color.lab2rgb(color.rgb2lab(image, illuminant=lamp), illuminant=camera))


def hue(image: np.ndarray, fov: np.ndarray, generator: np.random.Generator, shift: float) -> np.ndarray:
    """HSV hue turned by `shift` of the circle. Positive is towards yellow, as ageing lenses do; towards red the green
    channel runs empty (0.05: a third of the pixels in some photographs of CHASE_DB1)."""
    hsv = color.rgb2hsv(image)
    hsv[..., 0] = (hsv[..., 0] + shift) % 1
    return _to_uint8(color.hsv2rgb(hsv))


def jpeg(image: np.ndarray, fov: np.ndarray, generator: np.random.Generator, quality: int) -> np.ndarray:
    """Saved as JPEG of `quality` and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def vignetting(image: np.ndarray, fov: np.ndarray, generator: np.random.Generator, rim: float, offset: float) -> np.ndarray:
    """Light that falls off from a centre by the cosine-fourth law, down to `rim` at one radius of the field of view.
    The centre lies `offset` radii off the middle, in a random direction."""
    (top, bottom), (left, right) = _extent(fov, 1), _extent(fov, 0)
    radius, angle = (right - left) / 2, generator.uniform(0, 2 * np.pi)
    y, x = (top + bottom) / 2 + offset * radius * np.sin(angle), (left + right) / 2 + offset * radius * np.cos(angle)
    rows, columns = np.indices(fov.shape)
    squared = ((rows - y) ** 2 + (columns - x) ** 2) / radius**2
    # cos^4 of atan(d / f) is (1 + (d / f)^2)^-2; f from the wanted value at d = radius
    return np.rint(image * ((1 + (rim**-0.5 - 1) * squared) ** -2)[..., None]).astype(np.uint8)


def resolution(image: np.ndarray, fov: np.ndarray, generator: np.random.Generator, fov_width: int) -> np.ndarray:
    """Taken by a sensor with `fov_width` pixels across the field of view (light averaged over its pixels), enlarged
    again to the old size."""
    left, right = _extent(fov, 0)
    height, width = fov.shape
    scale = min(1.0, fov_width / (right - left))
    small = Image.fromarray(image).resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def inversion(image: np.ndarray, fov: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The negative: vessels are bright, as in an angiogram."""
    return 255 - image


# The severities, seen on CHASE_DB1: plainly visible, and a reader still finds the vessels. They are written to
# conversion.json.
CORRUPTIONS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "white_balance": partial(white_balance, lamp="A", camera="D65"),
    "hue": partial(hue, shift=0.08),
    "jpeg": partial(jpeg, quality=15),
    "vignetting": partial(vignetting, rim=0.3, offset=0.3),
    "resolution": partial(resolution, fov_width=200),
    "inversion": partial(inversion),
}


def severities() -> dict[str, dict]:
    """The fixed settings of every corruption."""
    return {name: function.keywords for name, function in CORRUPTIONS.items()}


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _extent(fov: np.ndarray, axis: int) -> tuple[int, int]:
    """First index of the field of view and the one after its last, across `axis`."""
    indices = np.flatnonzero(fov.any(axis=axis))
    return int(indices[0]), int(indices[-1]) + 1
