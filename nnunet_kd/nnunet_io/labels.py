"""nnU-Net's training target in the forms the terms read: one-hot, class numbers, and where it is valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager


class Annotations:
    """Turns the full-resolution target ``(B, 1, *S)`` (or ``(B, regions[+1], *S)``) of nnU-Net's loader into tensors.

    With regions, which may overlap, a pixel's class is the combination of regions it lies in: combination 0 is background.
    """

    def __init__(self, labels: LabelManager) -> None:
        self.labels = labels
        self.heads = labels.num_segmentation_heads
        codes = {0}
        if labels.has_regions:
            # 1, (1, 2), ...: a region is a label or a tuple of labels
            regions = [r if isinstance(r, tuple | list) else (r,) for r in labels.foreground_regions]
            codes |= {sum((label in r) << i for i, r in enumerate(regions)) for label in labels.all_labels}
        self._codes = sorted(codes)

    @property
    def num_classes(self) -> int:
        """Annotated classes, background included."""
        return len(self._codes) if self.labels.has_regions else self.heads

    def mask(self, target: torch.Tensor) -> torch.Tensor | None:
        """``(B, 1, *S)``, True where annotated; None without an ignore label."""
        if not self.labels.has_ignore_label:
            return None
        return ~target[:, -1:].bool() if self.labels.has_regions else target != self.labels.ignore_label

    def onehot(self, target: torch.Tensor) -> torch.Tensor:
        """``(B, heads, *S)`` floats, 0 everywhere on ignored pixels of a target without regions."""
        if self.labels.has_regions:
            return target[:, : self.heads].float()
        classes = torch.arange(self.heads, device=target.device).view(1, self.heads, *[1] * (target.ndim - 2))
        return (target == classes).float()

    def classes(self, target: torch.Tensor) -> torch.Tensor:
        """Class numbers ``(B, *S)``, -1 on ignored pixels."""
        if self.labels.has_regions:
            bits = torch.tensor([1 << i for i in range(self.heads)], device=target.device)
            code = (target[:, : self.heads].long() * bits.view(1, -1, *[1] * (target.ndim - 2))).sum(1)
            codes = torch.tensor(self._codes, device=target.device)
            class_numbers = torch.searchsorted(codes, code).clamp(max=len(codes) - 1)
            # augmentation interpolates regions one by one, so that combinations no label has turn up at borders
            class_numbers = torch.where(codes[class_numbers] == code, class_numbers, -1)
        else:
            class_numbers = target[:, 0].long()
            # the ignore label, and whatever else is not a class
            class_numbers = torch.where((class_numbers >= 0) & (class_numbers < self.heads), class_numbers, -1)
        mask = self.mask(target)
        return class_numbers if mask is None else torch.where(mask[:, 0], class_numbers, -1)
