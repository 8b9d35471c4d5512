"""Every key of the plans section with a wrong type, a value out of range and a misspelled name, out of the dataclasses."""

import copy
import dataclasses
import math
import types
import typing

import pytest
from helpers import TEACHER, plans

from nnunet_kd.config.run import Config, read_config
from nnunet_kd.config.stage_losses import TERMS, options_class, read_losses
from nnunet_kd.config.validation import merge
from nnunet_kd.losses.registry import LOSSES
from nnunet_kd.utils.errors import KDError

# any text names something: a folder, a file, a kind of network, a hash
TEXTS = {
    "teacher.folder",
    "teacher.configuration",
    "teacher.checkpoint",
    "teacher.plans_hash",
    "teacher.stages.family",
    "previous_stage",
    "act.autoencoder",
}
OF_TYPE = {bool: True, int: 3, float: 1.5, str: "x", list: [1], dict: {"a": 1}}


def keys(cls: type = Config, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list]]:
    """Path and allowed types of every key under the section, objects included."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        types_ = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        here = (*path, name)
        found.append((here, list(types_)))
        for option in types_:
            if dataclasses.is_dataclass(option):
                found += keys(option, here)
    return found


def nested(path: tuple[str, ...], value) -> dict:
    for name in reversed(path):
        value = {name: value}
    return value


def fails(path: tuple[str, ...], value, says: str) -> None:
    """The section with this value under this key is refused in one line that names the key."""
    section = merge({"teacher": copy.deepcopy(TEACHER)}, nested(path, value))
    with pytest.raises(KDError, match=says) as error:
        read_config(plans(**section), "cross-view", "nnUNetTrainerX")
    message = str(error.value)
    assert "\n" not in message and path[-1] in message and "nnunet_kd" in message, message


def ids(entry) -> str:
    return ".".join(entry[0])


@pytest.mark.parametrize("key", keys(), ids=ids)
def test_a_value_of_another_type_is_refused(key):
    path, allowed = key
    wrong = [v for t, v in OF_TYPE.items() if t not in allowed and not (t is int and float in allowed)]
    if any(dataclasses.is_dataclass(t) for t in allowed):
        wrong.remove(OF_TYPE[dict])  # an object, with keys of its own
    if type(None) not in allowed:
        wrong.append(None)
    assert len(wrong) >= 3
    for value in wrong:
        fails(path, value, "it must be of type|must be an object|known presets|use .same.|missing")


@pytest.mark.parametrize(
    "key",
    [k for k in keys() if ".".join(k[0]) not in TEXTS and bool not in k[1] and not any(map(dataclasses.is_dataclass, k[1]))],
    ids=ids,
)
def test_a_value_out_of_range_is_refused(key):
    path, allowed = key
    impossible = {
        int: [-1],
        float: [-1.0, math.nan, math.inf, -math.inf],
        str: ["nonsense"],
        list: [[], [None], [[]], [[1], 2, [4]]],
        dict: [{"nowhere": {"at": {}}}],
    }
    values = [v for t in allowed if t in impossible for v in impossible[t]]
    if path[-1] in ("channels", "strides"):
        values.remove([])  # a network without stages
    assert values
    for value in values:
        fails(path, value, ".")


@pytest.mark.parametrize(
    "path",
    [()] + [p for p, allowed in keys() if any(map(dataclasses.is_dataclass, allowed))],
    ids=lambda p: ".".join(p) or "section",
)
def test_a_misspelled_key_is_refused(path):
    name = ".".join(("nnunet_kd", *path, "weihgt"))
    fails((*path, "weihgt"), 1, f'unknown key "{name}" in the plans; (did you mean|known keys)')


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in TERMS])
def test_options_of_a_loss_have_types(name):
    place = {"logits": "logits", "features": "bottleneck", "pairs": "encoder0+encoder1"}[LOSSES[name].reads]
    options = {f.name: f.default for f in dataclasses.fields(options_class(name)) if f.name != "until"}
    for option, default in options.items():
        for value in ("nonsense", True, None, [1], -1.0, math.nan):
            if type(value) is type(default) and option not in ("weight", "target"):
                continue  # a range is each loss's own business, see test_stage_losses.py
            with pytest.raises(KDError, match=f'"nnunet_kd.losses.{place.replace("+", ".")}.{name}') as error:
                read_losses({place: {name: {option: value}}})
            assert "\n" not in str(error.value)
