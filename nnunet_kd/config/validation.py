"""Plain JSON into checked dataclasses: unknown keys, wrong types and values out of range are one-line errors."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from copy import deepcopy
from typing import Any

from nnunet_kd.utils.errors import KDError

SECTION = "nnunet_kd"


class BadValue(KDError):
    """A value that its dataclass refuses. The dataclass knows the value's name, :func:`build` the place it stands at."""

    def __init__(self, name: str, says: str) -> None:
        super().__init__(f'"{name}" {says}')
        self.name, self.says = name, says


def did_you_mean(word: Any, known: typing.Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown word: the known one it resembles, or ``otherwise``."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f'did you mean "{close[0]}"?' if close else otherwise


def merge(base: dict, over: dict) -> dict:
    """A copy of ``base`` with the values of ``over`` in it, dictionaries merged key by key."""
    merged = deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def build(cls: type, data: Any, where: str) -> Any:
    """The dataclass ``cls`` from plain JSON, checked.

    Args:
        where: path of ``data`` in the plans, for messages.

    Raises:
        KDError: an unknown or missing key, a wrong type, or what ``cls.check`` refuses.
    """
    if not isinstance(data, dict):
        raise KDError(f'"{where}" must be an object with keys, got {data!r}')
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            fix = did_you_mean(key, hints, f"known keys: {', '.join(hints)}")
            raise KDError(f'unknown key "{where}.{key}" in the plans; {fix}')
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
        try:
            built.check()
        except BadValue as error:
            raise KDError(f'"{where}.{error.name}" {error.says}') from None
        except ValueError as error:  # a loss's own
            raise KDError(f'"{where}": {error}') from None
    return built


def _value(hint: Any, value: Any, where: str) -> Any:
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in alternatives:
        return None
    options = [o for o in alternatives if o is not type(None)]
    for option in options:
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return build(option, value, where)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is bool and isinstance(value, bool):
            return value
        if option in (int, str, list, dict) and isinstance(value, option) and not isinstance(value, bool):
            return value
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise KDError(f'"{where}" is {value!r}, it must be of type {names}')


def at_least(config: Any, low: int, *names: str) -> None:
    """Raise BadValue for the first of these fields that is below ``low``."""
    for name in names:
        if getattr(config, name) < low:
            raise BadValue(name, f"is {getattr(config, name)}, it must be at least {low}")


def in_range(config: Any, low: float, high: float, *names: str) -> None:
    """Raise BadValue for the first of these fields outside [low, high]."""
    for name in names:
        # written so that NaN fails too
        if not low <= getattr(config, name) <= high:
            raise BadValue(name, f"is {getattr(config, name)}, it must lie in [{low:g}, {high:g}]")


def one_of(config: Any, allowed: typing.Iterable[str], *names: str) -> None:
    """Raise BadValue for the first of these fields that is not among the allowed."""
    allowed = list(allowed)
    for name in names:
        if getattr(config, name) not in allowed:
            raise BadValue(name, f'is "{getattr(config, name)}", use one of {", ".join(allowed)}')
