"""Photometric views: reproducible, statistics kept, the field of view kept, every operation by its own mark."""

import math

import pytest
import torch

from nnunet_kd.augmentation import photometric, views
from nnunet_kd.augmentation.views import VIEW_PRESETS, Views, list_presets

SHAPES = [(4, 1, 40, 32), (3, 2, 12, 20, 16), (1, 3, 33, 21)]
# with a single sample the Fourier view is the identity
CHANGING = [name for name in list_presets() if name != "fourier"]


def images(shape, seed=0):
    """Smooth blobs plus a little noise, z-scored per sample and channel: closer to an image than white noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = len(shape) - 2
    coarse = torch.randn(*shape[:2], *(5,) * axes, generator=generator)
    mode = "bilinear" if axes == 2 else "trilinear"
    x = torch.nn.functional.interpolate(coarse, shape[2:], mode=mode, align_corners=True)
    x = x + 0.1 * torch.randn(shape, generator=generator)
    dims = tuple(range(2, len(shape)))
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", list_presets())
def test_reproducible_and_alone(preset, shape):
    x = images(shape)
    before, state = x.clone(), torch.get_rng_state()
    draw = Views(preset)
    first, again, other = draw(x, generator(1)), draw(x, generator(1)), draw(x, generator(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)
    assert torch.equal(first, again)
    assert first.shape == x.shape and first.dtype == x.dtype and first.isfinite().all()
    if preset == "fourier" and shape[0] == 1:
        assert torch.allclose(first, x, atol=1e-5)
    else:
        assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", list_presets())
def test_mean_and_spread_stay_near_the_input(preset, shape):
    x = 3 * images(shape) + 5
    dims = tuple(range(2, x.ndim))
    draw, source = Views(preset), generator(3)
    for _ in range(10):
        view = draw(x, source)
        shift = (view.mean(dims) - x.mean(dims)).abs() / x.std(dims)
        spread = view.std(dims) / x.std(dims)
        assert shift.max() < 0.45
        assert spread.min() > 0.6 and spread.max() < 1.7


@pytest.mark.parametrize("preset", CHANGING)
def test_samples_get_parameters_of_their_own(preset):
    x = images((1, 1, 32, 32)).repeat(6, 1, 1, 1)
    changes = [Views(preset)(x, generator(seed)) for seed in range(5)]
    distances = torch.stack([torch.cdist(v.flatten(1), v.flatten(1)) for v in changes]).amax(0)
    assert (distances + torch.eye(6) > 1e-2).all()


@pytest.mark.parametrize("preset", list_presets())
def test_outside_the_field_of_view_stays_zero(preset):
    x = images((4, 2, 32, 32))
    x[:, 0, :10] = 0
    x[3, 0] = 0  # a patch with nothing inside
    x[:, 1, 20:] = 0  # a channel without a field of view: zeros are intensities there
    draw, source = Views(preset, keep_zero=[True, False]), generator(4)
    moved = False
    for _ in range(8):
        view = draw(x, source)
        assert view.isfinite().all()
        assert (view[:, 0, :10] == 0).all() and (view[3, 0] == 0).all()
        assert (view[:3, 0, 10:] != 0).all()
        moved |= bool((view[:, 1, 20:] != 0).any())
    assert moved


def test_statistics_leave_out_what_lies_outside():
    """More black border must not change what pointwise steps do to the inside (blurs do reach over the edge)."""
    pointwise = (photometric.gamma, photometric.contrast, photometric.brightness)
    steps = [step for preset in VIEW_PRESETS.values() for step in preset if step.function in pointwise]
    inside = images((2, 1, 24, 24)) + 4
    wide = torch.zeros(2, 1, 24, 60)
    wide[..., :24] = inside
    for step in steps:
        u, v = (photometric.standardise(x, x != 0) for x in (inside, wide))
        a = step.function(u, inside != 0, generator(5), **step.options)
        b = step.function(v, wide != 0, generator(5), **step.options)
        assert torch.allclose(a, b[..., :24], atol=1e-4)


def test_operations_are_told_what_is_valid(monkeypatch):
    seen = []

    def spy(u, valid, generator):
        seen.append((u, valid))
        return u

    monkeypatch.setitem(VIEW_PRESETS, "spy", (views.ViewStep(spy, 1.0),))
    x = images((2, 2, 16, 16))
    x[:, :, :4] = 0
    Views("spy", keep_zero=[True, False])(x, generator())
    ((u, valid),) = seen
    assert torch.equal(valid[:, 0], x[:, 0] != 0) and valid[:, 1].all()
    assert u[:, 0, 4:].mean((1, 2)).abs().max() < 1e-5
    # whatever a random network puts outside does not change what is mixed inside
    y = torch.where(valid, u.flip(0), 100.0)
    a, b = (photometric._mix(u, outside, valid, generator(1)) for outside in (y, torch.where(valid, y, 0.0)))
    assert torch.allclose(a[valid], b[valid], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept_under_autocast(dtype):
    x = images((2, 1, 24, 24)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for preset in list_presets():
            view = Views(preset)(x, generator())
            assert view.dtype == dtype and view.isfinite().all()


@pytest.mark.parametrize("preset", list_presets())
def test_flat_and_tiny_patches(preset):
    flat = torch.full((2, 1, 16, 16), 2.0)
    assert torch.allclose(Views(preset)(flat, generator()), flat, atol=1e-3)
    assert Views(preset)(images((2, 1, 3, 2, 5)), generator()).isfinite().all()


def test_no_gradient():
    x = images((2, 1, 16, 16)).requires_grad_()
    assert not Views("strong")(x, generator()).requires_grad


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match='unknown view preset "heavy", use one of light, strong'):
        Views("heavy")
    with pytest.raises(ValueError, match="keep_zero has 1 entries for images of 2 channels"):
        Views("light", keep_zero=[True])(images((1, 2, 8, 8)), generator())


# --- the operations, each by what it must do ------------------------------------------------------------------------


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_gamma_keeps_the_order_of_intensities():
    u = images((1, 1, 32, 32))
    v = photometric.gamma(u, None, generator(), low=2.0, high=2.0)
    scaled = (u - u.min()) / (u.max() - u.min())
    assert torch.allclose(v, scaled**2, atol=1e-6)


def test_contrast_and_brightness_by_hand():
    u = images((2, 2, 16, 16))
    assert torch.allclose(photometric.contrast(u, None, generator(), low=1.5, high=1.5), 1.5 * u, atol=1e-5)
    shift = photometric.brightness(u, None, generator(), high=0.4) - u
    assert shift.amax((2, 3)).sub(shift.amin((2, 3))).max() < 1e-5
    assert 0 < shift.abs().max() <= 0.4


def test_bias_field_is_smooth_and_multiplicative():
    u = images((1, 1, 64, 64))
    field = photometric.bias_field(u, None, generator(1), high=0.4) / (u - u.min()).clamp_min(1e-3)
    field = torch.where(u - u.min() > 0.1, field, torch.nan)
    steps = field.diff(dim=-1).nan_to_num()
    assert field.nan_to_num(1).std() > 0.02
    assert steps.abs().max() < 0.1


@pytest.mark.parametrize("shape", [(2, 1, 33, 20), (2, 1, 9, 14, 20)])
def test_blur_is_the_gaussian_filter(shape):
    from scipy.ndimage import gaussian_filter1d

    u, sigma = images(shape), torch.tensor([0.8, 1.4]).view(2, *[1] * (len(shape) - 1))
    got = photometric._smooth(u, sigma)
    for sample, s in enumerate((0.8, 1.4)):
        expected = u[sample, 0].double().numpy()
        for axis in range(expected.ndim):
            expected = gaussian_filter1d(expected, s, axis=axis, truncate=6, mode="constant")
        # borders are normalised here and padded with 0 there
        inner = tuple(slice(9, -9) if n > 18 else slice(n // 2, n // 2 + 1) for n in expected.shape)
        tolerance = 1e-5 if min(shape[2:]) > 18 else 3e-2
        assert abs(got[sample, 0].numpy()[inner] - expected[inner]).max() < tolerance
    ones = torch.ones(shape)
    assert torch.allclose(photometric._smooth(ones, sigma), ones, atol=1e-6)


def test_sharpen_is_the_opposite_of_blur():
    u = images((1, 1, 48, 48))
    edges = [
        x.diff(dim=-1).square().mean().item()
        for x in (
            photometric.blur(u, None, generator(), low=1.0, high=1.0),
            u,
            photometric.sharpen(u, None, generator(), high=2.0),
        )
    ]
    assert edges[0] < edges[1] < edges[2]


def test_low_resolution_keeps_place_and_loses_detail():
    u = images((1, 1, 48, 48))
    v = photometric.low_resolution(u, None, generator(), low=0.5, high=0.5)
    assert correlation(u, v) > 0.9
    assert v.diff(dim=-1).square().mean() < u.diff(dim=-1).square().mean()
    assert torch.allclose(photometric.low_resolution(u, None, generator(), low=1, high=1), u, atol=1e-6)


def test_noise_has_the_drawn_strength():
    u = images((64, 1, 32, 32))
    strength = (photometric.noise(u, None, generator(), high=0.3) - u).std((1, 2, 3))
    assert strength.max() < 0.33 and strength.min() < 0.05
    assert strength.mean().item() == pytest.approx(0.15, abs=0.03)


def test_invert():
    u = images((2, 1, 8, 8))
    assert torch.equal(photometric.invert(u, None, generator()), -u)


@pytest.mark.parametrize("op", [photometric.gin, photometric.random_convolution])
def test_random_networks_work_on_each_sample_alone(op):
    """A sample does not leak into its neighbours."""
    u = images((3, 2, 24, 24))
    v = op(u, None, generator(2))
    changed = u.clone()
    changed[1] = images((1, 2, 24, 24), seed=9)[0]
    w = op(changed, None, generator(2))
    assert torch.equal(v[0], w[0]) and torch.equal(v[2], w[2])
    assert not torch.allclose(v[1], w[1])


def test_random_kernels_differ_between_samples_and_draw_no_frame():
    u = images((1, 2, 24, 24)).repeat(3, 1, 1, 1)
    v = photometric._random_conv(u, 2, 3, generator(2))
    assert v.shape == u.shape
    assert abs(correlation(v[0], v[1])) < 0.99 and abs(correlation(v[1], v[2])) < 0.99
    flat = photometric._random_conv(torch.ones(2, 1, 6, 7, 8), 3, 3, generator(2))
    assert torch.allclose(flat, flat[..., :1, :1, :1].expand_as(flat), atol=1e-5)


def test_gin_bends_intensities():
    """Not a linear map of the image: a linear fit of the output on the input leaves a residual."""
    u = images((8, 1, 32, 32))
    v = photometric.gin(u, None, generator(3))
    residual = [math.sqrt(1 - min(1, correlation(a, b) ** 2)) for a, b in zip(u, v, strict=True)]
    assert max(residual) > 0.1


def test_fourier_keeps_the_phase_and_takes_the_partners_amplitude():
    u = images((2, 1, 32, 32))
    v = photometric.fourier(u, None, generator(4), low=0.3, high=0.3)
    before, after = torch.fft.rfft2(u), torch.fft.rfft2(v)
    angle = (after / before).angle()[..., 1:12, 1:12]
    assert angle.abs().max() < 1e-2
    frequency = torch.fft.fftfreq(32).abs()[:, None], torch.fft.rfftfreq(32)[None]
    inside = (frequency[0] <= 0.15) & (frequency[1] <= 0.15)
    assert torch.allclose(before.abs()[..., ~inside], after.abs()[..., ~inside], atol=1e-3)
    share = (after.abs() - before.abs()) / (before.abs().flip(0) - before.abs())
    for sample in share[:, 0, inside]:
        middle = sample.median()
        assert 0 <= middle <= 1
        assert (sample - middle).abs().median() < 1e-3
