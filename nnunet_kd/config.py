"""What one distillation run is: validated settings out of the student's plans file, section "nnunet_kd".

The section is plain JSON. Presets give defaults, the section overrides them key by key, and a term set to null takes it
out of the preset. Every key is checked against the dataclasses below: unknown keys, wrong types and settings that
nothing would read are errors, never silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from nnunet_kd.errors import KDError
from nnunet_kd.presets import PRESETS

SECTION = "nnunet_kd"


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
        _at_least(self, 1, "epochs", "iterations_per_epoch", "val_iterations_per_epoch", "save_every")
        _in_range(self, 1e-8, 10, "initial_lr")
        _one_of(self, ("float32", "bfloat16"), "cpu_precision")


@dataclass(frozen=True)
class TeacherStages:
    """What must be known of the teacher's network to rebuild everything without the teacher (--val, --c)."""

    family: str
    channels: list
    strides: list
    input_channels: int
    outputs: int
    parameters: int


@dataclass(frozen=True)
class Teacher:
    """The frozen teacher: a trained nnU-Net model folder, relative to nnUNet_results or absolute."""

    folder: str
    configuration: str
    stages: TeacherStages
    plans_hash: str
    fold: int | str = "same"
    checkpoint: str = "checkpoint_final.pth"

    def check(self) -> None:
        if isinstance(self.fold, str) and self.fold not in ("same", "all"):
            raise KDError(f'"{SECTION}.teacher.fold" is "{self.fold}": use "same", "all" or a fold number')


@dataclass(frozen=True)
class Views:
    """Photometric views. ``count`` views besides the anchor; who learns from them is a setting."""

    preset: str = "strong"
    count: int = 1
    student_loss: str = "all"

    def check(self) -> None:
        from nnunet_kd.views import list_presets

        _at_least(self, 1, "count")
        _one_of(self, list_presets(), "preset")
        _one_of(self, ("anchor", "all"), "student_loss")


@dataclass(frozen=True)
class MSAN:
    """Model-Specific Alignment Networks: where they sit and how large they are."""

    kind: str = "vector"
    stages: list = field(default_factory=lambda: ["bottleneck"])
    dim: int = 64
    hidden: int = 64
    after_act: str = "frozen"

    def check(self) -> None:
        _at_least(self, 1, "dim", "hidden")
        _one_of(self, ("vector", "spatial", "map"), "kind")
        _one_of(self, ("frozen", "joint"), "after_act")
        if not self.stages or not all(isinstance(s, str | int) and not isinstance(s, bool) for s in self.stages):
            raise KDError(f'"{SECTION}.msan.stages" must list stages: "bottleneck", "all", encoder stage numbers, '
                          '"decoder" or "decoder0", "decoder1", ...')  # fmt: skip


@dataclass(frozen=True)
class ACT:
    """Alignment Consistency Training. ``start`` and ``end`` are fractions of the training's epochs."""

    start: float = 0.1
    end: float = 0.3
    lr: float = 1e-3
    reconstruction: float = 1.0
    semantic: float = 0.1
    consistency: float = 1.0
    decoded: float = 1.0
    alignment: float = 0.0
    share: float = 1.0

    def check(self) -> None:
        _in_range(self, 0, 1, "start", "end")
        _in_range(self, 1e-8, 1, "lr")
        _in_range(self, 0, 1e4, "reconstruction", "semantic", "consistency", "decoded", "alignment")
        _in_range(self, 1e-3, 1, "share")
        if self.end <= self.start:
            raise KDError(f'"{SECTION}.act": end ({self.end}) must lie after start ({self.start})')
        if self.reconstruction + self.semantic + self.consistency + self.decoded + self.alignment == 0:
            raise KDError(f'"{SECTION}.act": all weights are 0, so the MSAN would never train; raise one')


@dataclass(frozen=True)
class KD:
    """Logit distillation. ``target``: the teacher's prediction on the anchor, or on the view the student sees.

    ``balance`` takes that power of the classes' frequencies out of the teacher's prediction (0: as it is).
    """

    weight: float = 1.0
    temperature: float = 1.0
    target: str = "view"
    balance: float = 0.0

    def check(self) -> None:
        _in_range(self, 1e-9, 1e4, "weight")
        _in_range(self, 1e-2, 100, "temperature")
        _in_range(self, 0, 1, "balance")
        _one_of(self, ("anchor", "view"), "target")


