"""A YAML mapping as a checked dataclass: unknown keys, wrong types and keys given twice are errors in one line."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from nnunet_kd.config.validation import did_you_mean
from nnunet_kd.utils.errors import KDError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")  # becomes part of folder names


def read_yaml(file: Path) -> Any:
    """The content of a YAML file. KDError if it is missing, unreadable, or gives a key twice."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise KDError(f"{file} does not exist: name the comparison's YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KDError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from None


def filled(values: dict, key: str) -> dict:
    """A mapping of the file that must not be empty."""
    if not values[key]:
        raise KDError(f'"{key}" is empty: add at least one')
    return values[key]


def checked_name(where: str, name: Any) -> str:
    """A name that can be part of a folder's name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise KDError(
            f'"{where}" has the name {name!r}: use letters, digits, "+", "-", "_" and "." (in quotes if YAML reads '
            "it as something else)"
        )
    return name


def build(cls: type, data: Any, where: str) -> Any:
    """A dataclass out of one mapping of the file, checked by the class's type hints."""
    return cls(**checked_values(cls, data, where))


def checked_values(cls: type, data: Any, where: str, without: tuple[str, ...] = ()) -> dict:
    """The checked keys of one mapping, by a dataclass's type hints."""
    prefix = f"{where}." if where else ""
    if not isinstance(data, dict):
        raise KDError(f'"{where or "the file"}" must be a mapping with keys, got {data!r}')
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in without}
    hints = typing.get_type_hints(cls)
    for key, value in data.items():
        if key not in fields:
            fix = did_you_mean(key, fields, f"known keys: {', '.join(fields)}")
            raise KDError(f'unknown key "{prefix}{key}"; {fix}')
        allowed = _types(hints[key])
        if float in allowed and type(value) is int:
            allowed = (*allowed, int)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(t.__name__ for t in allowed if t is not type(None))
            raise KDError(f'"{prefix}{key}" is {value!r}: it must be of type {names}')
    for name, f in fields.items():
        optional = type(None) in _types(hints[name]) or name == "seeds"
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data and not optional:
            raise KDError(f'"{prefix}{name}" is missing: add it')
    return dict(data)


def _types(hint: Any) -> tuple[type, ...]:
    """Types that a value of the YAML file may have: paths are text there, nested dataclasses mappings."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    plain = [typing.get_origin(o) or o for o in options]
    return tuple(dict if dataclasses.is_dataclass(o) else str if o is Path else o for o in plain)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.YAMLError(f'key "{name}" is there twice (line {key.start_mark.line + 1}): remove one')
            seen.add(name)
        return super().construct_mapping(node, deep)
