"""What one distillation run is: validated settings out of the student's plans file, section "nnunet_kd".

The section is plain JSON. Presets give defaults, the section overrides them key by key, and a term set to null takes it
out of the preset. Every key is checked against the dataclasses here and in terms.py: unknown keys, wrong types and
settings that nothing would read are errors, never silence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nnunet_kd.config.presets import NAMES, full_name, settings_of
from nnunet_kd.config.stage_losses import LossSetting, kd_as_term, read_losses, term_losses
from nnunet_kd.config.terms import ACT, MSAN, Terms, Views
from nnunet_kd.config.validation import SECTION, at_least, build, in_range, merge, one_of
from nnunet_kd.utils.errors import KDError

# what preset "student" does not read
UNDISTILLED = (
    "views",
    "msan",
    "act",
    "terms",
    "losses",
    "logit_adjustment",
    "logit_adjustment_views",
    "mirrored_teacher",
)
# the section's keys that say how a student learns; the others say from whom, how long and from which seed
RECIPE = ("preset", "ramp", *UNDISTILLED)


@dataclass(frozen=True)
class Schedule:
    """How long to train, and in what precision on a CPU. Defaults are nnU-Net's own.

    ``cpu_precision`` "bfloat16" runs the networks under autocast, losses stay float32. On a processor with bfloat16
    instructions that about halves the time of a step. On a GPU nnU-Net's own mixed precision applies whatever stands here.
    """

    epochs: int = 1000
    iterations_per_epoch: int = 250
    val_iterations_per_epoch: int = 50
    initial_lr: float = 1e-2
    save_every: int = 5
    cpu_precision: str = "float32"

    def check(self) -> None:
        at_least(self, 1, "epochs", "iterations_per_epoch", "val_iterations_per_epoch", "save_every")
        in_range(self, 1e-8, 10, "initial_lr")
        one_of(self, ("float32", "bfloat16"), "cpu_precision")


@dataclass(frozen=True)
class TeacherStages:
    """What must be known of the teacher's network to rebuild everything without the teacher (--val, --c)."""

    family: str
    channels: list
    strides: list
    input_channels: int
    outputs: int
    parameters: int

    def check(self) -> None:
        at_least(self, 1, "input_channels", "outputs", "parameters")
        for name, rows in (("channels", [[c] for c in self.channels]), ("strides", self.strides)):
            whole = all(isinstance(row, list) and row and all(type(n) is int and n > 0 for n in row) for row in rows)
            if not whole or len(rows) != len(self.channels):
                raise KDError(
                    f'"{SECTION}.teacher.stages.{name}" is {getattr(self, name)}, it must hold whole numbers of at least 1 for '
                    f"each of {len(self.channels)} stages: write the plans again with `nnunet-kd plan`"
                )


@dataclass(frozen=True)
class Teacher:
    """The frozen teacher: a trained nnU-Net model folder, relative to nnUNet_results or absolute."""

    folder: str
    configuration: str
    stages: TeacherStages
    plans_hash: str
    fold: int | str | list = "same"
    checkpoint: str = "checkpoint_final.pth"

    def check(self) -> None:
        for fold in self.folds:
            if not (type(fold) is int and fold >= 0) and fold not in ("same", "all"):
                raise KDError(f'"{SECTION}.teacher.fold" is {fold!r}: use "same", "all", a fold number or a list of these')
        if not self.folds or len(set(map(str, self.folds))) < len(self.folds):
            raise KDError(f'"{SECTION}.teacher.fold" is {self.fold}: name at least one fold, and each once')

    @property
    def folds(self) -> list:
        """One fold, or the several whose predictions are averaged."""
        return self.fold if isinstance(self.fold, list) else [self.fold]


