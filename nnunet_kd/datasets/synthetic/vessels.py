"""Synthetic vessel trees in four domains: free data for the demo and for tests, the same for the same seed.

Every image is a branching tree of curved, tapering vessels (1 to about 6 pixels wide) on a gray background; the label
is the tree itself. The trees of all domains come from one distribution (the noise domain's vessels are somewhat
wider); what differs is the appearance, one row of DOMAINS each. The numbers there were set by looking at a teacher
and an undistilled student only, never at a distilled one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunet_kd.datasets.nnunet_format import write_case
from nnunet_kd.datasets.synthetic.domains import N_FOLDS, write_domains
from nnunet_kd.utils.errors import KDError

STEP = 0.7  # pixels between two points of a vessel's centre line
MIN_RADIUS = 0.5  # pixels: the thinnest vessels are one pixel wide

Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """Appearance of a domain. Gray levels of 0..255 and pixels; a range is drawn from once per image."""

    name: str
    level: Range = (105, 150)  # mean background
    vessel: Range = (38, 58)  # darkness of the widest vessels; thin ones are fainter
    illumination: Range = (8, 18)  # amplitude of the smooth uneven light
    gamma: Range = (0.95, 1.05)
    grain: Range = (3, 6)  # fine background texture
    mottle: Range = (0, 0)  # coarse band-passed background texture
    stripes: Range = (4, 9)  # broad dark strokes that are no vessels, choroid-like
    n_stripes: tuple[int, int] = (2, 5)
    blur: Range = (0.5, 0.8)  # standard deviation
    noise: Range = (4, 7)
    reflex: Range = (0, 0)  # bright line along the centre of vessels more than 2 pixels wide
    n_lesions: tuple[int, int] = (0, 3)  # dark and bright blobs
    lesion: Range = (12, 25)
    calibre: Range = (0.9, 1.1)  # factor on vessel radii


DOMAINS: dict[str, Domain] = {
    "source": Domain("SynthSource"),
    "contrast": Domain(
        "SynthContrast", level=(100, 155), vessel=(20, 30), illumination=(22, 38), gamma=(0.6, 1.7), noise=(3, 5)
    ),
    "texture": Domain(
        "SynthTexture",
        vessel=(42, 62),
        mottle=(9, 13),
        stripes=(16, 26),
        n_stripes=(8, 14),
        grain=(6, 10),
        blur=(0.8, 1.1),
    ),
    "noise": Domain(
        "SynthNoise",
        vessel=(48, 68),
        noise=(9, 14),
        reflex=(36, 54),
        n_lesions=(25, 40),
        lesion=(35, 65),
        calibre=(1.2, 1.5),
    ),
}


def grow_tree(rng: np.random.Generator, size: int, calibre: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Centre line points (N, 2) as row, column and radii (N,) in pixels of one vessel tree, with the root first.

    The root lies near the centre, as the optic disc does; radii split by Murray's law, r^3 = r1^3 + r2^3.
    """
    root = rng.uniform(0.25, 0.75, 2) * size
    first = rng.uniform(0, 2 * np.pi)
    n_trunks = int(rng.integers(5, 8))
    todo = []
    for k in range(n_trunks):
        angle = first + 2 * np.pi * (k + rng.uniform(-0.25, 0.25)) / n_trunks
        todo.append((root, angle, calibre * rng.uniform(1.5, 2.7)))
    points, radii = [], []
    while todo:
        position, angle, radius = todo.pop()
        n = int(rng.uniform(0.12, 0.3) * size / STEP)
        # Curvature is a damped random walk: smooth bends of either direction.
        kicks = rng.normal(0, 0.012, n)
        curvature = np.zeros(n)
        for i in range(1, n):
            curvature[i] = 0.94 * curvature[i - 1] + kicks[i]
        angles = angle + np.cumsum(curvature) * STEP
        path = position + STEP * np.cumsum(np.stack([np.sin(angles), np.cos(angles)], axis=1), axis=0)
        taper = radius * np.linspace(1, 0.9, n)
        inside = ((path > -4) & (path < size + 3)).all(axis=1)
        keep = n if inside.all() else int(np.argmin(inside))
        points.append(path[:keep])
        radii.append(taper[:keep])
        if keep < n:
            continue
        share = rng.uniform(0.5, 0.85)
        side = rng.choice((-1, 1))
        for part, turn in ((share, -side * rng.uniform(0.1, 0.45)), (1 - share, side * rng.uniform(0.4, 1.0))):
            child = taper[-1] * part ** (1 / 3)
            if child >= MIN_RADIUS * calibre and not (child < 0.8 and rng.uniform() < 0.35):
                todo.append((path[-1], angles[-1] + turn, child))
    return np.concatenate(points), np.concatenate(radii)


