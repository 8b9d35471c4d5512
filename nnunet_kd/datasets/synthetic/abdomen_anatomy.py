"""The anatomy of a synthetic trunk: which tissue every voxel is of. How it looks in a scanner is abdomen.py's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SHAPE, SPACING = (48, 64, 64), (5.5, 5.5, 5.5)  # z, y, x; mm. z up, y to the back, x to the patient's left
TISSUES = ("air", "fat", "muscle", "bone", "lung", "liver", "spleen", "kidney", "stomach", "bowel", "vessel", "tumour", "table")
AIR, FAT, MUSCLE, BONE, LUNG, LIVER, SPLEEN, KIDNEY, STOMACH, BOWEL, VESSEL, TUMOUR, TABLE = range(len(TISSUES))


@dataclass(frozen=True)
class Anatomy:
    """tissue: index into TISSUES, (z, y, x); loop: number of the bowel loop; vessels, tumours: covered share of a voxel of the
    liver, 0..1; liver: bool."""

    tissue: np.ndarray
    loop: np.ndarray
    vessels: np.ndarray
    tumours: np.ndarray
    liver: np.ndarray


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """One trunk on the common grid. Lengths in mm; the origin is the middle of the trunk."""
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * d for n, d in zip(SHAPE, SPACING, strict=True)], indexing="ij")
    width, depth = rng.uniform(128, 150), rng.uniform(92, 112)
    waist = 1 + rng.uniform(-0.06, 0.04) * z / 120
    z, y, x = (axis + 5 * smooth_field(rng, 120) for axis in (z, y, x))
    trunk = np.hypot(x / (width * waist), (y / (depth * waist)))
    body = trunk < 1
    layer = rng.uniform(8, 26) / depth  # subcutaneous fat
    inner, cavity = trunk < 1 - layer, trunk < 1 - layer - 0.13
    tissue = np.full(SHAPE, AIR, np.uint8)
    tissue[body] = FAT
    # one displacement for all organs keeps neighbours neighbours
    z, y, x = (axis + 6 * smooth_field(rng, 40) for axis in (z, y, x))
    tissue[inner & ~cavity] = MUSCLE

    def organ(centre: Sequence[float], radii: Sequence[float], rough: float = 0.12, turn: float = 0.3) -> np.ndarray:
        """Smoothly deformed ellipsoid, as a level that is below 1 inside; centre (x, y, z) and radii in mm, of a mean body."""
        scale = np.array([width / 139, depth / 102, 1.0])
        shifted = np.array(centre) * scale + rng.normal(0, (5, 4, 6))
        axes = np.array(radii) * scale * rng.uniform(0.88, 1.12, 3)
        a = rng.normal(0, turn)
        u, v, w = x - shifted[0], y - shifted[1], z - shifted[2]
        u, w = np.cos(a) * u + np.sin(a) * w, np.cos(a) * w - np.sin(a) * u
        return np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (w / axes[2]) ** 2) + rough * smooth_field(rng, 22)

    base = rng.uniform(45, 65)
    tissue[cavity & (z > base + 12 * smooth_field(rng, 50)) & (y < 70)] = LUNG
    heart = organ((15, -30, 100), (50, 40, 38), turn=0.1) < 1
    tissue[heart & cavity] = MUSCLE
    loop = np.zeros(SHAPE, np.uint8)
    for k in range(1, int(rng.integers(14, 22))):
        centre = rng.uniform(-90, 90), rng.uniform(-65, 30), rng.uniform(-130, 0)
        inside = (organ(centre, rng.uniform(14, 30, 3), 0.2, 1.0) < 1) & cavity
        tissue[inside], loop[inside] = BOWEL, k
    tissue[(organ((48, -42, 28), (42, 30, 36), 0.2) < 1) & cavity] = STOMACH
    tissue[(organ((92, 34, 36), (27, 36, 40)) < 1) & cavity] = SPLEEN
    for side in (-1, 1):
        tissue[(organ((side * 58, 50, -42 - 6 * side), (24, 22, 46), 0.08, 0.15) < 1) & inner] = KIDNEY
        tissue[(organ((side * 34, 78, 0), (26, 22, 400), 0.1, 0.02) < 1) & inner] = MUSCLE
    right = organ((-62, -6, 18), (66, 68, 66), 0.1, 0.25)
    left = organ((-2, -38, 40), (70, 34, 30), 0.12, 0.2)
    # lobes grow together smoothly; the lower one of two levels, rounded where they meet
    liver = (-0.12 * np.logaddexp(-right / 0.12, -left / 0.12) < 0.97) & cavity
    liver = _largest(liver & (tissue != KIDNEY))
    tissue[liver] = LIVER
    spine = organ((0, 66, 0), (21, 19, 1000), 0.08, 0.0)
    tissue[(spine < 1) & inner] = BONE
    tissue[(np.hypot(x, y - 84) < 8) & inner] = MUSCLE  # spinal canal
    for centre, radius in ((10, 10.0), (-14, 11.0)):
        tissue[(np.hypot(x - centre, y - 38) < radius) & ~liver & inner] = VESSEL
    liver = _largest(tissue == LIVER)
    tissue[(tissue == LIVER) & ~liver] = FAT
    tissue[_table(body)] = TABLE
    where = np.argwhere(liver)
    vessels, tumours = np.zeros(SHAPE), np.zeros(SHAPE)
    for _ in range(2):  # portal and hepatic veins
        _grow(rng, vessels, where[rng.integers(len(where))] * 0.3 + where.mean(0) * 0.7, 5.5)
    for _ in range(int(rng.integers(0, 5))):
        _stamp(tumours, where[rng.integers(len(where))].astype(float), rng.uniform(7, 20))
    return Anatomy(tissue, loop, vessels * liver, tumours * liver, liver)


def smooth_field(
    rng: np.random.Generator, length: float, shape: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING
) -> np.ndarray:
    """Smooth random field of mean 0 and standard deviation 1, that changes over about `length` mm: Gaussian bumps of random
    height on a grid, summed axis by axis."""
    weights = []
    for n, d in zip(shape, spacing, strict=True):
        nodes = np.arange(-length, n * d + length, length / 2)
        weights.append(np.exp(-2 * ((np.arange(n)[:, None] * d - nodes) / length) ** 2))
    field = rng.normal(size=[w.shape[1] for w in weights])
    for w in weights:
        field = np.tensordot(field, w, axes=(0, 1))
    return (field - field.mean()) / field.std()


def _largest(mask: np.ndarray) -> np.ndarray:
    components, n = ndimage.label(mask)
    return components == 1 + np.argmax(np.bincount(components.ravel())[1:]) if n else mask


def _table(body: np.ndarray) -> np.ndarray:
    """A curved plate under the body, two voxels thick."""
    back = np.flatnonzero(body.any((0, 2)))[-1]
    y, x = np.indices(SHAPE[1:])
    top = back + 2 - np.round(((x - SHAPE[2] / 2) / 16.0) ** 2)
    plate = (y >= top) & (y < top + 2) & (np.abs(x - SHAPE[2] / 2) < 24)
    return np.broadcast_to(plate, SHAPE) & ~body


def _stamp(picture: np.ndarray, centre: np.ndarray, radius: float) -> None:
    """A ball (radius in mm, centre in voxels) with edges half a voxel soft; the largest value wins."""
    reach = [int(np.ceil(radius / d + 1)) for d in SPACING]
    low = [max(0, int(c) - r) for c, r in zip(centre, reach, strict=True)]
    high = [min(n, int(c) + r + 2) for n, c, r in zip(SHAPE, centre, reach, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return
    axes = [(np.arange(a, b) - c) * d for a, b, c, d in zip(low, high, centre, SPACING, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    picture[part] = np.maximum(picture[part], np.clip((radius - distance) / SPACING[1] + 0.5, 0, 1))


def _grow(rng: np.random.Generator, picture: np.ndarray, start: np.ndarray, radius: float) -> None:
    """A branching tree of vessels from `start` (voxels): bent walks whose radii (mm) split by Murray's law."""
    todo = [(start.astype(float), rng.normal(size=3), radius) for _ in range(3)]
    while todo:
        position, direction, r = todo.pop()
        for _ in range(int(rng.integers(4, 9))):
            direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.25, 3)
            position = position + 4.0 * direction / np.linalg.norm(direction) / SPACING
            _stamp(picture, position, r)
        if r > 2.2:
            share = rng.uniform(0.4, 0.7)
            todo += [(position, direction + rng.normal(0, 0.6, 3), r * part ** (1 / 3)) for part in (share, 1 - share)]