@dataclass(frozen=True)
class Graph:
    """One of DCGD's two graphs. ``tau`` is the softmax's temperature (0.1 unless given)."""

    weight: float = 1.0
    tau: float | None = None
    form: str = "softmax"
    nodes: str = "patch"
    centred: bool = False
    target: str = "view"

    def check(self) -> None:
        _in_range(self, 1e-9, 1e4, "weight")
        if self.tau is not None:
            _in_range(self, 1e-3, 100, "tau")
            if self.form == "squared":
                raise KDError(f'"{SECTION}.terms.intra/inter.tau" is set but form "squared" has no temperature: remove it')
        _one_of(self, ("softmax", "squared"), "form")
        _one_of(self, ("patch", "class"), "nodes")
        _one_of(self, ("anchor", "view"), "target")


@dataclass(frozen=True)
class Cross:
    """DICD. ``views``: "same" (both networks on the anchor) or "cross" (student on a view, teacher on the anchor)."""

    weight: float = 1.0
    ts: float = 1.0
    st: float = 1.0
    views: str = "same"
    share: float = 1.0
    balance: float = 0.0

    def check(self) -> None:
        _in_range(self, 1e-9, 1e4, "weight")
        _in_range(self, 0, 1e4, "ts", "st")
        _in_range(self, 0, 1, "balance")
        _in_range(self, 1e-3, 1, "share")
        _one_of(self, ("same", "cross"), "views")
        if self.ts + self.st == 0:
            raise KDError(f'"{SECTION}.terms.cross": ts and st are both 0; raise one or set "cross" to null')


@dataclass(frozen=True)
class Terms:
    """The distillation terms that are on. A missing or null term is off."""

    kd: KD | None = None
    intra: Graph | None = None
    inter: Graph | None = None
    cross: Cross | None = None

    @property
    def need_msan(self) -> bool:
        """Whether a term reads semantic vectors."""
        return self.intra is not None or self.inter is not None or self.cross is not None

    @property
    def active(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]


@dataclass(frozen=True)
class Config:
    """One run. ``role`` is "teacher" for plans that only carry a schedule and a seed."""

    role: str = "student"
    preset: str | None = None
    seed: int = 0
    ramp: float = 0.05
    schedule: Schedule = field(default_factory=Schedule)
    teacher: Teacher | None = None
    views: Views | None = None
    msan: MSAN | None = None
    act: ACT | None = None
    terms: Terms = field(default_factory=Terms)

    @property
    def need_alignment(self) -> bool:
        """Whether MSANs are trained: for a term, or, with "msan" but no such term, as a probe that only FSD reads."""
        return self.terms.need_msan or self.msan is not None

    def check(self) -> None:
        _one_of(self, ("teacher", "student"), "role")
        _in_range(self, 0, 1, "ramp")
        if not 0 <= self.seed < 2**31:
            raise KDError(f'"{SECTION}.seed" is {self.seed}: use a whole number from 0 to 2147483647')
        if self.terms.active and self.teacher is None:
            raise KDError(
                f'terms {self.terms.active} need a teacher, and "{SECTION}.teacher" is missing: '
                "write the plans with `nnunet-kd plan DATASET -c CONFIGURATION --teacher FOLDER`"
            )
        unused = ["act"] if self.act is not None and not self.need_alignment else []
        if self.msan is not None and not self.terms.active:
            unused.append("msan")
        if unused:
            raise KDError(
                f'"{SECTION}.{unused[0]}" is set but nothing reads it: remove it, or switch a term on (intra, inter, cross; '
                'or "msan" beside "kd", to have semantic vectors for FSD)'
            )
        if self.need_alignment and self.act is not None and self.act.end >= 1:
            raise KDError(f'"{SECTION}.act.end" is {self.act.end}: no time is left to distil; use less than 1')
        if self.need_alignment and self.act is not None and self.act.semantic > 0 and self.act.start == 0:
            raise KDError(f'"{SECTION}.act": the semantic autoencoder trains before "start", which is 0; raise start or set '
                          '"semantic" to 0')  # fmt: skip
        only_consistency = self.act is not None and not (self.act.reconstruction or self.act.semantic or self.act.decoded)
        if self.need_alignment and only_consistency and self.views is None:
            raise KDError(f'"{SECTION}.act": consistency between views is the only part that is on, but there are no views')
        read = self.need_alignment or self.terms.kd is not None
        if self.views is not None and self.views.student_loss == "anchor" and not read:
            raise KDError(f'"{SECTION}.views" are drawn but nothing reads them: set "student_loss" to "all" or remove "views"')
        needs_views = [t for t in ("intra", "inter") if getattr(self.terms, t) is not None]
        if self.terms.cross is not None and self.terms.cross.views == "cross":
            needs_views.append("cross")
        if needs_views and self.views is None:
            raise KDError(f'terms {needs_views} need views, and "{SECTION}.views" is missing: add "views": {{"count": 2}}')
        if self.terms.kd is not None and self.terms.kd.target == "anchor" and self.views is None:
            raise KDError(f'"{SECTION}.terms.kd.target" is "anchor" but there are no views: remove the key')


