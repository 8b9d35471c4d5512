"""A frozen teacher: one network, or several folds' networks as one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from nnunet_kd.augmentation.mirroring import Axes, mirrorings_of


class FrozenTeacher(nn.Module):
    """The teacher's network with frozen parameters. It always stays in eval mode and never in an optimizer.

    ``mirror_axes``: the spatial axes along which it may be mirrored, since it was trained so.
    """

    def __init__(self, network: nn.Module, mirror_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.mirror_axes = tuple(mirror_axes)

    @property
    def mirrorings(self) -> list[Axes]:
        """Every way to mirror a batch along these axes."""
        return mirrorings_of(self.mirror_axes)

    def train(self, mode: bool = True) -> FrozenTeacher:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def digest(self) -> str:
        """SHA-256 of all weights: the same before and after a training."""
        sha = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


class TeacherEnsemble(FrozenTeacher):
    """Several folds' networks as one teacher: logits whose softmax (sigmoid for regions) is the mean of theirs.

    nnU-Net itself averages logits when it ensembles; a mean of probabilities keeps the folds' disagreement, which is what
    soft targets are for.
    """

    def __init__(self, networks: list[nn.Module], regions: bool, mirror_axes: Sequence[int] = ()) -> None:
        super().__init__(nn.ModuleList(networks), mirror_axes)
        self.regions = regions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([network(x) for network in cast(nn.ModuleList, self.network)]).float()
        if self.regions:
            return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
        return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
