"""CIRKD's second part: how pixels relate to a memory of pixels and regions of earlier batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features, match_channels
from nnunet_kd.losses.labels import class_directions, class_masks
from nnunet_kd.losses.literature.cirkd import check_settings, divergence, exponentials, row_parts, unit_rows
from nnunet_kd.losses.precision import full_precision


class CIRKDMemory(Loss):
    r"""Cross-image relations to a memory of the teacher's pixels and regions of earlier batches.

    .. math:: L = L_{pixel} + L_{region}, \quad L_q = \mathrm{mean}_i \mathrm{KL}(R^t_{qi} \| R^s_{qi}), \quad
        R_{qi} = \mathrm{softmax}_j(\cos(f_i, q_j) / \tau)

    with q_j the entries drawn from a memory, the same for teacher and student, and the mean over the annotated pixels.

    In training mode every call first stores, for each class of each sample, the unit vectors of a few of the teacher's pixels
    and of the mean over the class ("region"), in place of the oldest. The memories are buffers: part of the state_dict, of
    ``classes * (pixel_memory + region_memory) * teacher_channels`` numbers. Empty entries are never used, so that the first
    step already works (the original starts with random vectors).

    It differs from the original in three points: a class's pixels are drawn from that class (there, from the first pixels of
    the image), at most ``max_anchors`` of the batch's annotated pixels are compared (there, all), and the student's channels
    pass through a learned 1x1 convolution only where they differ from the teacher's (there, always through two with a batch
    norm). Under DDP all processes use the memory of the first (DDP broadcasts buffers).

    What is drawn follows from how much has been stored, not from torch's random state: a resumed training goes on alike.

    Source: Yang et al., as :class:`CIRKD`: tau = 0.1, weight 0.1 for both parts, memories of 20000 pixels and 2000 regions
    per class, 4096 and 1024 of which are compared with, 16 pixels stored per class and image.

    Args:
        classes: number of annotated classes, background included.
        student_channels, teacher_channels, dims: see :func:`nnunet_kd.losses.channels.match_channels`.
        temperature: tau, at least 0.03.
        pixel_memory, region_memory: entries per class.
        pixel_contrast, region_contrast: entries drawn per step, of all classes together (one more per class, as there).
        pixels_per_class: stored per class and sample.
        max_anchors: annotated pixels of the batch that are compared; drawn at random if there are more.
    """

    name = "cirkd-memory"
    reads = "features"
    weight = 0.1
    needs_target = True
    pixel_count: Tensor
    region_count: Tensor

    def __init__(
        self,
        *,
        classes: int,
        student_channels: int,
        teacher_channels: int,
        dims: int,
        temperature: float = 0.1,
        pixel_memory: int = 20000,
        region_memory: int = 2000,
        pixel_contrast: int = 4096,
        region_contrast: int = 1024,
        pixels_per_class: int = 16,
        max_anchors: int = 4096,
    ) -> None:
        super().__init__()
        check_settings(
            "CIRKDMemory",
            temperature,
            classes=classes,
            pixel_memory=pixel_memory,
            region_memory=region_memory,
            pixel_contrast=pixel_contrast,
            region_contrast=region_contrast,
            pixels_per_class=pixels_per_class,
            max_anchors=max_anchors,
        )
        self.classes, self.channels, self.temperature = classes, (student_channels, teacher_channels), temperature
        self.pixels_per_class, self.max_anchors = pixels_per_class, max_anchors
        self.contrasts = {"pixel": pixel_contrast // classes + 1, "region": region_contrast // classes + 1}
        self.adapter = match_channels(student_channels, teacher_channels, dims)
        for name, size in (("pixel", pixel_memory), ("region", region_memory)):
            self.register_buffer(f"{name}_memory", torch.zeros(classes, size, teacher_channels))
            # stored since the beginning, per class
            self.register_buffer(f"{name}_count", torch.zeros(classes, dtype=torch.long))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Student `(B, K_s, *S)`, teacher `(B, K_t, *S)` (detached), labels `(B, *any size)` -> scalar.

        Raises:
            ValueError: shapes that do not fit each other or the channels of this module, or no target.
        """
        check_features(student, teacher, *self.channels)
        masks = class_masks(target, self.classes, teacher)
        s, t = (unit_rows(x.flatten(2)) for x in (self.adapter(student), teacher.detach()))
        seed = int(torch.cat([self.pixel_count, self.region_count]).sum().item())
        generator = torch.Generator(student.device).manual_seed(seed)
        if self.training:
            self._store(t, masks, generator)
        anchors = masks.any(1).flatten().nonzero().squeeze(1)
        if len(anchors) == 0:
            return 0 * s.sum()
        anchors = anchors[_draw(len(anchors), self.max_anchors, generator)]
        s, t = s.flatten(0, 1)[anchors] / self.temperature, t.flatten(0, 1)[anchors] / self.temperature
        loss = 0 * s.sum()
        for name in self.contrasts:
            entries = self._entries(name, generator)
            if len(entries):
                loss = loss + _ToEntries.apply(s, t, entries)
        return loss

    @torch.no_grad()
    def _store(self, teacher: Tensor, masks: Tensor, generator: torch.Generator) -> None:
        regions, present = class_directions(teacher.transpose(1, 2), masks), masks.any(2)
        # the largest of random numbers in (0, 1] among a class's pixels: a draw without a loop over samples and classes
        noise = 1 - torch.rand(masks[:, :1].shape, generator=generator, device=masks.device, dtype=masks.dtype)
        score, pixels = (noise * masks).topk(min(self.pixels_per_class, masks.shape[2]), dim=2)
        sample = torch.arange(len(masks), device=masks.device).unsqueeze(1).expand_as(score[:, 0])
        for c in range(self.classes):
            drawn = score[:, c] > 0
            self._append("pixel", c, teacher[sample[drawn], pixels[:, c][drawn]])
            self._append("region", c, regions[:, c][present[:, c]])

    def _append(self, name: str, c: int, vectors: Tensor) -> None:
        memory, count = getattr(self, f"{name}_memory")[c], getattr(self, f"{name}_count")
        kept = vectors[-len(memory) :].to(memory.dtype)
        count[c] += len(vectors)
        last = torch.arange(-len(kept), 0, device=memory.device)
        memory[(count[c] + last) % len(memory)] = kept

    def _entries(self, name: str, generator: torch.Generator) -> Tensor:
        memory, counts = getattr(self, f"{name}_memory"), getattr(self, f"{name}_count").tolist()
        drawn = [
            rows[_draw(min(count, len(rows)), self.contrasts[name], generator)]
            for rows, count in zip(memory, counts, strict=True)
        ]
        return torch.cat(drawn)


class _ToEntries(torch.autograd.Function):
    """Anchors `(R, K)` of student and teacher and entries `(M, K)` -> mean over the anchors; a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, entries: Tensor) -> Tensor:
        parts = row_parts(len(student), len(entries), student.device)
        room = [student.new_empty(parts[0].stop, len(entries)) for _ in range(3)]
        total, slope = student.new_zeros(()), torch.empty_like(student)
        for p in parts:
            e_s, e_t, gap = (r[: p.stop - p.start] for r in room)
            terms = exponentials(student[p], entries, teacher[p], entries, e_s, e_t, gap)
            gap_sum, z_s, z_t = (term.sum(1) for term in terms)
            total += divergence(gap_sum, z_s, z_t)
            d = e_s.div_(z_s[:, None]).sub_(e_t.div_(z_t[:, None]))
            torch.mm(d, entries, out=slope[p])
        ctx.save_for_backward(slope)
        ctx.scale = 1 / len(student)
        return total * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * (gradient * ctx.scale), None, None


def _draw(count: int, size: int, generator: torch.Generator) -> Tensor:
    # indices of all, or of `size` at random
    if count <= size:
        return torch.arange(count, device=generator.device)
    return torch.randperm(count, generator=generator, device=generator.device)[:size]
