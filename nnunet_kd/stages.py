"""How a network is cut into stages: the only file that knows the inside of an encoder-decoder network.

nnU-Net's PlainConvUNet and ResidualEncoderUNet compute ``decoder(encoder(x))`` where the encoder returns one feature per
stage, bottleneck last. Any entry of that list can be read, or replaced by a reconstruction, before the decoder runs.
Stages of two networks are paired by their cumulative stride, so they may differ in depth, width and family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import nn

from nnunet_kd.errors import KDError


@dataclass(frozen=True)
class StageTable:
    """The encoder's stages: ``channels[i]`` and cumulative ``strides[i]`` (one entry per spatial axis)."""

    family: str
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @classmethod
    def from_lists(cls, family: str, channels: Sequence[int], strides: Sequence[Sequence[int]]) -> StageTable:
        """The table as the plans file keeps it."""
        return cls(family, tuple(channels), tuple(tuple(s) for s in strides))

    def size(self, stage: int, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of a stage's feature for a patch (strided convolutions round up)."""
        return tuple(-(-p // s) for p, s in zip(patch_size, self.strides[stage], strict=True))


class StagePair(NamedTuple):
    """A teacher stage and the student stage of the same cumulative stride."""

    name: str
    teacher: int
    student: int


def unwrap(network: nn.Module) -> nn.Module:
    """The plain network inside DistributedDataParallel and torch.compile."""
    while True:
        if hasattr(network, "_orig_mod"):
            network = network._orig_mod
        elif isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        else:
            return network


def stage_table(network: nn.Module) -> StageTable:
    """Read the stage table off a network.

    Raises:
        KDError: the network has no encoder-decoder split (Primus and other transformers).
    """
    network = unwrap(network)
    encoder = getattr(network, "encoder", None)
    if encoder is None or not hasattr(network, "decoder") or not hasattr(encoder, "strides"):
        raise KDError(
            f"{type(network).__name__} has no encoder stages with strides, so MSAN terms (intra, inter, cross) cannot work on "
            "it: use logit distillation (-tr nnUNetTrainerKD)"
        )
    strides = list(accumulate((tuple(s) for s in encoder.strides), lambda a, b: tuple(x * y for x, y in zip(a, b))))  # noqa: B905
    return StageTable(type(network).__name__, tuple(encoder.output_channels), tuple(strides))


def encode(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Features of all encoder stages, ``(B, C_i, *S_i)``, bottleneck last."""
    return unwrap(network).encoder(x)


def decode(network: nn.Module, features: list[torch.Tensor]) -> torch.Tensor:
    """Full-resolution logits ``(B, L, *S)`` from a list of stage features (deep supervision heads are not returned)."""
    logits = unwrap(network).decoder(features)
    return logits[0] if isinstance(logits, list | tuple) else logits


def swap(features: list[torch.Tensor], replacements: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """A copy of the feature list with some stages replaced by ``{stage: feature}`` of the same shape."""
    swapped = list(features)
    for stage, feature in replacements.items():
        swapped[stage] = feature
    return swapped


def pair_stages(teacher: StageTable, student: StageTable, wanted: Sequence[str | int]) -> list[StagePair]:
    """Pair stages by cumulative stride.

    Args:
        wanted: "bottleneck" (the deepest stage both networks have), "all" (every stage both have), or numbers of the
            student's encoder stages.

    Raises:
        KDError: no common stride for a wanted stage.
    """
    common = [
        StagePair("x".join(map(str, stride)), teacher.strides.index(stride), i)
        for i, stride in enumerate(student.strides)
        if stride in teacher.strides
    ]
    if not common:
        raise KDError(
            f"no stage pair: the teacher's cumulative strides {list(teacher.strides)} and the student's "
            f"{list(student.strides)} have none in common; plan the student from this teacher with `nnunet-kd plan`"
        )
    pairs: dict[int, StagePair] = {}
    for item in wanted:
        if item == "bottleneck":
            found = [common[-1]]
        elif item == "all":
            found = common
        elif isinstance(item, int):
            found = [p for p in common if p.student == item]
        else:
            raise KDError(f'unknown stage "{item}" in "nnunet_kd.msan.stages": use "bottleneck", "all" or a stage number')
        if not found:
            have = {p.student: p.name for p in common}
            raise KDError(f"student stage {item} has no teacher stage of the same stride; stages that have one: {have}")
        pairs.update({p.student: p for p in found})
    return [pairs[i] for i in sorted(pairs)]


class EncoderTap:
    """Keeps the student's stage features of the last forward, so that distilling needs no second encoder pass.

    The hook sits on the encoder as a whole: a hook on a norm inside a block would be overwritten by nnU-Net's in-place
    activations. It must be placed before the first call of a compiled network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.enabled = False
        self.features: list[torch.Tensor] | None = None
        unwrap(network).encoder.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: list[torch.Tensor]) -> None:
        if self.enabled:
            self.features = list(output)

    def take(self) -> list[torch.Tensor]:
        """The features, handed over once so that none outlives its step."""
        features, self.features = self.features, None
        if features is None:
            raise RuntimeError("the student's encoder has not run since the last step")
        return features
