"""Synthetic 3-D abdomens in two modalities: free data for demos and tests of volumes, the same for the same seed.

Every case is a trunk with lungs, spine, spleen, kidneys, stomach, bowel and a liver with vessels and tumours inside; the
label is the liver with both. The anatomy of all domains comes from one distribution. What differs is the appearance, one row
of DOMAINS each: the source looks like CT (HU, table), the targets like T1- and T2-weighted MR (other contrasts, bias field,
Rician noise, thicker slices). All are z-scored, so that one model reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from scipy import ndimage

from nnunet_kd.datasets.synthetic.abdomen_anatomy import (
    AIR,
    BOWEL,
    FAT,
    KIDNEY,
    LIVER,
    MUSCLE,
    SHAPE,
    SPACING,
    SPLEEN,
    TABLE,
    TISSUES,
    TUMOUR,
    VESSEL,
    Anatomy,
    draw_anatomy,
    smooth_field,
)
from nnunet_kd.datasets.synthetic.domains import N_FOLDS, write_domains
from nnunet_kd.utils.errors import KDError

Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """Appearance of a domain: intensities (HU, or arbitrary units of MR), noise as their standard deviation; a range is drawn
    from once per case."""

    name: str
    tissues: Mapping[str, Range]  # mean intensity; bowel loops get one each
    noise: Range
    texture: float = 0.02  # of the tissue contrast: smooth variation inside organs
    bias: Range = (0.0, 0.0)  # half the range of the logarithm of the multiplicative field
    gain: Range = (1.0, 1.0)
    rician: bool = False
    slices: int = SHAPE[0]  # fewer are thicker: the trunk is 264 mm long in every domain


DOMAINS: dict[str, Domain] = {
    "ct": Domain(
        "SynthAbdomenCT",
        dict(
            air=(-1000, -1000),
            fat=(-115, -90),
            muscle=(45, 65),
            bone=(250, 450),
            lung=(-860, -780),
            liver=(95, 125),
            spleen=(100, 130),
            kidney=(130, 190),
            stomach=(30, 110),
            bowel=(20, 120),
            vessel=(135, 175),
            tumour=(45, 85),
            table=(0, 200),
        ),
        noise=(14, 22),
    ),
    "mr_t1": Domain(
        "SynthAbdomenT1",
        dict(
            air=(0, 5),
            fat=(520, 640),
            muscle=(190, 240),
            bone=(90, 200),
            lung=(10, 40),
            liver=(300, 370),
            spleen=(200, 250),
            kidney=(220, 290),
            stomach=(120, 330),
            bowel=(140, 360),
            vessel=(120, 180),
            tumour=(180, 240),
            table=(0, 5),
        ),
        noise=(14, 24),
        bias=(0.2, 0.4),
        gain=(0.5, 2.0),
        rician=True,
        slices=32,
    ),
    "mr_t2": Domain(
        "SynthAbdomenT2",
        dict(
            air=(0, 5),
            fat=(60, 120),
            muscle=(70, 110),
            bone=(60, 140),
            lung=(10, 40),
            liver=(130, 180),
            spleen=(300, 380),
            kidney=(340, 430),
            stomach=(150, 500),
            bowel=(120, 420),
            vessel=(40, 90),
            tumour=(260, 340),
            table=(0, 5),
        ),
        noise=(12, 20),
        bias=(0.2, 0.4),
        gain=(0.5, 2.0),
        rician=True,
        slices=32,
    ),
}


def render(rng: np.random.Generator, anatomy: Anatomy, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
    """A case of a domain: image, int16 (slices, 64, 64), and label, uint8 0/1."""
    means = np.array([rng.uniform(*domain.tissues[t]) for t in TISSUES])
    image = means[anatomy.tissue]
    loops = rng.uniform(*domain.tissues["bowel"], 32)
    image = np.where(anatomy.tissue == BOWEL, loops[anatomy.loop], image)
    image += (means[VESSEL] - image) * anatomy.vessels
    image += (means[TUMOUR] - image) * anatomy.tumours
    contrast = np.ptp([means[t] for t in (FAT, MUSCLE, LIVER, SPLEEN, KIDNEY)])
    image += domain.texture * contrast * smooth_field(rng, 9) * ~np.isin(anatomy.tissue, (AIR, TABLE))
    image = ndimage.gaussian_filter(image, 0.55, mode="nearest")
    inside = anatomy.liver.astype(float)
    if domain.slices != SHAPE[0]:  # thick slices average over what they cover
        step = SHAPE[0] / domain.slices
        centres = (np.arange(domain.slices) + 0.5) * step - 0.5
        grid = np.meshgrid(centres, np.arange(SHAPE[1]), np.arange(SHAPE[2]), indexing="ij")
        image, inside = (
            ndimage.map_coordinates(
                ndimage.gaussian_filter1d(a, step / 3, axis=0, mode="nearest"), grid, order=1, mode="nearest"
            )
            for a in (image, inside)
        )
    gain = rng.uniform(*domain.gain)
    field = smooth_field(rng, 110, image.shape, (SHAPE[0] / domain.slices * SPACING[0], *SPACING[1:]))
    image = gain * image * np.exp(rng.uniform(*domain.bias) * field / np.abs(field).max())
    noise = gain * rng.uniform(*domain.noise)
    if domain.rician:
        image = np.hypot(image + rng.normal(0, noise, image.shape), rng.normal(0, noise, image.shape))
    else:  # reconstruction filters leave grains of about two voxels
        grain = ndimage.gaussian_filter(rng.normal(size=image.shape), (0, 0.5, 0.5))
        image = np.clip(image + noise * grain / grain.std(), -1024, 3071)
    return np.rint(image).astype(np.int16), (inside >= 0.5).astype(np.uint8)


def make_case(seed: tuple[int, ...], domain: Domain) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image and label of one case, (z, y, x), and their spacing (x, y, z) in mm."""
    rng = np.random.default_rng(seed)
    image, label = render(rng, draw_anatomy(rng), domain)
    return image, label, (SPACING[2], SPACING[1], SPACING[0] * SHAPE[0] / domain.slices)


