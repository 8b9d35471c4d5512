"""Operations on intensities, of which the views are made: gamma, blur, bias field, random convolutions, ...

Each takes standardised images `(B, C, *S)`, the valid pixels or None (all), a generator and its ranges, and returns images
`(B, C, *S)`. Nothing moves: the annotation stays aligned.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_CONV = {2: F.conv2d, 3: F.conv3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}
# patches flatter than this (air only) are left as they are
_SMALLEST_STD = 1e-5


def gamma(u: Tensor, valid: Tensor | None, generator: Generator, low: float, high: float) -> Tensor:
    """Power law between the patch's darkest and brightest pixel; exponent log-uniform in [low, high]."""
    dark, bright = _extremes(u, valid)
    scaled = ((u - dark) / (bright - dark).clamp_min(_SMALLEST_STD)).clamp_(0, 1)
    return scaled.pow_(_log_uniform(u, generator, low, high))


def contrast(u: Tensor, valid: Tensor | None, generator: Generator, low: float, high: float) -> Tensor:
    """Scale about the mean, by a factor log-uniform in [low, high]."""
    return u * _log_uniform(u, generator, low, high)


def brightness(u: Tensor, valid: Tensor | None, generator: Generator, high: float) -> Tensor:
    """Shift by up to ``high`` standard deviations."""
    return u + _uniform(u, generator, -high, high)


def bias_field(u: Tensor, valid: Tensor | None, generator: Generator, high: float, nodes: int = 4) -> Tensor:
    """Smooth multiplicative field (coil sensitivity, vignetting): exp of a random coarse grid, all channels alike.

    The standard deviation of the log-field is uniform in [0, high]. It multiplies the height above the darkest pixel.
    """
    axes = u.ndim - 2
    grid = torch.randn((len(u), 1, *(nodes,) * axes), generator=generator, device=u.device, dtype=u.dtype)
    grid = grid * _uniform(u, generator, 0, high, channels=1)
    field_ = F.interpolate(grid, u.shape[2:], mode=_LINEAR[axes], align_corners=True).exp_()
    dark, _ = _extremes(u, valid)
    return (u - dark) * field_


def blur(u: Tensor, valid: Tensor | None, generator: Generator, low: float, high: float) -> Tensor:
    """Gaussian blur; sigma uniform in [low, high] pixels."""
    return _smooth(u, _uniform(u, generator, low, high, channels=1))


def sharpen(u: Tensor, valid: Tensor | None, generator: Generator, high: float, sigma: float = 1.0) -> Tensor:
    """Unsharp mask of strength uniform in [0, high]."""
    smooth = _smooth(u, u.new_full((len(u), *[1] * (u.ndim - 1)), sigma))
    return u + _uniform(u, generator, 0, high, channels=1) * (u - smooth)


def low_resolution(u: Tensor, valid: Tensor | None, generator: Generator, low: float, high: float) -> Tensor:
    """Sample down by nearest neighbours and up again linearly; zoom uniform in [low, high]."""
    mode = _LINEAR[u.ndim - 2]
    views = []
    for sample, zoom in zip(u.split(1), _uniform(u, generator, low, high, channels=1).flatten().tolist(), strict=True):
        size = [max(1, round(n * zoom)) for n in u.shape[2:]]
        small = F.interpolate(sample, size, mode="nearest-exact")
        views.append(F.interpolate(small, u.shape[2:], mode=mode, align_corners=False))
    return torch.cat(views)


def noise(u: Tensor, valid: Tensor | None, generator: Generator, high: float) -> Tensor:
    """Add Gaussian noise of standard deviation uniform in [0, high] of the patch's."""
    drawn = torch.randn(u.shape, generator=generator, device=u.device, dtype=u.dtype)
    return u + drawn.mul_(_uniform(u, generator, 0, high, channels=1))


def invert(u: Tensor, valid: Tensor | None, generator: Generator) -> Tensor:
    """Dark becomes bright, as between MR sequences."""
    return -u


def gin(u: Tensor, valid: Tensor | None, generator: Generator, layers: int = 4, width: int = 2) -> Tensor:
    """Global intensity non-linearity: a random shallow network per sample, mixed with the image by a random alpha.

    Source: Ouyang et al., "Causality-inspired single-source domain generalization for medical image segmentation",
    IEEE TMI 2022: four layers of two channels, kernels of 1 or 3 pixels, leaky ReLU, Gaussian weights and shifts, the
    image's energy preserved. Here the network's output is standardised before the mixing too, so that alpha means the
    same for every kernel drawn.
    """
    batch, channels, axes = len(u), u.shape[1], u.ndim - 2
    widths = [channels, *[width] * (layers - 1), channels]
    sizes = torch.randint(0, 2, (layers,), generator=generator, device=u.device).tolist()
    y = u
    for i, big in enumerate(sizes):
        y = _random_conv(y, widths[i + 1], 3 if big else 1, generator)
        y = y + torch.randn((batch, widths[i + 1], *[1] * axes), generator=generator, device=u.device, dtype=u.dtype)
        if i < layers - 1:
            y = F.leaky_relu_(y, 0.01)
    return _mix(u, y, valid, generator)


def random_convolution(u: Tensor, valid: Tensor | None, generator: Generator) -> Tensor:
    """One random convolution per sample, mixed with the image by a random alpha.

    Source: Xu et al., "Robust and generalizable visual representation learning via random convolutions", ICLR 2021.
    The kernel has 1, 3, 5 or 7 pixels a side (3-D: 1 or 3, the cost grows with the cube), one size per batch.
    """
    sizes = (1, 3, 5, 7) if u.ndim == 4 else (1, 3)
    pick = int(torch.randint(0, len(sizes), (1,), generator=generator, device=u.device))
    return _mix(u, _random_conv(u, u.shape[1], sizes[pick], generator), valid, generator)


