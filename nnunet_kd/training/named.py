"""Trainers by name: each stands for a preset (presets.py) and is found through a file of its own name in trainers/."""

from __future__ import annotations

from nnunet_kd.training.distillation import nnUNetTrainerDistillation


class nnUNetTrainerGKD(nnUNetTrainerDistillation):
    """GKD in this project's form: DCGD and DICD through MSANs that ACT trains, beside logit distillation on views."""

    preset = "gkd"


class nnUNetTrainerGKDCrossView(nnUNetTrainerDistillation):
    """GKD in an earlier form: spatial MSANs at the bottleneck, the student learns from the annotation on views too."""

    preset = "cross-view"


class nnUNetTrainerGKDPaper(nnUNetTrainerDistillation):
    """GKD in the published form (docs/methods.md says what is evidence and what is reconstruction)."""

    preset = "paper"


class nnUNetTrainerKD(nnUNetTrainerDistillation):
    """Logit distillation (Hinton)."""

    preset = "kd"


class nnUNetTrainerKDViews(nnUNetTrainerDistillation):
    """Logit distillation on photometric views: the control that GKD has to beat."""

    preset = "kd+views"


class nnUNetTrainerKDMirrored(nnUNetTrainerDistillation):
    """Logit distillation on photometric views, from a teacher that reads its patches mirrored at random."""

    preset = "kd+mirrored"


class nnUNetTrainerKDAdjustedMirrored(nnUNetTrainerDistillation):
    """The same to a student that finds the foreground more readily than its losses ask of views; MSANs for FSD only."""

    preset = "kd+adjusted+mirrored"


class nnUNetTrainerViewsOnly(nnUNetTrainerDistillation):
    """Photometric views without a teacher: the other control."""

    preset = "views-only"


class nnUNetTrainerAT(nnUNetTrainerDistillation):
    """Attention transfer (Zagoruyko and Komodakis)."""

    preset = "at"


class nnUNetTrainerFitNets(nnUNetTrainerDistillation):
    """Hints: the student's bottleneck, through a learned 1x1 convolution, towards the teacher's (Romero et al.)."""

    preset = "fitnets"


class nnUNetTrainerFSP(nnUNetTrainerDistillation):
    """Flow of solution procedure: Gram matrices between neighbouring stages (Yim et al.)."""

    preset = "fsp"


class nnUNetTrainerSKD(nnUNetTrainerDistillation):
    """Structured knowledge distillation, pixel-wise and pair-wise (Liu et al.)."""

    preset = "skd"


class nnUNetTrainerIFVD(nnUNetTrainerDistillation):
    """Intra-class feature variation distillation (Wang et al.)."""

    preset = "ifvd"


class nnUNetTrainerCWD(nnUNetTrainerDistillation):
    """Channel-wise distillation of the logits (Shu et al.)."""

    preset = "cwd"


class nnUNetTrainerDIST(nnUNetTrainerDistillation):
    """Correlation in place of divergence (Huang et al.)."""

    preset = "dist"


class nnUNetTrainerDML(nnUNetTrainerDistillation):
    """The Dice loss between soft predictions (Wang et al.)."""

    preset = "dml"


class nnUNetTrainerEMKD(nnUNetTrainerDistillation):
    """Prediction, importance and region-affinity maps (Qin et al.)."""

    preset = "emkd"


class nnUNetTrainerCIRKD(nnUNetTrainerDistillation):
    """Cross-image relations, in the batch and to a memory (Yang et al.)."""

    preset = "cirkd"