def generate(
    raw: str | Path,
    preprocessed: str | Path,
    first_id: int = 911,
    seed: int = 0,
    n_train: int = 16,
    n_test: int = 6,
    n_unseen: int = 6,
    overwrite: bool = False,
) -> dict[str, str]:
    """Write the CT-like source (imagesTr, imagesTs) and the MR-like domains (all in imagesTr) as nnU-Net datasets.

    Ids are first_id, first_id + 1, ... in the order of DOMAINS. The source gets a `splits_final.json` of four folds. Returns
    domain -> dataset name. A case depends on seed, domain and its own number only. Raises KDError if an id is taken, a dataset
    exists (and not `overwrite`), or a number is too small.
    """
    if n_train < N_FOLDS or n_test < 1 or n_unseen < 1 or seed < 0:
        raise KDError(
            f"synthetic abdomens need at least {N_FOLDS} training cases, 1 test and 1 unseen case and a seed >= 0, got "
            f"{n_train}, {n_test}, {n_unseen} and {seed}: correct them"
        )

    def write(folder: Path, tag: str, case: str, domain: Domain, numbers: tuple[int, int, int]) -> None:
        image, label, spacing = make_case((seed, 3, *numbers), domain)
        _write(folder / f"images{tag}" / f"{case}_0000.nii.gz", image, spacing)
        _write(folder / f"labels{tag}" / f"{case}.nii.gz", label, spacing)

    counts = (n_train, n_test, n_unseen)
    known = dict(channel_names=["intensity"], labels=["liver"], reference=__name__, file_ending=".nii.gz")
    known["description"] = "Synthetic abdomen"
    return write_domains(raw, preprocessed, first_id, DOMAINS, counts, write, overwrite, {"seed": seed}, known)


def _write(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    path.parent.mkdir(exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin([-(n - 1) / 2 * d for n, d in zip(array.shape[::-1], spacing, strict=True)])
    SimpleITK.WriteImage(image, str(path), useCompression=True)
