"""What a method is made of, checked: views, MSANs, their training (ACT), and the distillation terms.

Parts of the plans section "nnunet_kd"; ``run.py`` puts them together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from nnunet_kd.config.validation import SECTION, BadValue, at_least, in_range, one_of
from nnunet_kd.utils.errors import KDError


@dataclass(frozen=True)
class Views:
    """Photometric views. ``count`` views besides the anchor; who learns from them is a setting."""

    preset: str = "strong"
    count: int = 1
    student_loss: str = "all"

    def check(self) -> None:
        from nnunet_kd.augmentation.views import list_presets

        at_least(self, 1, "count")
        one_of(self, list_presets(), "preset")
        one_of(self, ("anchor", "all"), "student_loss")


@dataclass(frozen=True)
class MSAN:
    """Model-Specific Alignment Networks: where they sit and how large they are."""

    kind: str = "vector"
    stages: list = field(default_factory=lambda: ["bottleneck"])
    dim: int = 64
    hidden: int = 64
    after_act: str = "frozen"

    def check(self) -> None:
        at_least(self, 1, "dim", "hidden")
        one_of(self, ("vector", "spatial", "map"), "kind")
        one_of(self, ("frozen", "joint"), "after_act")
        if not self.stages or not all(isinstance(s, str | int) and not isinstance(s, bool) for s in self.stages):
            raise KDError(
                f'"{SECTION}.msan.stages" must list stages: "bottleneck", "all", encoder stage numbers, '
                '"decoder" or "decoder0", "decoder1", ...'
            )


@dataclass(frozen=True)
class ACT:
    """Alignment Consistency Training. ``start`` and ``end`` are fractions of the training's epochs.

    ``autoencoder``: checkpoint of an earlier training whose P-SAE is taken over, relative to nnUNet_results or absolute;
    without one it trains before ``start``.
    """

    start: float = 0.1
    end: float = 0.3
    lr: float = 1e-3
    reconstruction: float = 1.0
    semantic: float = 0.1
    consistency: float = 1.0
    decoded: float = 1.0
    alignment: float = 0.0
    share: float = 1.0
    autoencoder: str | None = None

    def check(self) -> None:
        in_range(self, 0, 1, "start", "end")
        in_range(self, 1e-8, 1, "lr")
        in_range(self, 0, 1e4, "reconstruction", "semantic", "consistency", "decoded", "alignment")
        in_range(self, 1e-3, 1, "share")
        if self.end <= self.start:
            raise KDError(f'"{SECTION}.act": end ({self.end}) must lie after start ({self.start})')
        if self.reconstruction + self.semantic + self.consistency + self.decoded + self.alignment == 0:
            raise KDError(f'"{SECTION}.act": all weights are 0, so the MSAN would never train; raise one')
        if self.autoencoder is not None and not self.semantic:
            raise KDError(f'"{SECTION}.act.autoencoder" is set but "semantic" is 0, so nothing reads it: remove it')


@dataclass(frozen=True)
class Weighted:
    """How heavy a loss is, and when: what every loss of a run has, wherever it stands. This is the one place of weights.

    ``until``: the fraction of the training at which the weight has fallen to 0, in a straight line from the loss's start;
    None: it stays.
    """

    weight: float = 1.0
    until: float | None = None

    heaviest = 1e4  # no annotation, so no setting

    def check(self) -> None:
        in_range(self, 1e-9, self.heaviest, "weight")
        if self.until is not None and not 1e-3 <= self.until <= 1:
            raise BadValue("until", f"is {self.until}, it must be a fraction of the training in [0.001, 1], or null")

    def weight_at(self, progress: float, start: float, ramp: float) -> float:
        """The weight after this fraction of the training.

        Args:
            progress: 0 at the beginning of the training, 1 at its end.
            start: the loss counts from here on; before, its weight is 0.
            ramp: so much of the training later it counts in full.
        """
        since = progress - start
        if since < 0:
            return 0.0
        weight = self.weight if self.until is None else self.weight * max(0.0, 1 - since / (self.until - start))
        return weight * (min(1.0, since / ramp) if ramp > 0 else 1.0)


@dataclass(frozen=True)
class KD(Weighted):
    """Logit distillation. ``target``: the teacher's prediction on the anchor, or on the view the student sees.

    ``balance`` takes that power of the classes' frequencies out of the teacher's prediction (0: as it is). ``mirrorings``: the
    teacher's prediction is averaged with those of so many mirrored copies, drawn at every step (none unless given).
    """

    temperature: float = 1.0
    target: str = "view"
    balance: float = 0.0
    mirrorings: int | None = None

    def check(self) -> None:
        super().check()
        in_range(self, 1e-2, 100, "temperature")
        in_range(self, 0, 1, "balance")
        one_of(self, ("anchor", "view"), "target")
        if self.mirrorings is not None:
            at_least(self, 1, "mirrorings")


@dataclass(frozen=True)
class Graph(Weighted):
    """One of DCGD's two graphs. ``tau`` is the softmax's temperature (0.1 unless given)."""

    tau: float | None = None
    form: str = "softmax"
    nodes: str = "patch"
    centred: bool = False
    target: str = "view"

    def check(self) -> None:
        super().check()
        if self.tau is not None:
            in_range(self, 1e-3, 100, "tau")
            if self.form == "squared":
                raise BadValue("tau", 'is set but form "squared" has no temperature: remove it')
        one_of(self, ("softmax", "squared"), "form")
        one_of(self, ("patch", "class"), "nodes")
        one_of(self, ("anchor", "view"), "target")


@dataclass(frozen=True)
class Cross(Weighted):
    """DICD. ``views``: "same" (both networks on the anchor) or "cross" (student on a view, teacher on the anchor).

    ``share`` is the part of the batch's patches it reads, at least one; ``every`` n: on every n-th step only, n times as heavy
    (every step unless given).
    """

    ts: float = 1.0
    st: float = 1.0
    views: str = "same"
    share: float = 1.0
    every: int | None = None
    balance: float = 0.0

    def check(self) -> None:
        super().check()
        in_range(self, 0, 1e4, "ts", "st")
        in_range(self, 0, 1, "balance")
        in_range(self, 1e-3, 1, "share")
        if self.every is not None:
            at_least(self, 1, "every")
        one_of(self, ("same", "cross"), "views")
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
