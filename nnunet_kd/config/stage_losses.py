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
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from nnunet_kd.config.validation import SECTION, did_you_mean
from nnunet_kd.utils.errors import KDError

GEOMETRY = ("student_channels", "teacher_channels", "dims", "classes", "regions")  # what the trainer knows and passes
_STAGE = r"(?:bottleneck|encoder\d+|decoder\d+)"
_SIDE = re.compile(rf"{_STAGE}(?:\+{_STAGE})?")


@dataclass(frozen=True)
class LossSetting:
    """One loss at one place.

    ``target``: the teacher reads the anchor, or the view the student sees. ``until``: the fraction of the training at which the
    weight has fallen to 0, in a straight line from the start; None: it stays.
    """

    place: str
    name: str
    weight: float
    target: str
    options: dict[str, Any]
    until: float | None = None

    def weight_at(self, progress: float) -> float:
        """The weight at this fraction of the training, the ramp at the start left out."""
        return self.weight if self.until is None else self.weight * max(0.0, 1 - progress / self.until)

    @property
    def on_logits(self) -> bool:
        return self.place == "logits"

    @property
    def sides(self) -> tuple[str, str | None]:
        """The student's stages and the teacher's, None where the stride decides."""
        student, _, teacher = self.place.partition(":")
        return student, teacher or None


def read_losses(section: dict | None) -> list[LossSetting]:
    """The checked entries of section "losses", those set to null left out.

    Raises:
        KDError: unknown places, losses or options, values of the wrong type or out of range, a loss on what it cannot read.
    """
    found = []
    for place, losses in (section or {}).items():
        if losses is None:
            continue
        where = f"{SECTION}.losses.{place}"
        _check_place(place, where)
        if not isinstance(losses, dict) or not losses:
            raise KDError(f'"{where}" is {losses!r}: it must name losses, such as {{"at": {{}}}}')
        found += [_read(place, name, options, where) for name, options in losses.items() if options is not None]
    return found


def _check_place(place: str, where: str) -> None:
    if place in ("logits", "all", "decoder"):
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

    if name == "kd":
        raise KDError(f'"{where}.kd": logit distillation is the term "{SECTION}.terms.kd"; set it there')
    if name not in LOSSES:
        fix = did_you_mean(name, LOSSES, f"known losses: {', '.join(n for n in LOSSES if n != 'kd')}")
        raise KDError(f'unknown loss "{where}.{name}"; {fix}')
    loss, where = LOSSES[name], f"{where}.{name}"
    if not isinstance(options, dict):
        raise KDError(f'"{where}" must be an object with options, got {options!r}')
    if (place == "logits") != (loss.reads == "logits"):
        fix = 'put it under "logits"' if loss.reads == "logits" else 'put it under a stage, such as "bottleneck"'
        raise KDError(f'"{where}": {name} compares {loss.reads}: {fix}')
    if ("+" in place) != takes_pairs(loss) and place not in ("all", "decoder"):
        fix = 'name two stages, such as "encoder0+encoder1"' if takes_pairs(loss) else "name one stage"
        raise KDError(f'"{where}": {fix}')
    own = dict(options)
    weight, target, until = own.pop("weight", loss.weight), own.pop("target", "view"), own.pop("until", None)
    if not _number_in(weight, 1e-9, 1e9):
        raise KDError(f'"{where}.weight" is {weight!r}, it must be a number in [1e-09, 1e+09]')
    if target not in ("anchor", "view"):
        raise KDError(f'"{where}.target" is {target!r}, use one of anchor, view')
    if until is not None and not _number_in(until, 1e-3, 1):
        raise KDError(f'"{where}.until" is {until!r}, it must be a fraction of the training in [0.001, 1], or null')
    _check_options(loss, own, where)
    return LossSetting(place, name, float(weight), target, own, until)


def _number_in(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def takes_pairs(loss: type) -> bool:
    """Whether a loss compares two stages of each network at once."""
    return getattr(loss, "pairs", False)


def _check_options(loss: type, options: dict, where: str) -> None:
    parameters = inspect.signature(loss.__init__).parameters
    known = [p for p in parameters if p != "self" and p not in GEOMETRY]
    for key in options:
        if key not in known:
            words = ["weight", "target", "until", *known]
            fix = did_you_mean(key, words, f"known keys: {', '.join(words)}")
            raise KDError(f'unknown key "{where}.{key}" in the plans; {fix}')
        default = parameters[key].default
        right = float if isinstance(default, float) else type(default)
        value = options[key]
        fits = isinstance(value, int | float) if right is float else isinstance(value, right)
        if not fits or (isinstance(value, bool) and right is not bool):
            raise KDError(f'"{where}.{key}" is {value!r}, it must be of type {right.__name__}')
    try:
        loss(**options, **example_geometry(loss))
    except ValueError as error:
        raise KDError(f'"{where}": {error}') from None


def example_geometry(loss: type) -> dict[str, Any]:
    """Smallest geometry a loss can be built with: to check its options before any network exists."""
    channels = (1, 1) if takes_pairs(loss) else 1
    values = {"student_channels": channels, "teacher_channels": channels, "dims": 2, "classes": 2, "regions": False}
    return {k: v for k, v in values.items() if k in inspect.signature(loss.__init__).parameters}