@dataclass(frozen=True)
class Config:
    """One run. ``role`` is "teacher" for plans that only carry a schedule and a seed.

    ``logit_adjustment``: how many logits the student's foreground stands lower in its losses than in its prediction, which
    finds it that much more readily.
    ``logit_adjustment_views``: the same for what the student says about views, in place of ``logit_adjustment``: readier
    only where it can tell a view from an image, and everywhere, but less, before it has learned to.
    ``mirrored_teacher``: the teacher reads every patch mirrored at random, along the axes it was trained with, and what it says
    is mirrored back.
    ``previous_stage``: for the second stage of a cascade, the model folder whose predictions it reads, relative to
    nnUNet_results or absolute. Without it nnU-Net takes the folder of the same trainer and plans.
    """

    role: str = "student"
    preset: str | None = None
    seed: int = 0
    ramp: float = 0.05
    schedule: Schedule = field(default_factory=Schedule)
    teacher: Teacher | None = None
    previous_stage: str | None = None
    views: Views | None = None
    msan: MSAN | None = None
    act: ACT | None = None
    terms: Terms = field(default_factory=Terms)
    losses: dict | None = None
    logit_adjustment: float | None = None
    logit_adjustment_views: float | None = None
    mirrored_teacher: bool | None = None

    @cached_property
    def loss_settings(self) -> list[LossSetting]:
        """The losses between stages, checked. Checking builds each of them once, so not at every look."""
        return read_losses(self.losses)

    @cached_property
    def active_losses(self) -> list[LossSetting]:
        """Every loss that reads the teacher: the terms that are on, then the entries of "losses"."""
        return [*term_losses(self.terms, vectors_from=(self.act or ACT()).end), *self.loss_settings]

    @property
    def distils(self) -> list[str]:
        """Everything that reads the teacher, by name."""
        return [loss.path.removeprefix("terms.") for loss in self.active_losses]

    @property
    def need_alignment(self) -> bool:
        """Whether MSANs are trained: for a term, or, with "msan" but no such term, as a probe that only FSD reads."""
        return self.terms.need_msan or self.msan is not None

    def check(self) -> None:
        one_of(self, ("teacher", "student"), "role")
        in_range(self, 0, 1, "ramp")
        for key in ("logit_adjustment", "logit_adjustment_views"):
            if getattr(self, key) is not None:
                in_range(self, 0, 10, key)
        if not 0 <= self.seed < 2**31:
            raise KDError(f'"{SECTION}.seed" is {self.seed}: use a whole number from 0 to 2147483647')
        if self.distils and self.teacher is None:
            raise KDError(
                f'terms {self.distils} need a teacher, and "{SECTION}.teacher" is missing: '
                "write the plans with `nnunet-kd plan DATASET -c CONFIGURATION --teacher FOLDER`"
            )
        unused = ["act"] if self.act is not None and not self.need_alignment else []
        if self.msan is not None and not self.distils:
            unused.append("msan")
        if unused:
            raise KDError(
                f'"{SECTION}.{unused[0]}" is set but nothing reads it: remove it, or switch a term on (intra, inter, cross; '
                'or "msan" beside "kd", to have semantic vectors for FSD)'
            )
        if self.need_alignment and self.act is not None and self.act.end >= 1:
            raise KDError(f'"{SECTION}.act.end" is {self.act.end}: no time is left to distil; use less than 1')
        act = self.act
        if self.need_alignment and act is not None and act.semantic > 0 and act.autoencoder is None and act.start == 0:
            raise KDError(
                f'"{SECTION}.act": the semantic autoencoder trains before "start", which is 0; raise start, load one '
                '("autoencoder") or set "semantic" to 0'
            )
        only_consistency = self.act is not None and not (self.act.reconstruction or self.act.semantic or self.act.decoded)
        if self.need_alignment and only_consistency and self.views is None:
            raise KDError(f'"{SECTION}.act": consistency between views is the only part that is on, but there are no views')
        views_read = self.need_alignment or self.distils or (self.views is not None and self.views.student_loss == "all")
        if self.views is not None and not views_read:
            raise KDError(f'"{SECTION}.views" are drawn but nothing reads them: set "student_loss" to "all" or remove "views"')
        needs_views = [t for t in ("intra", "inter") if getattr(self.terms, t) is not None]
        if self.terms.cross is not None and self.terms.cross.views == "cross":
            needs_views.append("cross")
        if needs_views and self.views is None:
            raise KDError(f'terms {needs_views} need views, and "{SECTION}.views" is missing: add "views": {{"count": 2}}')
        for loss in self.active_losses:
            if loss.target == "anchor" and self.views is None:
                raise KDError(f'"{SECTION}.{loss.path}.target" is "anchor" but there are no views: remove the key')
            if loss.options.until is not None and loss.options.until <= loss.start:
                raise KDError(
                    f'"{SECTION}.{loss.path}.until" is {loss.options.until}, but it starts at "act.end", {loss.start}: use more'
                )
        if self.logit_adjustment_views is not None and not self._loss_reads_views:
            raise KDError(
                f'"{SECTION}.logit_adjustment_views" is {self.logit_adjustment_views} but no loss reads what the student says '
                'about views: set it to null, or switch "views" and "terms.kd" on'
            )
        if self.mirrored_teacher:
            self._check_mirrored()
        inside = [loss for loss in self.loss_settings if loss.on_stages]
        if self.teacher is not None and not self.teacher.stages.channels and (inside or self.need_alignment):
            from nnunet_kd.networks.stages import no_stages

            raise no_stages(f"the teacher, a {self.teacher.stages.family},")
        if self.teacher is not None and len(self.teacher.folds) > 1 and (inside or self.need_alignment):
            reads = f'"losses.{inside[0].place}"' if inside else "an MSAN"
            raise KDError(
                f'"{SECTION}.teacher.fold" names {len(self.teacher.folds)} folds: their predictions can be averaged, not '
                f"their features, which {reads} reads: name one fold, or distil logits only"
            )

    @property
    def _loss_reads_views(self) -> bool:
        """Whether any loss reads the student's logits on views."""
        cross = self.terms.cross
        crossed = cross is not None and cross.views == "cross" and cross.ts > 0
        on_logits = any(loss.on_logits for loss in self.active_losses)
        return self.views is not None and (self.views.student_loss == "all" or on_logits or crossed)

    def _check_mirrored(self) -> None:
        if not self.distils:
            raise KDError(f'"{SECTION}.mirrored_teacher" is true but nothing reads a teacher: set it to false')
        if self.terms.kd is not None and self.terms.kd.mirrorings:
            raise KDError(
                f'"{SECTION}.mirrored_teacher" and "terms.kd.mirrorings" are both set, the one draws what the other averages: '
                'set "mirrored_teacher" to false or remove "mirrorings"'
            )
        decoded = self.need_alignment and (self.act or ACT()).decoded
        if self.terms.cross is not None or decoded:
            key, off = ("terms.cross", "null") if self.terms.cross is not None else ("act.decoded", "0")
            raise KDError(
                f'"{SECTION}.mirrored_teacher" is true, and "{key}" decodes the teacher\'s features, which must lie as the '
                f'teacher saw them: set "{key}" to {off} or "mirrored_teacher" to false'
            )


