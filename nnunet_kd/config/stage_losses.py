"""The plans section's "losses": which loss of the literature compares which stage of the student with which of the teacher.

::

    "losses": {
        "logits": {"cwd-logits": {}},
        "bottleneck": {"fitnets": {"weight": 5.0}, "at": {}},
        "encoder1:encoder2": {"cwd-features": {"temperature": 2.0}},
        "encoder0+encoder1": {"fsp": {}}
    }

A place is "logits", or ``STUDENT`` or ``STUDENT:TEACHER`` with stages "bottleneck", "encoder0", "decoder0" ... ("decoder0" is
the last before the logits), or "all" (every encoder stage both have) or "decoder" (every decoder stage). Without
``:TEACHER`` the teacher's stage of the same cumulative stride is taken. A loss that compares two stages at once takes
``A+B``, and "all" there means all neighbours. Values are the loss's own options, besides "weight" (the published one unless
given), "target" and "until".

The terms of section "terms" are losses too: "kd" stands at "logits" and may be written there, "intra", "inter" and "cross"
at the semantic "vectors". :func:`options_class` has the options of all.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from nnunet_kd.config.terms import KD, Cross, Graph, Terms, Weighted
from nnunet_kd.config.validation import SECTION, build, did_you_mean, one_of
from nnunet_kd.utils.errors import KDError

# options of the losses that stand in section "terms"
TERMS: dict[str, type[Weighted]] = {"kd": KD, "intra": Graph, "inter": Graph, "cross": Cross}
LOGITS, VECTORS = "logits", "vectors"
_STAGE = r"(?:bottleneck|encoder\d+|decoder\d+)"
_SIDE = re.compile(rf"{_STAGE}(?:\+{_STAGE})?")
_COMPARED = {"logits": "logits", "features": "features", "pairs": "features", "vectors": "semantic vectors"}
_EXAMPLES = {"logits": '"logits"', "features": '"bottleneck"', "pairs": '"encoder0+encoder1"'}


@dataclass(frozen=True)
class LossOptions(Weighted):
    """Options of a loss of section "losses"; :func:`options_class` adds the loss's own.

    ``target``: the teacher reads the anchor, or the view the student sees.
    """

    target: str = "view"

    heaviest = 1e9

    @property
    def keywords(self) -> dict[str, Any]:
        """The loss's keyword arguments."""
        common = {f.name for f in dataclasses.fields(LossOptions)}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in common}

    def check(self) -> None:
        super().check()
        one_of(self, ("anchor", "view"), "target")


@cache
def options_class(name: str) -> type[Weighted]:
    """The options of a loss as a frozen dataclass: weight and until, target, and the loss's own keyword arguments."""
    if name in TERMS:
        return TERMS[name]
    from nnunet_kd.losses.registry import LOSSES

    loss = LOSSES[name]

    def check(self: Any) -> None:
        LossOptions.check(self)
        loss.example(**self.keywords)  # raises ValueError where it cannot be built

    def reduce(self: Any) -> tuple:  # a class that is made has no place to be pickled from
        return _rebuilt, (name, dataclasses.asdict(self))

    fields = [("weight", float, loss.weight), *((key, type(p.default), p.default) for key, p in loss.settings().items())]
    return dataclasses.make_dataclass(
        f"{loss.__name__}Options", fields, bases=(LossOptions,), namespace={"check": check, "__reduce__": reduce}, frozen=True
    )


def _rebuilt(name: str, values: dict[str, Any]) -> Weighted:
    return options_class(name)(**values)


@dataclass(frozen=True)
class LossSetting:
    """One loss at one place, of section "terms" or "losses".

    ``start``: the fraction of the training from which on it counts.
    """

    place: str
    name: str
    options: Any
    start: float = 0.0

    @property
    def path(self) -> str:
        """Where it stands in the plans, below their section."""
        return f"terms.{self.name}" if self.name in TERMS else f"losses.{self.place}.{self.name}"

    @property
    def key(self) -> str:
        """What the log calls it."""
        return self.name if self.name in TERMS else f"{self.name}@{self.place}"

    @property
    def weight(self) -> float:
        return self.options.weight

    @property
    def target(self) -> str | None:
        return getattr(self.options, "target", None)

    def weight_at(self, progress: float, ramp: float) -> float:
        """The weight after this fraction of the training; ``ramp`` is the run's."""
        return self.options.weight_at(progress, self.start, ramp)

    @property
    def on_logits(self) -> bool:
        return self.place == LOGITS

    @property
    def on_stages(self) -> bool:
        return self.place not in (LOGITS, VECTORS)

    @property
    def sides(self) -> tuple[str, str | None]:
        """The student's stages and the teacher's, None where the stride decides."""
        student, _, teacher = self.place.partition(":")
        return student, teacher or None