def draw(size: int, points: np.ndarray, radii: np.ndarray, values: np.ndarray | float = 1.0) -> np.ndarray:
    """Anti-aliased picture (size, size), float: discs of the given radii along the points, the largest value wins."""
    reach = int(np.ceil(radii.max() + 0.5))
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    pixels = np.rint(points)[:, None, :].astype(int) + offsets
    distance = np.linalg.norm(pixels - points[:, None, :], axis=-1)
    cover = np.clip(radii[:, None] + 0.5 - distance, 0, 1) * np.broadcast_to(values, radii.shape)[:, None]
    picture = np.zeros((size, size))
    valid = ((pixels >= 0) & (pixels < size)).all(axis=-1)
    np.maximum.at(picture, tuple(pixels[valid].T), cover[valid])
    return picture


def make_image(rng: np.random.Generator, size: int, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 (size, size), nowhere 0, and its label, uint8 0/1."""
    points, radii = grow_tree(rng, size, rng.uniform(*domain.calibre))
    label = (draw(size, points, radii) >= 0.5).astype(np.uint8)

    def field(sigma: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="reflect")
        return (noise - noise.mean()) / noise.std()

    image = rng.uniform(*domain.level) + rng.uniform(*domain.illumination) * field(size / 4)
    image += rng.uniform(*domain.grain) * field(1.2)
    image += rng.uniform(*domain.mottle) * (field(2.0) - field(5.0)) / np.sqrt(2)
    rows, columns = np.indices((size, size))

    def blob(centre: np.ndarray, radius: float, edge: float) -> np.ndarray:
        return 1 / (1 + np.exp((np.hypot(rows - centre[0], columns - centre[1]) - radius) / edge))

    image += rng.uniform(25, 45) * blob(points[0], size * rng.uniform(0.05, 0.08), 1.5)
    for _ in range(rng.integers(*domain.n_stripes, endpoint=True)):
        image -= rng.uniform(*domain.stripes) * _stroke(rng, size)
    for _ in range(rng.integers(*domain.n_lesions, endpoint=True)):
        spot = blob(rng.uniform(0, size, 2), rng.uniform(1.0, 4.5), 0.6)
        image += rng.choice((-1, 1)) * rng.uniform(*domain.lesion) * spot

    # Thin vessels hold less blood along the line of sight and are fainter; what is under a vessel is covered by it.
    faintness = np.clip(0.35 + 0.65 * radii / 2.2, 0, 1)
    image -= rng.uniform(*domain.vessel) * draw(size, points, radii, faintness)
    wide = radii > 1.0
    reflex = rng.uniform(*domain.reflex)
    if wide.any():
        image += reflex * draw(size, points[wide], 0.4 * radii[wide])
    image = ndimage.gaussian_filter(image, rng.uniform(*domain.blur), mode="reflect")
    image = 255 * np.clip(image / 255, 0, 1) ** rng.uniform(*domain.gamma)
    image += rng.normal(0, rng.uniform(*domain.noise), (size, size))
    # Zero would mean "outside" to nnU-Net.
    return np.clip(np.rint(image), 1, 255).astype(np.uint8), label


def _stroke(rng: np.random.Generator, size: int) -> np.ndarray:
    """A broad, soft, slightly bent stroke across the image, 0..1."""
    n = int(1.6 * size / STEP)
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(-0.5, 0.5, n) * rng.uniform(-1.2, 1.2)
    path = STEP * np.cumsum(np.stack([np.sin(angles), np.cos(angles)], axis=1), axis=0)
    path += rng.uniform(0.1, 0.9, 2) * size - path[n // 2]
    return ndimage.gaussian_filter(draw(size, path, np.full(n, rng.uniform(1.5, 3.0))), rng.uniform(1.0, 1.8))


def generate(
    raw: str | Path,
    preprocessed: str | Path,
    first_id: int = 901,
    seed: int = 0,
    size: int = 160,
    n_train: int = 24,
    n_test: int = 8,
    n_unseen: int = 8,
    overwrite: bool = False,
) -> dict[str, str]:
    """Write the source domain (imagesTr, imagesTs) and three unseen domains (all in imagesTr) as nnU-Net datasets.

    Ids are first_id .. first_id + 3, `size` is the images' width and height in pixels. The source gets a
    `splits_final.json` of four folds. Returns domain -> dataset name, with the keys "source", "contrast", "texture"
    and "noise". An image depends on seed, size, domain and its own number only. Raises KDError if an id is taken, a
    dataset exists (and not `overwrite`), or a number is too small.
    """
    if size < 64 or n_train < N_FOLDS or n_test < 1 or n_unseen < 1 or seed < 0:
        raise KDError(
            f"synthetic vessels need size >= 64, n_train >= {N_FOLDS}, n_test and n_unseen >= 1 and seed >= 0, "
            f"got {size}, {n_train}, {n_test}, {n_unseen} and {seed}: correct them"
        )

    def write(folder: Path, tag: str, case: str, domain: Domain, numbers: tuple[int, int, int]) -> None:
        image, label = make_image(np.random.default_rng((seed, *numbers)), size, domain)
        write_case(folder, case, image, label, tag=tag)

    counts, settings = (n_train, n_test, n_unseen), {"seed": seed, "size": size}
    known = dict(channel_names=["gray"], labels=["vessel"], reference=__name__, description="Synthetic vessel trees")
    return write_domains(raw, preprocessed, first_id, DOMAINS, counts, write, overwrite, settings, known)
