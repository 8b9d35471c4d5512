"""The field of view of photographs as cameras may take them, drawn here, and of the real ones where they are."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from nnunet_kd.datasets.fundus.field_of_view import doubt, find_field_of_view, fitted_circle
from nnunet_kd.datasets.fundus.photographs import read_binary, read_rgb
from nnunet_kd.datasets.verify import verify_dataset

SIZE, RADIUS = (230, 260), 125  # the disc is cut off above and below


def photograph(surround=(0, 0, 0), noise: float = 2, rim: float = 0.5, dim: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 and the true field: light falls off to `rim` of the middle's, a bright optic disc, vessels, soft edge."""
    rng, (rows, columns) = np.random.default_rng(0), np.indices(SIZE)
    distance = np.hypot(rows - 115, columns - 130) / RADIUS
    field = (distance <= 1) & (rows >= 8) & (rows < 222)
    light = (1 + (rim**-0.5 - 1) * distance**2) ** -2
    light = np.where(np.hypot(rows - 110, columns - 200) < 18, 1.4 * light, light)
    light[100::40] *= 0.6
    weight = ndimage.gaussian_filter(field.astype(float), 0.8)[..., None]
    image = dim * weight * light[..., None] * np.array([170, 90, 40]) + (1 - weight) * np.array(surround)
    return np.clip(np.rint(image + rng.normal(0, noise, image.shape)), 0, 255).astype(np.uint8), field


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "camera",
    [
        dict(),
        dict(surround=(24, 24, 30), noise=4),
        dict(surround=(45, 45, 45), noise=4),
        dict(surround=(5, 10, 50), noise=4),
        dict(surround=(6, 6, 6), noise=8),
        dict(dim=0.35),
        dict(rim=0.2),
        dict(surround=(20, 20, 20), rim=0.3),
    ],
    ids=str,
)
def test_the_field_is_found_on_any_surround_and_in_dim_light(camera):
    rgb, field = photograph(**camera)
    found = find_field_of_view(rgb)
    assert overlap(found.mask, field) > 0.96 and found.doubt() is None
    assert found.circle.radius == pytest.approx(RADIUS, rel=0.02)


def test_jpeg_noise_and_writing_do_not_move_it():
    rgb, field = photograph(surround=(10, 10, 10))
    picture = Image.fromarray(rgb)
    ImageDraw.Draw(picture).text((2, 2), "OD 2026", fill=(255, 255, 255))
    ImageDraw.Draw(picture).text((10, 50), "0815 4711", fill=(255, 255, 255))  # touches the disc
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    found = find_field_of_view(np.asarray(Image.open(file)))
    assert overlap(found.mask, field) > 0.97 and found.doubt() is None


def test_a_rim_that_is_lost_in_the_dark_is_completed_to_the_disc():
    rgb, field = photograph()
    shadow = np.hypot(np.indices(SIZE)[0] - 130, np.indices(SIZE)[1] - 5) < 60
    found = find_field_of_view(np.where(shadow[..., None], 0, rgb))
    assert found.kind == "disc" and overlap(found.mask, field) > 0.96


def test_a_crop_that_shows_hardly_any_surround_is_still_found():
    rgb, field = photograph(surround=(20, 20, 20))
    inside = (slice(10, 220), slice(20, 240))
    assert overlap(find_field_of_view(rgb[inside]).mask, field[inside]) > 0.97


@pytest.mark.parametrize("rim", [0.9, 0.3])
def test_a_photograph_without_surround_is_the_field_and_is_doubted(rim):
    found = find_field_of_view(np.ascontiguousarray(photograph(rim=rim)[0][50:180, 60:200]))
    assert found.kind == "whole image" and found.mask.all() and found.doubt() == "no round rim"
    assert found.description()["circle"] is None


def test_a_fit_tells_discs_from_other_shapes(disc):
    circle = fitted_circle(disc(200, 220, 90))
    assert (circle.row, circle.column, circle.radius) == pytest.approx((99.5, 109.5, 90), abs=1) and circle.fit > 0.99
    cut = disc(200, 220, 90)
    cut[:40], cut[170:] = False, False
    assert fitted_circle(cut).radius == pytest.approx(90, abs=1.5) and doubt(fitted_circle(cut)) is None
    assert doubt(fitted_circle(np.pad(np.ones((60, 80), bool), 10))) == "no round rim"
    ellipse = np.hypot(*((i - 100) / r for i, r in zip(np.indices((200, 200)), (50, 95), strict=True))) <= 1
    assert doubt(fitted_circle(ellipse))


def test_real_stare_and_drive_against_masks_that_others_drew(real_data):
    stare = [(real_data / "STARE/images" / p.name, p) for p in sorted((real_data / "STARE/third-party-masks").iterdir())]
    masks = sorted((real_data / "DRIVE/test/mask").iterdir())[::5]
    drive = [(real_data / "DRIVE/test/images" / f"{p.name[:7]}.tif", p) for p in masks]
    for (image, mask), lowest in ((pair, low) for low, s in ((0.98, stare[::4]), (0.97, drive)) for pair in s):
        found, published = find_field_of_view(read_rgb(image)), read_binary(mask)
        assert overlap(found.mask, published) > lowest and found.doubt() is None, image


def test_verify_warns_of_a_field_that_is_no_disc(chase_tree, tmp_path):
    from nnunet_kd.datasets.fundus.chase_db1 import convert

    full = np.random.default_rng(0).integers(90, 120, (100, 104, 3), np.uint8)
    Image.fromarray(full).save(chase_tree / "Image_03L.jpg", quality=95)
    report = convert(chase_tree, tmp_path / "raw", tmp_path / "pre", 801, fov_width=64)
    assert "doubtful in 1 image(s) (CHASEDB1_03L: no round rim)" in report.text()
    entry = json.loads((report.folder / "conversion.json").read_text())["cases"]["CHASEDB1_01L"]["field_of_view"]
    assert entry["found_as"] == "outline" and entry["circle"]["fit"] > 0.9
    found = verify_dataset(report.folder)
    assert "warning: 1 field(s) of view look wrong (first CHASEDB1_03L: no round rim)" in found.text()