def read_config(plans: dict, trainer_preset: str | None, trainer_name: str, recipe: dict | None = None) -> Config:
    """The validated configuration in ``plans["nnunet_kd"]``.

    Args:
        plans: the plans file's content.
        trainer_preset: the preset the trainer class stands for; used if the section names none.
        trainer_name: for messages.
        recipe: what a training began with (recipe.py): it stands in for the preset and for the section's own recipe.

    Raises:
        KDError: no section, unknown or unused keys, wrong types or ranges, two presets at odds.
    """
    if SECTION not in plans:
        raise KDError(
            f'plans "{plans.get("plans_name", "?")}" have no "{SECTION}" section, so {trainer_name} cannot run on them: '
            "write them with `nnunet-kd plan DATASET -c CONFIGURATION --teacher FOLDER` and pass `-p nnUNetKDPlans` "
            "(for a scheduled teacher: `--role teacher` and `-p nnUNetTeacherPlans`)"
        )
    section = plans[SECTION]
    if not isinstance(section, dict):
        raise KDError(f'"{SECTION}" in the plans must be an object, got {type(section).__name__}')
    section = kd_as_term(section)
    preset = _preset(section, trainer_preset, trainer_name) if recipe is None else recipe["preset"]
    # a teacher may be trained on views; there is nobody it could distil from
    if section.get("role", "student") == "teacher" and preset not in ("student", "views-only"):
        raise KDError(
            f"these plans are a teacher's (role teacher), {trainer_name} trains students: use -tr nnUNetTrainerScheduled"
        )
    if recipe is None:
        merged = merge(settings_of(preset), section) | {"preset": preset}
    else:
        merged = {k: v for k, v in section.items() if k not in RECIPE} | recipe
    if preset == "student":
        # the undistilled control shares the student's plans: the teacher stands there but is not used
        merged = {k: v for k, v in merged.items() if k not in UNDISTILLED}
    config = build(Config, merged, SECTION)
    if config.need_alignment:
        config = dataclasses.replace(config, msan=config.msan or MSAN(), act=config.act or ACT())
        if config.msan.kind == "vector" and "class" in (g.nodes for g in (config.terms.intra, config.terms.inter) if g):
            raise KDError(
                f'"{SECTION}": nodes "class" need a vector that knows where it is, msan.kind "vector" does not: use "spatial" '
                'or "map", or nodes "patch"'
            )
    return config


def _preset(section: dict, trainer_preset: str | None, trainer_name: str) -> str:
    """The one preset that plans and trainer agree on, by its full name."""
    named = section.get("preset")
    if named is not None and (not isinstance(named, str) or named not in NAMES):
        raise KDError(f'"{SECTION}.preset" is "{named}": known presets are {", ".join(NAMES)}')
    if named is not None and trainer_preset is not None and full_name(named) != full_name(trainer_preset):
        also = "" if full_name(named) == named else f', which is "{full_name(named)}",'
        raise KDError(
            f'the plans name preset "{named}"{also} but trainer {trainer_name} stands for preset "{trainer_preset}": '
            f'remove "preset" from the plans or train with -tr nnUNetTrainerDistillation'
        )
    preset = named or trainer_preset
    if preset is None:
        raise KDError(
            f'trainer {trainer_name} has no preset of its own and "{SECTION}.preset" is missing: '
            f"plan with `--preset NAME` ({', '.join(NAMES)})"
        )
    return full_name(preset)


def to_dict(config: Any) -> dict:
    """A dataclass of this file as plain JSON-able data, without the keys that are None."""
    return {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
