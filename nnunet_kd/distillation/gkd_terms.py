"""The terms that read semantic vectors: DCGD's two graphs, and DICD's two crossed predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nnunet_kd.config.terms import Cross, Graph, Terms
from nnunet_kd.distillation.alignment import Alignment
from nnunet_kd.distillation.step import DistillationStep
from nnunet_kd.losses import (
    LOSSES,
    balanced_logits,
    class_prototypes,
)
from nnunet_kd.networks.stages import decode, swap
from nnunet_kd.utils.distributed import gather_with_gradient


class MSANTerms:
    """The values of ``intra``, ``inter``, ``cross_ts`` and ``cross_st``, whichever are on.

    ``adjusted``: from the student's logits to those that its losses read, given how many of the leading rows are of anchors.
    """

    def __init__(
        self,
        terms: Terms,
        alignment: Alignment,
        student: nn.Module,
        regions: bool,
        adjusted: Callable[..., torch.Tensor],
    ) -> None:
        self.terms, self.alignment, self.student, self.regions, self.adjusted = terms, alignment, student, regions, adjusted
        graphs = {"intra": terms.intra, "inter": terms.inter}
        self.graphs = {name: (term, _graph_loss(name, term)) for name, term in graphs.items() if term is not None}
        self.cross_prediction = LOSSES["cross"](regions=regions)

    def values(self, step: DistillationStep, teacher: nn.Module) -> dict[str, tuple[str, float, torch.Tensor]]:
        """Values of the terms, ``{name in the log: (term, share of its weight, value)}``.

        ``step`` holds both networks' logits and features; ``teacher`` is the teacher's network.
        """
        values = {}
        if self.graphs:
            vectors = {"student": self.alignment.encode("student", step.student_features)}
            with torch.no_grad():
                vectors["teacher"] = self.alignment.encode("teacher", step.teacher_features)
            for name, (term, loss) in self.graphs.items():
                values[name] = (name, 1.0, self._graph(loss, term, vectors, step))
        cross = self.terms.cross
        if cross is None:
            return values
        every = cross.every or 1
        if step.iteration % every:
            return values
        if cross.ts:
            values["cross_ts"] = ("cross", every * cross.ts, self._cross_ts(cross, step))
        if cross.st:
            values["cross_st"] = ("cross", every * cross.st, self._cross_st(cross, step, teacher))
        return values

    def _graph(
        self, loss: nn.Module, term: Graph, vectors: dict[str, list[torch.Tensor]], step: DistillationStep
    ) -> torch.Tensor:
        nodes = (self._nodes(name, vectors[name], term, step) for name in ("student", "teacher"))
        return torch.stack([loss(s, t) for s, t in zip(*nodes, strict=True)]).mean()

    def _nodes(self, network: str, vectors: list[torch.Tensor], term: Graph, step: DistillationStep) -> list[torch.Tensor]:
        """DCGD's nodes ``(K+1, n, d)`` per stage: one per patch, or one per class and patch that has the class."""
        if network == "teacher" and term.target == "anchor":
            vectors = [z[: step.batch] for z in vectors]
        if term.nodes == "patch":
            nodes = [z.reshape(-1, step.batch, z.shape[1]) for z in self.alignment.summaries(network, vectors)]
        else:
            nodes = [class_prototypes(z, step.onehot) for z in self.alignment.maps(network, vectors)]
        return [n.expand(step.views + 1, -1, -1) for n in nodes]

    def _sources(self, cross: Cross, step: DistillationStep) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the batch that DICD reads: the student's (anchors, or views), and the anchors that belong to them."""
        views = range(1, step.views + 1) if cross.views == "cross" else (0,)
        anchors = step.share(cross.share)
        return torch.cat([anchors + k * step.batch for k in views]), anchors.repeat(len(views))

    def _cross_ts(self, cross: Cross, step: DistillationStep) -> torch.Tensor:
        """Teacher vectors of the anchor through the SAN's headers into the student's decoder."""
        rows, anchors = self._sources(cross, step)
        features = [f[rows] for f in step.student_features]
        with torch.no_grad():
            vectors = self.alignment.encode("teacher", [f[anchors] for f in step.teacher_features])
        rebuilt = self.alignment.reconstruct("student", vectors, features)
        crossed = decode(self.student, swap(features, {s: r.to(features[s].dtype) for s, r in rebuilt.items()}))
        return self._against_teacher(cross, step, self.adjusted(crossed, None if cross.views == "same" else 0), anchors)

    def _cross_st(self, cross: Cross, step: DistillationStep, teacher: nn.Module) -> torch.Tensor:
        """Student vectors through the TAN's headers into the teacher's decoder, with the teacher's anchor skips."""
        rows, anchors = self._sources(cross, step)
        features = [f[anchors] for f in step.teacher_features]
        vectors = self.alignment.encode("student", [f[rows] for f in step.student_features])
        rebuilt = self.alignment.reconstruct("teacher", vectors, features)
        crossed = decode(teacher, swap(features, {s: r.to(features[s].dtype) for s, r in rebuilt.items()}))
        return self._against_teacher(cross, step, crossed, anchors)

    def _against_teacher(
        self, cross: Cross, step: DistillationStep, crossed: torch.Tensor, anchors: torch.Tensor
    ) -> torch.Tensor:
        mask = None if step.mask is None else step.mask[anchors]
        target, balance = step.teacher_logits[anchors], cross.balance
        if balance:
            target = balanced_logits(target, step.frequencies, balance, self.regions)
        return self.cross_prediction(crossed, target, mask=mask)


def _graph_loss(name: str, term: Graph) -> nn.Module:
    settings = {"form": term.form, "centred": term.centred} | ({} if term.tau is None else {"tau": term.tau})
    return LOSSES[name](**settings, gather=gather_with_gradient)
