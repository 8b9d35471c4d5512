import numpy as np
import pytest

from nnunet_kd.datasets.fundus.field_of_view import find_field_of_view
from nnunet_kd.datasets.fundus.photographs import read_rgb
from nnunet_kd.datasets.fundus.preparation import prepare, prepare_label
from nnunet_kd.utils.errors import KDError


def test_the_field_of_view_is_found_with_dark_vessels_and_bright_specks(fundus):
    rgb, _, fov = fundus(200, 220, 90, seed=1)
    rgb[5:9, 5:9] = 200  # a speck outside, as a time stamp would be
    rgb[95:105, 100:115] = 0  # a hole inside
    found = find_field_of_view(rgb).mask
    assert not found[:20, :20].any() and found[95:105, 100:115].all()
    assert 2 * (found & fov).sum() / (found.sum() + fov.sum()) > 0.98


def test_no_field_of_view_is_an_error(disc):
    with pytest.raises(KDError, match="no field of view"):
        find_field_of_view(np.full((60, 60, 3), 3, np.uint8))
    with pytest.raises(KDError, match="no field of view"):
        find_field_of_view(disc(60, 60, 10)[..., None] * np.full((60, 60, 3), 99, np.uint8))


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("fov_width", [64, 200, None])
def test_prepared_image(fundus, published, fov_width):
    rgb, _, fov = fundus(130, 150, 55, seed=2)
    image, mask, geometry = prepare(rgb, fov if published else None, "green", fov_width)
    assert image.dtype == np.uint8 and image.shape == mask.shape == geometry.canvas
    assert np.array_equal(image > 0, mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert height * width / mask.size < 0.72
    assert abs(width - (fov_width or 110)) <= 2
    assert abs(height / width - 1) < 0.04


def test_native_scale_keeps_the_gray_values(fundus):
    rgb, _, fov = fundus(130, 150, 55, seed=3)
    image, mask, geometry = prepare(rgb, fov, "green", None)
    assert geometry.scale == 1
    assert np.array_equal(image[mask], np.maximum(rgb[fov][:, 1], 1))


@pytest.mark.parametrize("fov_width", [60, 90, 180])
def test_the_black_outside_does_not_darken_the_rim(disc, fov_width):
    fov = disc(130, 150, 55)
    image, mask, _ = prepare(np.full((130, 150, 3), 100, np.uint8) * fov[..., None], fov, "green", fov_width)
    assert np.unique(image[mask]).tolist() == [100]


def test_channels(disc):
    fov = disc(80, 80, 38)
    rgb = np.broadcast_to(np.array([200, 110, 0], np.uint8), (80, 80, 3)) * fov[..., None]
    colour, mask, geometry = prepare(rgb, fov, "rgb", 64)
    assert colour.shape == (*geometry.canvas, 3)
    assert np.unique(colour[mask], axis=0).tolist() == [[200, 110, 1]]  # 1, not 0: inside the field of view
    assert np.unique(prepare(rgb, fov, "green", 64)[0][mask]).tolist() == [110]
    assert np.unique(prepare(rgb, fov, "gray", 64)[0][mask]).tolist() == [124]  # 0.299 * 200 + 0.587 * 110 = 124.4


def test_nnunet_crops_to_the_field_of_view_and_would_normalise_inside_it(fundus):
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization

    rgb, label, fov = fundus(130, 150, 55, seed=4)
    image, mask, geometry = prepare(rgb, fov, "green", 96)
    segmentation = prepare_label(label, mask, geometry).astype(np.int8)
    data, seg, box = crop_to_nonzero(image[None, None].astype(np.float32), segmentation[None, None])
    assert data[0].size / image.size < 0.75  # nnU-Net's own condition for use_mask_for_norm
    inside = mask[box[1][0] : box[1][1], box[2][0] : box[2][1]]
    assert np.array_equal(seg[0, 0] >= 0, inside)
    out = ZScoreNormalization(use_mask_for_norm=True, intensityproperties={}).run(data[0], seg[0])[0]
    assert (out[~inside] == 0).all()
    assert abs(out[inside].mean()) < 1e-4 and abs(out[inside].std() - 1) < 1e-4


@pytest.mark.parametrize("fov_width", [61, 100])
def test_thin_vessels_survive_resizing(disc, fov_width):
    """Lines of one pixel in every direction, at scales 0.55 and 0.9: a broken line would make many components."""
    from scipy import ndimage

    fov = disc(130, 130, 55)
    for angle in np.linspace(0, np.pi, 12, endpoint=False):
        steps = np.linspace(-50, 50, 400)
        label = np.zeros((130, 130), bool)
        label[np.rint(64.5 + steps * np.sin(angle)).astype(int), np.rint(64.5 + steps * np.cos(angle)).astype(int)] = 1
        _, mask, geometry = prepare(np.full((130, 130, 3), 100, np.uint8), fov, "green", fov_width)
        out = prepare_label(label, mask, geometry)
        rows, columns = np.nonzero(out)
        length = np.hypot(np.ptp(rows), np.ptp(columns))
        assert length > 0.85 * 100 * geometry.scale
        assert ndimage.label(out, np.ones((3, 3)))[1] <= 3


def test_labels_end_at_the_field_of_view_and_stay_in_place(fundus):
    rgb, label, fov = fundus(130, 150, 55, seed=5)
    _, mask, geometry = prepare(rgb, fov, "green", None)
    out = prepare_label(label, mask, geometry)
    assert label[~fov].any() and not out[~mask].any()
    top, left, bottom, right = geometry.crop_box
    rows, columns = geometry.pad
    cut = out[rows : rows + bottom - top, columns : columns + right - left]
    assert np.array_equal(cut, (label & fov)[top:bottom, left:right])


def test_what_does_not_fit_is_an_error(fundus):
    rgb, _, fov = fundus(80, 90, 35, seed=6)
    with pytest.raises(KDError, match="--channels"):
        prepare(rgb, fov, "purple")
    with pytest.raises(KDError, match="--fov-width"):
        prepare(rgb, fov, "green", 5)
    with pytest.raises(KDError, match="two images"):
        prepare(rgb, fov[1:], "green")
    with pytest.raises(KDError, match="empty"):
        prepare(rgb, np.zeros_like(fov), "green")


@pytest.mark.slow
def test_real_fields_of_view_are_discs(real_data):
    """All 28 CHASE_DB1 images against the disc of the same area and centre."""
    files = sorted((real_data / "CHASEDB1").glob("*.jpg"))
    assert len(files) == 28
    for file in files:
        found = find_field_of_view(read_rgb(file)).mask
        rows, columns = np.nonzero(found)
        radius = np.sqrt(len(rows) / np.pi)
        distance = np.hypot(*(i - c for i, c in zip(np.indices(found.shape), (rows.mean(), columns.mean()), strict=True)))
        overlap = 2 * (found & (distance <= radius)).sum() / (found.sum() + (distance <= radius).sum())
        assert overlap > 0.99, file
        assert 440 < radius < 470, file