def fourier(u: Tensor, valid: Tensor | None, generator: Generator, low: float, high: float) -> Tensor:
    """Mix low-frequency amplitudes with those of another sample; the phase, hence the anatomy, stays.

    Source: Yang and Soatto, "FDA: Fourier domain adaptation", CVPR 2020 (window of low frequencies), with the random
    mixing weight of Xu et al., "A Fourier-based framework for domain generalization", CVPR 2021. The window's half
    width is uniform in [low, high] of the Nyquist frequency. A single sample has no partner and comes back unchanged.
    """
    if len(u) < 2:
        return u
    axes = tuple(range(2, u.ndim))
    spectrum = torch.fft.rfftn(u, dim=axes)
    amplitude = spectrum.abs()
    turn = int(torch.randint(1, len(u), (1,), generator=generator, device=u.device))
    partner = amplitude.roll(turn, 0)
    width, alpha = _uniform(u, generator, low, high, channels=1), _uniform(u, generator, 0, 1, channels=1)
    inside = torch.ones_like(amplitude, dtype=torch.bool)
    for axis in axes:
        n = u.shape[axis]
        frequency = torch.fft.rfftfreq(n, device=u.device) if axis == axes[-1] else torch.fft.fftfreq(n, device=u.device)
        shape = [1] * u.ndim
        shape[axis] = -1
        inside &= frequency.abs().view(shape) <= width / 2
    mixed = torch.where(inside, amplitude + alpha * (partner - amplitude), amplitude)
    return torch.fft.irfftn(spectrum * (mixed / amplitude.clamp_min(1e-8)), s=u.shape[2:], dim=axes)


def _uniform(u: Tensor, generator: Generator, low: float, high: float, channels: int | None = None) -> Tensor:
    """One number per sample and channel (``channels=1``: per sample) that broadcasts against ``u``."""
    shape = (len(u), channels or u.shape[1], *[1] * (u.ndim - 2))
    return low + (high - low) * torch.rand(shape, generator=generator, device=u.device, dtype=u.dtype)


def _log_uniform(u: Tensor, generator: Generator, low: float, high: float) -> Tensor:
    return _uniform(u, generator, math.log(low), math.log(high)).exp_()


def _axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel `(B, C, 1, ...)`, over the valid pixels."""
    if valid is None:
        variance, mean = torch.var_mean(x, _axes(x), correction=0, keepdim=True)
        return mean, variance.sqrt()
    count = valid.sum(_axes(x), keepdim=True).clamp_min(1)
    mean = (x * valid).sum(_axes(x), keepdim=True) / count
    return mean, (((x - mean) * valid).square().sum(_axes(x), keepdim=True) / count).sqrt()


def standardise(x: Tensor, valid: Tensor | None) -> Tensor:
    """Every channel with mean 0 and standard deviation 1 over the valid pixels, zero outside them."""
    mean, std = moments(x, valid)
    return blank((x - mean) / std.clamp_min(_SMALLEST_STD), valid)


def blank(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero outside the field of view: in standardised images the mean, which blurs and convolutions can live with."""
    return x if valid is None else x.masked_fill(~valid, 0)


def _extremes(u: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    # outside the field of view u is 0, the mean, so it is never an extreme
    return u.amin(_axes(u), keepdim=True), u.amax(_axes(u), keepdim=True)


def _smooth(u: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian smoothing, one sigma `(B, 1, 1...)` per sample, by one banded matrix per axis.

    Matrix products beat depthwise 3-D convolutions on a CPU, take a sigma per sample, and the normalised rows need no
    padding at the border.
    """
    for axis in _axes(u):
        place = torch.arange(u.shape[axis], device=u.device, dtype=u.dtype)
        distance = (place[:, None] - place[None]).square()
        weight = torch.exp(-distance / (2 * sigma.view(-1, 1, 1).square()))
        weight = weight / weight.sum(-1, keepdim=True)
        moved = u.movedim(axis, -1)
        smoothed = moved.reshape(len(u), -1, u.shape[axis]) @ weight.transpose(1, 2)
        u = smoothed.view(moved.shape).movedim(-1, axis)
    return u.contiguous()


def _random_conv(u: Tensor, out_channels: int, size: int, generator: Generator) -> Tensor:
    """A convolution with its own Gaussian kernel for every sample; variance-preserving, same shape."""
    batch, channels, axes = len(u), u.shape[1], u.ndim - 2
    shape = (batch * out_channels, channels, *(size,) * axes)
    kernel = torch.randn(shape, generator=generator, device=u.device, dtype=u.dtype)
    kernel = kernel / math.sqrt(channels * size**axes)
    grouped = u.reshape(1, batch * channels, *u.shape[2:])
    if size > 1:
        # zeros around the patch would draw a frame that no scanner draws
        grouped = F.pad(grouped, (size // 2,) * (2 * axes), mode="replicate")
    return _CONV[axes](grouped, kernel, groups=batch).view(batch, out_channels, *u.shape[2:])


def _mix(u: Tensor, y: Tensor, valid: Tensor | None, generator: Generator) -> Tensor:
    alpha = _uniform(u, generator, 0, 1, channels=1)
    return alpha * standardise(y, valid) + (1 - alpha) * u