def term_losses(terms: Terms, vectors_from: float) -> list[LossSetting]:
    """The terms that are on; those that read semantic vectors start when these are trained."""
    return [
        LossSetting(LOGITS, name, getattr(terms, name))
        if name == "kd"
        else LossSetting(VECTORS, name, getattr(terms, name), vectors_from)
        for name in terms.active
    ]


def kd_as_term(section: dict) -> dict:
    """The plans section with ``losses.logits.kd``, where there is one, in its other place, ``terms.kd``.

    Raises:
        KDError: it stands in both.
    """
    losses = section.get("losses")
    on_logits = losses.get(LOGITS) if isinstance(losses, dict) else None
    if not isinstance(losses, dict) or not isinstance(on_logits, dict) or "kd" not in on_logits:
        return section
    terms = section.get("terms") or {}
    if isinstance(terms, dict) and "kd" in terms:
        raise KDError(f'"{SECTION}.losses.logits.kd" and "{SECTION}.terms.kd" are the same loss: remove one of them')
    rest = {name: options for name, options in on_logits.items() if name != "kd"}
    others = {place: content for place, content in losses.items() if place != LOGITS} | ({LOGITS: rest} if rest else {})
    moved = {key: value for key, value in section.items() if key != "losses"} | ({"losses": others} if others else {})
    return moved | {"terms": {**terms, "kd": on_logits["kd"]} if isinstance(terms, dict) else terms}


def read_losses(section: dict | None) -> list[LossSetting]:
    """The checked entries of section "losses", those set to null left out.

    Raises:
        KDError: unknown places, losses or options, values of the wrong type or out of range, a loss on what it cannot read.
    """
    settings = []
    for place, losses in (section or {}).items():
        if losses is None:
            continue
        where = f"{SECTION}.losses.{place}"
        _check_place(place, where)
        if not isinstance(losses, dict) or not losses:
            raise KDError(f'"{where}" is {losses!r}: it must name losses, such as {{"at": {{}}}}')
        settings += [_read(place, name, options, where) for name, options in losses.items() if options is not None]
    return settings


def _check_place(place: str, where: str) -> None:
    if place in (LOGITS, "all", "decoder"):
        return
    sides = place.split(":")
    if len(sides) > 2 or not all(_SIDE.fullmatch(side) for side in sides):
        raise KDError(
            f'unknown place "{where}": use "logits", "bottleneck", "encoder0", "decoder0", "all", "decoder", '
            '"STUDENT_STAGE:TEACHER_STAGE", or "encoder0+encoder1" for a loss that compares two stages'
        )
    if len({"+" in side for side in sides}) > 1:
        raise KDError(f'"{where}": name two stages on both sides of the colon, or on neither')


def _read(place: str, name: str, options: Any, where: str) -> LossSetting:
    from nnunet_kd.losses.registry import LOSSES

    if name not in LOSSES:
        fix = did_you_mean(name, LOSSES, f"known losses: {', '.join(n for n in LOSSES if n not in TERMS)}")
        raise KDError(f'unknown loss "{where}.{name}"; {fix}')
    where = f"{where}.{name}"
    if name in TERMS:
        raise KDError(f'"{where}": {name} is the term "{SECTION}.terms.{name}"; set it there')
    if not isinstance(options, dict):
        raise KDError(f'"{where}" must be an object with options, got {options!r}')
    reads = LOSSES[name].reads
    if (place == LOGITS) != (reads == "logits"):
        fix = f"put it under {_EXAMPLES[reads]}" if reads == "logits" else f"put it under a stage, such as {_EXAMPLES[reads]}"
        raise KDError(f'"{where}": {name} compares {_COMPARED[reads]}: {fix}')
    if ("+" in place) != (reads == "pairs") and place not in ("all", "decoder"):
        fix = f"name two stages, such as {_EXAMPLES[reads]}" if reads == "pairs" else "name one stage"
        raise KDError(f'"{where}": {fix}')
    return LossSetting(place, name, build(options_class(name), options, where))