def read_config(plans: dict, trainer_preset: str | None, trainer_name: str) -> Config:
    """The validated configuration in ``plans["nnunet_kd"]``.

    Args:
        plans: the plans file's content.
        trainer_preset: the preset the trainer class stands for; used if the section names none.
        trainer_name: for messages.

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
    named = section.get("preset")
    if named is not None and named not in PRESETS:
        raise KDError(f'"{SECTION}.preset" is "{named}": known presets are {", ".join(PRESETS)}')
    if named is not None and trainer_preset is not None and named != trainer_preset:
        raise KDError(
            f'the plans name preset "{named}" but trainer {trainer_name} stands for preset "{trainer_preset}": '
            f'remove "preset" from the plans or train with -tr nnUNetTrainerDistillation'
        )
    preset = named or trainer_preset
    if preset is None:
        raise KDError(
            f'trainer {trainer_name} has no preset of its own and "{SECTION}.preset" is missing: '
            f"plan with `--preset NAME` ({', '.join(PRESETS)})"
        )
    # a teacher may be trained on views; there is nobody it could distil from
    if section.get("role", "student") == "teacher" and preset not in ("student", "views-only"):
        raise KDError(
            f"these plans are a teacher's (role teacher), {trainer_name} trains students: use -tr nnUNetTrainerScheduled"
        )
    merged = _merge(PRESETS[preset], section)
    merged["preset"] = preset
    if preset == "student":
        # the undistilled control shares the student's plans: the teacher stands there but is not used
        merged = {k: v for k, v in merged.items() if k not in ("views", "msan", "act", "terms")}
    config = _build(Config, merged, SECTION)
    if config.need_alignment:
        config = dataclasses.replace(config, msan=config.msan or MSAN(), act=config.act or ACT())
        if config.msan.kind == "vector" and "class" in (g.nodes for g in (config.terms.intra, config.terms.inter) if g):
            raise KDError(
                f'"{SECTION}": nodes "class" need a vector that knows where it is, msan.kind "vector" does not: use "spatial" '
                'or "map", or nodes "patch"'
            )
    return config


def to_dict(config: Any) -> dict:
    """A dataclass of this file as plain JSON-able data, without the keys that are None."""
    return {k: v for k, v in dataclasses.asdict(config).items() if v is not None}


def _merge(base: dict, over: dict) -> dict:
    merged = deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def _build(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise KDError(f'"{where}" must be an object with keys, got {data!r}')
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            close = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f'; did you mean "{close[0]}"?' if close else f"; known keys: {', '.join(hints)}"
            raise KDError(f'unknown key "{where}.{key}" in the plans{hint}')
    values = {key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise KDError(f'"{where}.{missing[0]}" is missing from the plans: write them again with `nnunet-kd plan`')
    built = cls(**values)
    if hasattr(built, "check"):
        built.check()
    return built


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in options:
        return None
    options = [o for o in options if o is not type(None)]
    for option in options:
        if dataclasses.is_dataclass(option):
            return _build(option, value, where)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is bool and isinstance(value, bool):
            return value
        if option in (int, str, list) and isinstance(value, option) and not isinstance(value, bool):
            return value
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise KDError(f'"{where}" is {value!r}, it must be of type {names}')


def _at_least(config: Any, low: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < low:
            raise KDError(f'"{_where(config)}.{name}" is {getattr(config, name)}, it must be at least {low}')


def _in_range(config: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        # written so that NaN fails too
        if not low <= getattr(config, name) <= high:
            raise KDError(f'"{_where(config)}.{name}" is {getattr(config, name)}, it must lie in [{low:g}, {high:g}]')


def _one_of(config: Any, allowed: typing.Iterable[str], *names: str) -> None:
    allowed = list(allowed)
    for name in names:
        if getattr(config, name) not in allowed:
            raise KDError(f'"{_where(config)}.{name}" is "{getattr(config, name)}", use one of {", ".join(allowed)}')


def _where(config: Any) -> str:
    place = {"Config": SECTION, "KD": "terms.kd", "Graph": "terms.intra/inter", "Cross": "terms.cross"}
    name = type(config).__name__
    return place.get(name, name.lower()) if name == "Config" else f"{SECTION}.{place.get(name, name.lower())}"
