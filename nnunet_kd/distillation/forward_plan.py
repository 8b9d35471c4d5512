"""Which forwards a training step takes, and what is read of them: decided here, once per phase, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_kd.config.run import Config


@dataclass(frozen=True)
class ForwardPlan:
    """The forwards of a step in one phase of a run.

    Attributes:
        views: photometric views that are drawn of every patch.
        student_views: the student's batch holds the views behind the anchors.
        annotated_views: the student's own loss reads its predictions on the views too.
        teacher: the teacher runs.
        teacher_views: it reads the views too, not the anchors alone.
        teacher_logits_of_views: its logits on the views are read.
        features: stage features are read, of both networks.
        decoder_stages: among them such of decoder stages.
        vector_terms: DCGD and DICD are computed.
        trains: what the alignment step trains, "autoencoder", "msans" or nothing.
    """

    views: int = 0
    student_views: bool = False
    annotated_views: bool = False
    teacher: bool = False
    teacher_views: bool = False
    teacher_logits_of_views: bool = False
    features: bool = False
    decoder_stages: bool = False
    vector_terms: bool = False
    trains: str | None = None


def phases(config: Config) -> tuple[str, ...]:
    """The phases of a run in their order: one, or three where MSANs are trained."""
    return ("warm-up", "act", "distil") if config.need_alignment else ("distil",)


def phase_at(config: Config, progress: float) -> str:
    """The phase at this fraction of the training."""
    if not config.need_alignment:
        return "distil"
    return "warm-up" if progress < config.act.start else "act" if progress < config.act.end else "distil"


def plan_forwards(config: Config) -> dict[str, ForwardPlan]:
    """The forwards of every phase of a run."""
    return {phase: _plan(config, phase) for phase in phases(config)}


def _plan(config: Config, phase: str) -> ForwardPlan:
    views = config.views.count if config.views is not None else 0
    terms, on_logits = config.terms, [loss for loss in config.active_losses if loss.on_logits]
    # MSANs and what reads their vectors leave the warm-up alone, other losses do not
    aligned = config.need_alignment and phase != "warm-up"
    trains_msans = aligned and (phase == "act" or config.msan.after_act == "joint")
    features = aligned or any(loss.on_stages for loss in config.loss_settings)
    teacher = features or bool(on_logits)
    annotated_views = views > 0 and config.views.student_loss == "all"
    logits_of_views = views > 0 and any(loss.target == "view" for loss in on_logits)
    graphs_of_views = aligned and any(graph is not None and graph.target == "view" for graph in (terms.intra, terms.inter))
    consistency = trains_msans and config.act.consistency > 0
    others_of_views = any(loss.target == "view" for loss in config.loss_settings) or graphs_of_views or consistency
    return ForwardPlan(
        views=views,
        student_views=views > 0 and (annotated_views or teacher),
        annotated_views=annotated_views,
        teacher=teacher,
        teacher_views=logits_of_views or (views > 0 and others_of_views),
        teacher_logits_of_views=logits_of_views,
        features=features,
        decoder_stages=features and _reads_decoder(config),
        vector_terms=config.terms.need_msan and phase == "distil",
        trains="msans" if trains_msans else "autoencoder" if config.need_alignment and phase == "warm-up" else None,
    )


def _reads_decoder(config: Config) -> bool:
    stages = config.msan.stages if config.need_alignment else []
    places = [loss.place for loss in config.loss_settings if loss.on_stages]
    return any("decoder" in str(stage) for stage in [*stages, *places])
