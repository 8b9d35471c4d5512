"""How a network is cut into stages: the only file that knows the inside of an encoder-decoder network.

nnU-Net's PlainConvUNet and ResidualEncoderUNet compute ``decoder(encoder(x))`` where the encoder returns one feature per
stage, bottleneck last. Any entry of that list can be read, or replaced by a reconstruction, before the decoder runs. Decoder
stages can be read only. A list of features holds the encoder's, highest resolution first, and behind them, where a decoder
stage is asked for, the decoder's in the same order: stage ``depth + i`` is the decoder's at the encoder's resolution i.
Stages of two networks are paired by their cumulative stride, so they may differ in depth, width and family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn

from nnunet_kd.utils.errors import KDError, NotSupported


@dataclass(frozen=True)
class StageTable:
    """The encoder's stages: ``channels[i]`` and cumulative ``strides[i]`` (one entry per spatial axis).

    nnU-Net's decoders have the encoder's channels and strides at every resolution but the lowest.
    """

    family: str
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @classmethod
    def from_lists(cls, family: str, channels: Sequence[int], strides: Sequence[Sequence[int]]) -> StageTable:
        """The table as the plans file keeps it."""
        return cls(family, tuple(channels), tuple(tuple(s) for s in strides))

    @property
    def depth(self) -> int:
        return len(self.channels)

    def size(self, stage: int, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of a stage's feature for a patch (strided convolutions round up)."""
        return tuple(-(-p // s) for p, s in zip(patch_size, self.strides[stage % self.depth], strict=True))

    def width(self, stage: int) -> int:
        """Channels of an encoder or decoder stage's feature."""
        return self.channels[stage % self.depth]


class StagePair(NamedTuple):
    """A teacher stage and the student stage of the same cumulative stride."""

    name: str
    teacher: int
    student: int
    decoder: bool = False


def unwrap(network: nn.Module) -> nn.Module:
    """The plain network inside DistributedDataParallel and torch.compile."""
    inner: Any = network  # a module's attributes have no types
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        else:
            return inner


def stage_table(network: nn.Module) -> StageTable:
    """Read the stage table off a network.

    Raises:
        NotSupported: the network has no encoder-decoder split (Primus and other transformers).
    """
    network = unwrap(network)
    encoder = getattr(network, "encoder", None)
    if encoder is None or not hasattr(network, "decoder") or not hasattr(encoder, "strides"):
        raise no_stages(type(network).__name__)
    strides = list(accumulate((tuple(s) for s in encoder.strides), lambda a, b: tuple(x * y for x, y in zip(a, b))))  # noqa: B905
    return StageTable(type(network).__name__, tuple(encoder.output_channels), tuple(strides))


def no_stages(family: str) -> NotSupported:
    """What to say when something reads stage features of a network that has none."""
    return NotSupported(
        f"{family} has no encoder stages with strides, so MSANs and losses between stages cannot work on it: distil its logits "
        "(-tr nnUNetTrainerKD or nnUNetTrainerKDViews)"
    )


def encode(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Features of all encoder stages, ``(B, C_i, *S_i)``, bottleneck last."""
    inner: Any = unwrap(network)
    return inner.encoder(x)


def decode(network: nn.Module, features: list[torch.Tensor]) -> torch.Tensor:
    """Full-resolution logits ``(B, L, *S)`` from a list of stage features (deep supervision heads are not returned)."""
    inner: Any = unwrap(network)
    logits = inner.decoder(features[: len(inner.encoder.output_channels)])
    return logits[0] if isinstance(logits, list | tuple) else logits


def swap(features: list[torch.Tensor], replacements: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """A copy of the feature list with some stages replaced by ``{stage: feature}`` of the same shape."""
    swapped = list(features)
    for stage, feature in replacements.items():
        swapped[stage] = feature
    return swapped


def pair_stages(
    teacher: StageTable, student: StageTable, wanted: Sequence[str | int], key: str = "nnunet_kd.msan.stages"
) -> list[StagePair]:
    """Pair stages by cumulative stride.

    Args:
        wanted: "bottleneck" (the deepest stage both networks have), "all" (every encoder stage both have), numbers of the
            student's encoder stages, "decoder" (every decoder stage both have), or "decoder0", "decoder1", ... for the
            decoder stage at the resolution of that encoder stage.
        key: the setting that asks, for messages.

    Raises:
        KDError: no common stride for a wanted stage.
    """
    # of several stages at one resolution, the last: its feature has seen the others'
    of_teacher, of_student = ({stride: i for i, stride in enumerate(table.strides)} for table in (teacher, student))
    common = [
        StagePair("x".join(map(str, stride)), of_teacher[stride], i) for stride, i in of_student.items() if stride in of_teacher
    ]
    if not common:
        raise KDError(
            f"no stage pair: the teacher's cumulative strides {list(teacher.strides)} and the student's "
            f"{list(student.strides)} have none in common; plan the student from this teacher with `nnunet-kd plan`"
        )
    depth = teacher.depth, student.depth
    # neither network's lowest resolution has a decoder stage
    upward = [
        StagePair(f"decoder_{p.name}", depth[0] + p.teacher, depth[1] + p.student, decoder=True)
        for p in common
        if p.teacher < depth[0] - 1 and p.student < depth[1] - 1
    ]
    pairs: dict[int, StagePair] = {}
    for item in wanted:
        if item == "decoder":
            chosen = upward
        elif isinstance(item, str) and item.startswith("decoder"):
            chosen = [p for p in upward if f"decoder{p.student - depth[1]}" == item]
        elif item == "bottleneck":
            chosen = [common[-1]]
        elif item == "all":
            chosen = common
        elif isinstance(item, int):
            chosen = [p for p in common if p.student == item]
        else:
            raise KDError(
                f'unknown stage "{item}" in "{key}": use "bottleneck", "all", a stage number, "decoder" or '
                '"decoder0", "decoder1", ...'
            )
        if not chosen:
            have: dict[int | str, str] = {p.student: p.name for p in common}
            have |= {f"decoder{p.student - depth[1]}": p.name for p in upward}
            raise KDError(
                f'"{key}": student stage {item} has no teacher stage of the same stride; stages that have one: {have}'
            )
        pairs.update({p.student: p for p in chosen})
    return [pairs[i] for i in sorted(pairs)]


class StageTap:
    """Keeps a network's stage features of the last forward, so that distilling needs no second encoder pass.

    Hooks sit on the encoder as a whole and on whole decoder stages: a hook on a norm inside a block would be overwritten by
    nnU-Net's in-place activations. They must be placed before the first call of a compiled network.

    Args:
        decoder: keep the decoder's stages too.
    """

    def __init__(self, network: nn.Module, decoder: bool = False) -> None:
        self.enabled = False
        self.features: list[torch.Tensor] | None = None
        inner: Any = unwrap(network)
        self._hooks = [inner.encoder.register_forward_hook(self._keep_encoder)]
        if decoder:
            self._hooks += [module.register_forward_hook(self._keep_decoder) for module in inner.decoder.stages]

    def _keep_encoder(self, module: nn.Module, inputs: tuple, output: list[torch.Tensor]) -> None:
        if self.enabled:
            self.features = list(output)
            self._depth = len(output)

    def _keep_decoder(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        # the decoder runs from low to high resolution, the list is kept from high to low
        if self.enabled:
            assert self.features is not None, "the encoder runs before its decoder"
            self.features.insert(self._depth, output)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> list[torch.Tensor]:
        """The features, handed over once so that none outlives its step, and nothing more is kept until enabled again."""
        features, self.features, self.enabled = self.features, None, False
        if features is None:
            raise RuntimeError("the network's encoder has not run since the last step")
        return features
