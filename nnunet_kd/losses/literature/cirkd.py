"""CIRKD: how pixels relate to the pixels of the batch's other images. Those of earlier batches: cirkd_memory.py."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features
from nnunet_kd.losses.labels import inverse_length
from nnunet_kd.losses.precision import full_precision

_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
# a lower temperature would take exp(1 / temperature) to the end of float32's range
_COLDEST = 0.03
# similarities computed at a time: a CPU's cache, a GPU's memory
_AT_ONCE = {"cpu": 2**19}
_AT_ONCE_ELSEWHERE = 2**25


class CIRKD(Loss):
    r"""Cross-image relations within the batch, pixel to pixel.

    .. math:: L = \frac{1}{N^2 P} \sum_{n,m} \sum_{i} \mathrm{KL}(R^t_{nmi} \| R^s_{nmi}), \quad
        R_{nmi} = \mathrm{softmax}_j(\cos(f_{ni}, f_{mj}) / \tau)

    for all ordered pairs (n, m) of samples, n = m included, as in the original. Teacher and student may differ in channels.

    Larger grids are averaged over blocks of 2 pixels per axis (or 4, 8, ...) until at most ``max_nodes`` are left: time grows
    with (N P)^2. The original has this as an option, with 2. Memory stays at P^2: one pair of samples at a time.

    Source: Yang et al., "Cross-image relational knowledge distillation for semantic segmentation", CVPR 2022; tau = 0.1,
    weight 1 there, at the same reduction.

    Args:
        temperature: tau, at least 0.03.
        max_nodes: P after pooling, at most.
    """

    name = "cirkd"
    reads = "features"
    weight = 1.0

    def __init__(self, *, temperature: float = 0.1, max_nodes: int = 2048) -> None:
        super().__init__()
        check_settings("CIRKD", temperature, max_nodes=max_nodes)
        self.temperature, self.max_nodes = temperature, max_nodes

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Student `(B, K, *S)`, teacher `(B, K', *S)` (detached) -> scalar; ``target`` is not read.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        check_features(student, teacher)
        s, t = (unit_rows(_pool(x, self.max_nodes).flatten(2)) for x in (student, teacher.detach()))
        return _WithinBatch.apply(s / self.temperature**0.5, t / self.temperature**0.5)


class _WithinBatch(torch.autograd.Function):
    """Nodes `(N, P, K)` whose inner products are the similarities -> mean over ordered pairs of samples and rows.

    The pairs (n, m) and (m, n) share one matrix: its rows belong to the first, its columns to the second. The gradient is
    analytic and computed on the way, in the same two matrices `(P, P)` for all pairs.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        batch, nodes = student.shape[:2]
        parts = row_parts(nodes, nodes, student.device)
        e_s, e_t, gap = (
            student.new_empty(nodes, nodes),
            student.new_empty(nodes, nodes),
            student.new_empty(parts[0].stop, nodes),
        )
        total, slope = student.new_zeros(()), torch.zeros_like(student)
        for i in range(batch):
            for j in range(i, batch):
                rows, columns = student.new_empty(3, nodes), student.new_zeros(3, nodes)
                for p in parts:
                    terms = exponentials(student[i, p], student[j], teacher[i, p], teacher[j], e_s[p], e_t[p], gap)
                    for k, term in enumerate(terms):
                        torch.sum(term, 1, out=rows[k, p])
                        if i != j:
                            columns[k] += term.sum(0)
                # the matrix of a sample with itself is symmetric, and a node is in it as a row and as a column
                total += divergence(*rows) + (divergence(*columns) if i != j else 0)
                shares = 1 / rows[1:, :, None], 1 / (columns if i != j else rows)[1:, None]
                for p in parts:
                    d = e_s[p].mul_(shares[0][0, p] + shares[1][0])
                    d -= e_t[p].mul_(shares[0][1, p] + shares[1][1])
                    slope[i, p].addmm_(d, student[j])
                    if i != j:
                        slope[j].addmm_(d.T, student[i, p])
        ctx.save_for_backward(slope)
        ctx.scale = 1 / (batch**2 * nodes)
        return total * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * (gradient * ctx.scale), None


def row_parts(rows: int, columns: int, device: torch.device) -> list[slice]:
    """The rows of a matrix of similarities in parts that fit the cache or the memory."""
    step = max(1, _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE) // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def exponentials(
    s: Tensor, s_to: Tensor, t: Tensor, t_to: Tensor, e_s: Tensor, e_t: Tensor, gap: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Into e_s, e_t and gap: exp of the similarities of the student's rows and of the teacher's, and the latter times their
    difference; returned as (gap, e_s, e_t)."""
    # without the usual shift: no similarity exceeds 1 / _COLDEST. Fresh matrices for every pair would take longer than the
    # arithmetic
    gap = gap[: len(s)]
    torch.mm(s, s_to.T, out=e_s)
    torch.mm(t, t_to.T, out=e_t)
    torch.sub(e_t, e_s, out=gap)
    e_s.exp_()
    return gap.mul_(e_t.exp_()), e_s, e_t


def divergence(gap: Tensor, z_s: Tensor, z_t: Tensor) -> Tensor:
    """The sum of KL(teacher || student) out of the sums of :func:`exponentials` over a softmax's axis."""
    return (gap / z_t + z_s.log() - z_t.log()).sum()


def unit_rows(features: Tensor) -> Tensor:
    """Features `(B, K, P)` -> unit vectors `(B, P, K)`."""
    return (features * inverse_length(features, 1)).transpose(1, 2)


def _pool(features: Tensor, max_nodes: int) -> Tensor:
    size, step = features.shape[2:], 1
    while math.prod(math.ceil(n / step) for n in size) > max_nodes:
        step *= 2
    if step == 1:
        return features
    block = [min(step, n) for n in size]
    if any(n % b for n, b in zip(size, block, strict=True)):
        return _POOL[len(size)](features, block, ceil_mode=True)
    # the same, axis by axis, in half the time of torch's pooling and of its gradient
    for axis, b in enumerate(block, start=2):
        features = features.unflatten(axis, (-1, b)).sum(axis + 1)
    return features / math.prod(block)


def check_settings(name: str, temperature: float, **counts: int) -> None:
    """Raise ValueError for a temperature that is too low or a count below 1."""
    if not temperature >= _COLDEST:
        raise ValueError(f"temperature of {name} must be at least {_COLDEST}, got {temperature}")
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"{key} of {name} must be at least 1, got {value}")
