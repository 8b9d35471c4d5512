"""Photometric views of a batch: the same anatomy as another scanner, camera or protocol might show it.

Only intensities change, so the annotation and every feature map stay aligned with those of the anchor. Images arrive as
nnU-Net's networks see them (z-scored, or scaled by the data set's statistics), so every operation works on a patch that
is standardised per sample and channel, and the view goes back to about the patch's own mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from nnunet_kd.augmentation.photometric import (
    bias_field,
    blank,
    blur,
    brightness,
    contrast,
    fourier,
    gamma,
    gin,
    low_resolution,
    moments,
    noise,
    random_convolution,
    sharpen,
    standardise,
)
from nnunet_kd.losses.precision import full_precision


@dataclass(frozen=True)
class ViewStep:
    """An operation within a preset: how often, in what range, and whether mean and spread are restored after it."""

    function: Callable[..., Tensor]
    probability: float
    options: dict[str, float] = field(default_factory=dict)
    restore: bool = True


VIEW_PRESETS: dict[str, tuple[ViewStep, ...]] = {
    "light": (
        ViewStep(gamma, 0.8, {"low": 0.7, "high": 1.5}),
        ViewStep(contrast, 0.8, {"low": 0.75, "high": 1.25}, restore=False),
        ViewStep(brightness, 0.8, {"high": 0.2}, restore=False),
        ViewStep(noise, 0.5, {"high": 0.15}, restore=False),
    ),
    "strong": (
        ViewStep(gin, 0.5),
        ViewStep(gamma, 0.8, {"low": 0.5, "high": 2.0}),
        ViewStep(bias_field, 0.5, {"high": 0.4}),
        ViewStep(blur, 0.25, {"low": 0.5, "high": 1.5}),
        ViewStep(low_resolution, 0.25, {"low": 0.5, "high": 1.0}),
        ViewStep(contrast, 0.8, {"low": 0.65, "high": 1.5}, restore=False),
        ViewStep(brightness, 0.8, {"high": 0.4}, restore=False),
        ViewStep(noise, 0.5, {"high": 0.3}, restore=False),
    ),
    # photometric part of Zhang et al., "Generalizing deep learning for medical image segmentation to unseen domains via
    # deep stacked transformation", IEEE TMI 2020: every step at 0.5; the ranges are ours, for standardised patches
    "bigaug": (
        ViewStep(sharpen, 0.5, {"high": 3.0}),
        ViewStep(blur, 0.5, {"low": 0.25, "high": 1.5}),
        # before the steps that change mean and spread: it restores both
        ViewStep(gamma, 0.5, {"low": 0.5, "high": 4.5}),
        ViewStep(contrast, 0.5, {"low": 0.7, "high": 1.4}, restore=False),
        ViewStep(brightness, 0.5, {"high": 0.3}, restore=False),
        ViewStep(noise, 0.5, {"high": 0.5}, restore=False),
    ),
    "gin": (ViewStep(gin, 1.0),),
    "randconv": (ViewStep(random_convolution, 1.0),),
    "fourier": (ViewStep(fourier, 1.0, {"low": 0.05, "high": 0.3}),),
}


class Views:
    """Draws one photometric view of every sample of a batch.

    Args:
        preset: a name in :data:`VIEW_PRESETS`.
        keep_zero: per channel, whether pixels that are exactly 0 lie outside the field of view (nnU-Net's
            ``use_mask_for_norm``). They stay exactly 0 and take no part in any statistics. None: no channel.

    Raises:
        ValueError: unknown preset.
    """

    def __init__(self, preset: str = "light", keep_zero: Sequence[bool] | None = None) -> None:
        if preset not in VIEW_PRESETS:
            raise ValueError(f'unknown view preset "{preset}", use one of {", ".join(list_presets())}')
        self.preset = preset
        self.keep_zero = None if keep_zero is None else tuple(bool(k) for k in keep_zero)

    @torch.no_grad()
    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """One view of each sample.

        Args:
            x: images `(B, C, *S)`; not modified.
            generator: source of all randomness, on the device of ``x``. torch's global generator is not touched.

        Returns:
            `(B, C, *S)` in the dtype of ``x``.

        Raises:
            ValueError: ``keep_zero`` does not have one entry per channel.
        """
        if self.keep_zero is not None and len(self.keep_zero) != x.shape[1]:
            raise ValueError(f"keep_zero has {len(self.keep_zero)} entries for images of {x.shape[1]} channels")
        return self._draw(x, generator).to(x.dtype)

    @full_precision
    def _draw(self, x: Tensor, generator: Generator) -> Tensor:
        valid = self._valid(x)
        mean, std = moments(x, valid)
        u = standardise(x, valid)
        for step in VIEW_PRESETS[self.preset]:
            chosen = torch.rand(len(x), generator=generator, device=x.device) < step.probability
            index = chosen.nonzero()[:, 0]
            if len(index) == 0:
                continue
            part = None if valid is None else valid[index]
            changed = step.function(u[index], part, generator, **step.options)
            u[index] = standardise(changed, part) if step.restore else blank(changed, part)
        return blank(u * std + mean, valid)

    def _valid(self, x: Tensor) -> Tensor | None:
        if self.keep_zero is None or not any(self.keep_zero):
            return None
        ignore_zero = torch.tensor(self.keep_zero, device=x.device).view(-1, *[1] * (x.ndim - 2))
        return (x != 0) | ~ignore_zero


def list_presets() -> list[str]:
    """The names :class:`Views` knows."""
    return list(VIEW_PRESETS)
