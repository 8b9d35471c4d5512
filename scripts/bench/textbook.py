"""The losses as a reader of the papers would write them first: permutes, loops over classes and over pairs of samples.

Slow and plain on purpose: bench_losses.py times nnunet_kd.losses against them, tests/losses/test_textbook.py checks these
against values of the published implementations and nnunet_kd.losses against these. Written from the formulas.

The reduction is the library's: the mean over samples and pixels. Tensors are `(B, C, *S)` with two or three spatial axes,
labels `(B, *S)` with negative values where nothing was annotated. Every form is called as the library's modules are, (student,
teacher, labels), with its settings by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixels_by_classes(maps: Tensor) -> Tensor:
    """`(B, C, *S)` -> `(B*P, C)`."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def kd(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Hinton et al. 2015, pixel by pixel."""
    log_s = F.log_softmax(pixels_by_classes(student) / temperature, dim=1)
    p_t = F.softmax(pixels_by_classes(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, p_t, reduction="none").sum(1).mean()


def kd_regions(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """The same for overlapping regions: a divergence of two outcomes per channel, summed over the channels."""
    s, p_t = pixels_by_classes(student) / temperature, torch.sigmoid(pixels_by_classes(teacher) / temperature)
    cross_entropy = F.binary_cross_entropy_with_logits(s, p_t, reduction="none")
    entropy = F.binary_cross_entropy(p_t, p_t, reduction="none")
    return temperature**2 * (cross_entropy - entropy).sum(1).mean()


def attention(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, p: int = 2) -> Tensor:
    """AT, Zagoruyko and Komodakis 2017."""
    a_s = F.normalize(student.abs().pow(p).mean(1).flatten(1))
    a_t = F.normalize(teacher.abs().pow(p).mean(1).flatten(1))
    return (a_s - a_t).pow(2).mean()


def fitnets(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, regressor: nn.Module) -> Tensor:
    """FitNets, Romero et al. 2015; ``regressor`` is the learned 1x1 convolution."""
    return F.mse_loss(regressor(student), teacher)


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor | None = None) -> Tensor:
    """FSP, Yim et al. 2017: how two stages go together, channel by channel."""

    def flow(first: Tensor, second: Tensor) -> Tensor:
        first, second = first.flatten(2), second.flatten(2)
        return torch.bmm(first, second.transpose(1, 2)) / first.shape[2]

    return F.mse_loss(flow(*student), flow(*teacher))


def skd_pixelwise(student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
    """The pixel-wise part of SKD, Liu et al. 2019: a cross entropy."""
    p_t = F.softmax(pixels_by_classes(teacher), dim=1)
    return -(p_t * F.log_softmax(pixels_by_classes(student), dim=1)).sum(1).mean()


def skd_pairwise(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, scale: float = 0.5) -> Tensor:
    """The pair-wise part of SKD: cosines between all pairs of pooled pixels, the lengths without a gradient."""
    return _squared_cosines(student, teacher, [int(scale * n) for n in student.shape[2:]])


def skd_2x2(student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
    """The same on a fine grid, as CIRKD compares itself with."""
    return _squared_cosines(student, teacher, [2] * (student.ndim - 2))


def _squared_cosines(student: Tensor, teacher: Tensor, kernel: list[int]) -> Tensor:
    pool = F.max_pool2d if student.ndim == 4 else F.max_pool3d

    def cosines(maps: Tensor) -> Tensor:
        maps = pool(maps, kernel, kernel, ceil_mode=True)
        length = maps.pow(2).sum(1, keepdim=True).sqrt().detach() + 1e-8
        nodes = (maps / length).flatten(2)
        return torch.einsum("bcm,bcn->bmn", nodes, nodes)

    a_s, a_t = cosines(student), cosines(teacher)
    return (a_t - a_s).pow(2).sum() / (a_s.shape[1] ** 2 * a_s.shape[0])


def ifvd(student: Tensor, teacher: Tensor, target: Tensor, *, classes: int) -> Tensor:
    """IFVD, Wang et al. 2020: the cosine of every pixel with its class's mean; class by class."""
    labels = resize(target, student)

    def variation(maps: Tensor) -> Tensor:
        # a pixel without annotation stays its own centre: cosine 1 in both networks
        centre = maps.clone()
        for c in range(classes):
            mask = (labels == c).unsqueeze(1).to(maps.dtype)
            mean = (maps * mask).flatten(2).sum(2) / (mask.flatten(2).sum(2) + 1e-6)
            mean = mean.reshape(*mean.shape, *[1] * (maps.ndim - 2))
            centre = (1 - mask) * centre + mask * mean
        return F.cosine_similarity(maps, centre, dim=1)

    return F.mse_loss(variation(student), variation(teacher))


def cwd(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, temperature: float = 4.0) -> Tensor:
    """CWD, Shu et al. 2021: every channel is a distribution over the pixels."""
    batch, channels = student.shape[:2]
    log_s = F.log_softmax(student.reshape(batch * channels, -1) / temperature, dim=1)
    log_t = F.log_softmax(teacher.reshape(batch * channels, -1) / temperature, dim=1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum() / (batch * channels)


def dist(student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
    """DIST, Huang et al. 2022: correlations within every pixel and within every class."""

    def correlation(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    p_s, p_t = F.softmax(pixels_by_classes(student), dim=1), F.softmax(pixels_by_classes(teacher), dim=1)
    return (1 - correlation(p_s, p_t)) + (1 - correlation(p_s.T, p_t.T))


def dml(student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
    """DML, Wang et al. 2023: a soft Dice per sample and foreground class, its intersection by the distance of the two."""
    p_s, p_t = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    losses = []
    for s, t in zip(p_s, p_t, strict=True):
        for c in range(1, student.shape[1]):
            intersection = (s[c].sum() + t[c].sum() - (s[c] - t[c]).abs().sum()) / 2
            losses.append((s[c].sum() + t[c].sum() - 2 * intersection) / (s[c].sum() + t[c].sum() + 1))
    return torch.stack(losses).mean()


def imd(student: Tensor, teacher: Tensor, target: Tensor | None = None, *, p: int = 4) -> Tensor:
    """The importance maps of EMKD, Qin et al. 2021: AT summed over the pixels."""
    return attention(student, teacher, p=p) * student[0, 0].numel()


def rad(student: Tensor, teacher: Tensor, target: Tensor, *, classes: int) -> Tensor:
    """The regional affinities of EMKD: cosines between the classes' means; sample by sample, pair by pair."""
    labels = resize(target, student)

    def affinity(maps: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
        means = [(maps * mask).flatten(1).sum(1) / mask.sum() for mask in (mask_a, mask_b)]
        return F.cosine_similarity(*means, dim=0)

    total, count = student.sum() * 0, 0
    for s, t, y in zip(student, teacher, labels, strict=True):
        for a, b in combinations(range(classes), 2):
            if (y == a).any() and (y == b).any():
                total = total + (affinity(s, y == a, y == b) - affinity(t, y == a, y == b)) ** 2
                count += 1
    return total / max(count, 1)


def cirkd(
    student: Tensor, teacher: Tensor, target: Tensor | None = None, *, temperature: float = 0.1, max_nodes: int = 2048
) -> Tensor:
    """CIRKD, Yang et al. 2022, within the mini-batch: every pixel against the pixels of each sample; pair by pair."""
    pool, block = F.avg_pool2d if student.ndim == 4 else F.avg_pool3d, 1
    while math.prod(math.ceil(n / block) for n in student.shape[2:]) > max_nodes:
        block *= 2
    if block > 1:  # the library's pooling: equal work
        student, teacher = pool(student, block, ceil_mode=True), pool(teacher, block, ceil_mode=True)
    nodes_s, nodes_t = (F.normalize(maps, dim=1).flatten(2).transpose(1, 2) for maps in (student, teacher))
    batch, total = len(student), 0.0
    for i in range(batch):
        for j in range(batch):
            total = total + _relations(nodes_s[i], nodes_s[j], nodes_t[i], nodes_t[j], temperature)
    return total / batch**2


class CIRKDMemory:
    """CIRKD's memory: the teacher's pixels and class means of earlier batches; sample by sample, class by class.

    Args:
        classes, temperature: as in the library.
        sizes: entries of the memories per class, "pixel" and "region".
        contrasts: entries drawn per class and step.
        pixels_per_class: stored per class and sample.
        max_anchors: pixels of the batch that are compared with them.
    """

    def __init__(
        self, *, classes: int, temperature: float, sizes: dict, contrasts: dict, pixels_per_class: int, max_anchors: int
    ) -> None:
        self.classes, self.temperature, self.sizes, self.contrasts = classes, temperature, sizes, contrasts
        self.pixels_per_class, self.max_anchors = pixels_per_class, max_anchors
        self.memories, self.counts = {}, {name: [0] * classes for name in sizes}

    def __call__(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        labels = resize(target, teacher).flatten(1)
        nodes_s, nodes_t = (F.normalize(maps, dim=1).flatten(2).transpose(1, 2) for maps in (student, teacher))
        for vectors, y in zip(nodes_t, labels, strict=True):
            for c in range(self.classes):
                found = vectors[y == c]
                if len(found) > 0:
                    self._store("region", c, F.normalize(found.mean(0, keepdim=True), dim=1))
                    self._store("pixel", c, found[torch.randperm(len(found), device=y.device)[: self.pixels_per_class]])
        anchors = (labels.flatten() >= 0).nonzero().squeeze(1)
        anchors = anchors[torch.randperm(len(anchors), device=anchors.device)[: self.max_anchors]]
        s, t = nodes_s.flatten(0, 1)[anchors], nodes_t.flatten(0, 1)[anchors]
        total = 0.0
        for name, memory in self.memories.items():
            drawn = []
            for c in range(self.classes):
                filled = min(self.counts[name][c], self.sizes[name])
                drawn.append(memory[c][torch.randperm(filled, device=memory.device)[: self.contrasts[name]]])
            entries = torch.cat(drawn)
            total = total + _relations(s, entries, t, entries, self.temperature)
        return total

    def _store(self, name: str, c: int, vectors: Tensor) -> None:
        if name not in self.memories:
            self.memories[name] = vectors.new_zeros(self.classes, self.sizes[name], vectors.shape[1])
        count = self.counts[name][c]
        places = torch.arange(count, count + len(vectors), device=vectors.device) % self.sizes[name]
        self.memories[name][c, places] = vectors
        self.counts[name][c] += len(vectors)


def _relations(s: Tensor, keys_s: Tensor, t: Tensor, keys_t: Tensor, temperature: float) -> Tensor:
    log_s, p_t = F.log_softmax(s @ keys_s.T / temperature, dim=1), F.softmax(t @ keys_t.T / temperature, dim=1)
    return F.kl_div(log_s, p_t, reduction="none").sum(1).mean()


def resize(target: Tensor, maps: Tensor) -> Tensor:
    """Labels on the grid of ``maps``."""
    return F.interpolate(target.unsqueeze(1).to(maps.dtype), maps.shape[2:], mode="nearest").squeeze(1)
