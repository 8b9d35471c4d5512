"""Dual Contrastive Graph Distillation (DCGD): the relations between semantic vectors.

EVIDENCE: every sample enters both models under several augmentations at once; the intra-coupling graph is a star with
the anchor at its centre, the inter-coupling graph is complete; both graphs of both models enter one loss.
RECONSTRUCTION: edges are cosines, rows are softmaxes at ``tau`` compared by KL, and the star's leaves hold the views of
the other samples too. Over the own views alone ACT makes all edges equal, and a softmax over equal edges says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.precision import full_precision

Gather = Callable[[Tensor], Tensor]
FORMS = ("softmax", "squared")


@full_precision
def intra_graph_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 0.1,
    form: str = "softmax",
    gather: Gather | None = None,
    centred: bool = False,
) -> Tensor:
    """Star graph: every anchor against all views of all samples. RECONSTRUCTION of DCGD's intra-coupling graph.

    One row per anchor i, one edge ``cos(z_i^0, z_j^k)`` per sample j and view k >= 1.

    Args:
        student: vectors `(K+1, B, d)`, row 0 the anchors; the gradient goes here.
        teacher: vectors `(K+1, B, d')` of the same views; detached. d' may differ from d.
        tau: temperature of the rows' softmax.
        form: "softmax" for ``KL(teacher row || student row)``, mean over rows; "squared" for the mean squared
            difference of the cosines. Rows of one edge (K = B = 1) take the squared form: their softmax is constant.
        gather: applied to both before the graph is built, such as one that collects the vectors of all ranks.
        centred: subtract each model's mean vector first. Vectors that share a large mean have nearly equal cosines. Below
            three nodes per view nothing is subtracted: all that were left is one direction, or noise.

    No nodes at all (class nodes of a batch without any class) give 0.

    Raises:
        ValueError: no views (K = 0), vectors that do not fit each other, an unknown form.
    """
    student, teacher = _prepare(student, teacher, form, gather, centred)
    if student.numel() == 0:
        return student.sum()
    return _compare(_star(student), _star(teacher), tau, form)


@full_precision
def inter_graph_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 0.1,
    form: str = "softmax",
    gather: Gather | None = None,
    centred: bool = False,
) -> Tensor:
    """Complete graph over all `(K+1) * B` vectors. RECONSTRUCTION of DCGD's inter-coupling graph.

    One row per vector, one edge per other vector; self is excluded. Arguments as in :func:`intra_graph_loss`.
    """
    student, teacher = _prepare(student, teacher, form, gather, centred)
    if student.numel() == 0:
        return student.sum()
    return _compare(_complete(student), _complete(teacher), tau, form)


@full_precision
def class_prototypes(maps: Tensor, onehot: Tensor) -> Tensor:
    """One node per class and patch: the mean of the semantic map over the class. RECONSTRUCTION (ours).

    A graph over whole patches says little about thin structures; this one holds how vessel and background differ.

    Args:
        maps: `((K+1)*B, q, *grid)`, all anchors, then the views in the same order.
        onehot: annotation of the anchors `(B, L, *S)`, float; pooled to the grid. Classes that a patch lacks are left out.

    Returns:
        `(K+1, n, q)`, n <= B * L nodes.
    """
    batch, grid = len(onehot), maps.shape[2:]
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    weights = pool(onehot, tuple(grid)).flatten(2)
    present = weights.sum(2).flatten() > 1e-3
    weights = weights / weights.sum(2, keepdim=True).clamp_min(1e-3)
    views = maps.unflatten(0, (-1, batch)).flatten(3)
    nodes = torch.einsum("kbqn,bln->kblq", views, weights).flatten(1, 2)
    return nodes[:, present]


class _Graph(Loss):
    """One of the two graphs by its name in the plans; the settings are those of :func:`intra_graph_loss`."""

    reads = "vectors"
    compare: ClassVar[Callable[..., Tensor]]

    def __init__(self, *, tau: float = 0.1, form: str = "softmax", centred: bool = False, gather: Gather | None = None) -> None:
        super().__init__()
        if not tau > 0:
            raise ValueError(f"tau must be above 0, not {tau}")
        if form not in FORMS:
            raise ValueError(f'unknown form "{form}", use one of {", ".join(FORMS)}')
        self.tau, self.form, self.centred, self.gather = tau, form, centred, gather

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Vectors `(K+1, B, d)` and `(K+1, B, d')` -> scalar; ``target`` is not used."""
        return type(self).compare(student, teacher, self.tau, self.form, self.gather, self.centred)


class IntraGraph(_Graph):
    """:func:`intra_graph_loss`, the star around every anchor."""

    name = "intra"
    compare = staticmethod(intra_graph_loss)


class InterGraph(_Graph):
    """:func:`inter_graph_loss`, the complete graph."""

    name = "inter"
    compare = staticmethod(inter_graph_loss)


def _prepare(student: Tensor, teacher: Tensor, form: str, gather: Gather | None, centred: bool) -> tuple[Tensor, Tensor]:
    if form not in FORMS:
        raise ValueError(f'unknown form "{form}", use one of {", ".join(FORMS)}')
    if student.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (K+1, B, d) with the same K, B"
        )
    if student.shape[0] < 2:
        raise ValueError("DCGD compares an anchor with its views, got vectors of the anchor alone (K = 0)")
    teacher = teacher.detach()
    if gather is not None:
        student, teacher = gather(student), gather(teacher)
    if centred and student.shape[1] >= 3:
        student, teacher = (z - z.mean((0, 1)) for z in (student, teacher))
    # eps far above float32's smallest: the gradient at a vanishing vector grows with 1/eps
    return F.normalize(student, dim=-1, eps=1e-6), F.normalize(teacher, dim=-1, eps=1e-6)


def _star(vectors: Tensor) -> Tensor:
    return vectors[0] @ vectors[1:].flatten(0, 1).T


def _complete(vectors: Tensor) -> Tensor:
    nodes = vectors.flatten(0, 1)
    count = nodes.shape[0]
    others = ~torch.eye(count, dtype=torch.bool, device=nodes.device)
    return (nodes @ nodes.T)[others].view(count, count - 1)


def _compare(student: Tensor, teacher: Tensor, tau: float, form: str) -> Tensor:
    if form == "squared" or student.shape[1] < 2:
        return F.mse_loss(student, teacher)
    log_s, log_t = F.log_softmax(student / tau, 1), F.log_softmax(teacher / tau, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1).mean()
