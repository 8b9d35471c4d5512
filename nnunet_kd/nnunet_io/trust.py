"""A model folder from a stranger is data, not code: the classes its plans may name, and the flag for what goes beyond.

A checkpoint is a pickle, which can ask for any function to be called; checkpoints.py reads it without. plans.json is less
innocent than it looks: nnU-Net imports the classes that "architecture" names and calls them with arguments from the same
file, so that "nonlin": "os.system" with "nonlin_kwargs": {"command": ...} would run a command.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import pydoc
from pathlib import Path

from nnunet_kd.utils.errors import KDError

VARIABLE = "nnUNet_kd_trust"
_PACKAGES = ("torch.nn.", "dynamic_network_architectures.")  # where the classes of nnU-Net's planners lie
_MOVED = "dynamic_network_architectures.architectures."  # nnU-Net looks for a class of this package wherever it lies in it


def trusted(path: str | Path) -> bool:
    """Whether the user vouches for this file, by naming it or a folder above it in ``nnUNet_kd_trust``.

    Several are separated as in PATH. What is named there may run code when it is loaded.
    """
    path = Path(path).resolve()
    named = [Path(p).expanduser().resolve() for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p.strip()]
    return any(path == p or p in path.parents for p in named)


def how_to_trust(path: str | Path) -> str:
    """The sentence that tells about the flag."""
    return f"if you trust its source with your account, export {VARIABLE}={path}"


def check_architectures(plans: dict, file: Path) -> None:
    """Make sure that a plans file names nothing but network classes of torch.nn and dynamic_network_architectures.

    Args:
        plans: content of ``file``.

    Raises:
        KDError: another class or function is named, and ``file`` is not trusted.
    """
    if trusted(file):
        return
    for name, configuration in plans["configurations"].items():
        try:
            architecture = configuration.get("architecture") or {}
            kwargs = architecture.get("arch_kwargs") or {}
            named = {"network_class_name": architecture.get("network_class_name")}
            named |= {key: kwargs.get(key) for key in architecture.get("_kw_requires_import") or ()}
        except (AttributeError, TypeError):
            raise KDError(f"{file} is not nnU-Net's (configurations.{name} is damaged): restore the file") from None
        for key, value in named.items():
            if value is not None and not _is_network_class(value):
                raise KDError(
                    f"refused to use {file}: configurations.{name}.architecture names {value!r} as {key}, which is no network "
                    f"class of {' or '.join(p.rstrip('.') for p in _PACKAGES)} and could run code; {how_to_trust(file)}"
                )


def _is_network_class(name: object) -> bool:
    from torch import nn

    if not isinstance(name, str) or not name.startswith(_PACKAGES):
        return False
    try:
        named = [pydoc.locate(name)]
    except pydoc.ErrorDuringImport:
        return False
    if named == [None] and name.startswith(_MOVED):
        named = _architectures_named(name.rsplit(".", 1)[-1])
    # torch.nn.functional.torch.os.system begins with torch.nn, too
    classes = [n for n in named if isinstance(n, type) and issubclass(n, nn.Module) and n.__module__.startswith(_PACKAGES)]
    return bool(named) and classes == named


def _architectures_named(class_name: str) -> list[object]:
    """What nnU-Net may build where plans name a module that is not there, as its own of older plans do (residual_unet)."""
    from dynamic_network_architectures import architectures

    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(architectures.__path__, _MOVED)]
    return [getattr(m, class_name) for m in modules if hasattr(m, class_name)]
