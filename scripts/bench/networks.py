"""Untrained networks of the benchmarks: nnU-Net's plain U-Net, and one of MobileNetV2's blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


def plain_unet(dims: int, features: Sequence[int]) -> PlainConvUNet:
    """nnU-Net's PlainConvUNet as its planner sets it up: one channel in, two classes out, no deep supervision."""
    torch.manual_seed(0)
    return PlainConvUNet(
        1,
        len(features),
        list(features),
        _conv(dims),
        3,
        [1] + [2] * (len(features) - 1),
        2,
        2,
        2,
        conv_bias=True,
        norm_op=_norm(dims),
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    ).eval()


def mobile_unet(dims: int, features: Sequence[int]) -> nn.Module:
    """A U-Net of MobileNetV2's inverted residuals (expansion 6, depthwise 3x3), as the paper's students are described.

    It is here and not in a plans file: dynamic_network_architectures has no depthwise U-Net, and plans may name nothing else.
    """
    torch.manual_seed(0)
    return _MobileUNet(dims, list(features)).eval()


class _MobileUNet(nn.Module):
    def __init__(self, dims: int, features: list[int]) -> None:
        super().__init__()
        widths = [1, *features]
        self.stem = nn.Sequential(_conv(dims)(1, features[0], 3, padding=1, bias=False), _norm(dims)(features[0], affine=True))
        self.down = nn.ModuleList(
            nn.Sequential(_Block(dims, widths[i] if i else features[0], f, 2 if i else 1), _Block(dims, f, f))
            for i, f in enumerate(features)
        )
        pairs = list(zip(features[:-1], features[1:], strict=True))[::-1]
        self.up = nn.ModuleList((nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(nn.Sequential(_Block(dims, 2 * a, a), _Block(dims, a, a)) for a, _ in pairs)
        self.head = _conv(dims)(features[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.stem(x), []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat((up(x), skip), 1))
        return self.head(x)


class _Block(nn.Module):
    """Pointwise to six times the channels, depthwise 3x3, pointwise back; the input is added where the shapes allow."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        conv, norm, wide = _conv(dims), _norm(dims), inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            conv(inputs, wide, 1, bias=False),
            norm(wide, affine=True),
            nn.ReLU6(),
            conv(wide, wide, 3, stride, 1, groups=wide, bias=False),
            norm(wide, affine=True),
            nn.ReLU6(),
            conv(wide, outputs, 1, bias=False),
            norm(outputs, affine=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


def _conv(dims: int) -> type[nn.Module]:
    return nn.Conv2d if dims == 2 else nn.Conv3d


def _norm(dims: int) -> type[nn.Module]:
    return nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
