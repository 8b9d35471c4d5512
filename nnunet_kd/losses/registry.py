"""Every loss by the name that plans and logs use. A new file in this folder is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from nnunet_kd.losses.base import READS, Loss

_PACKAGE = __package__


def _named_losses() -> dict[str, type[Loss]]:
    losses: dict[str, type[Loss]] = {}
    for file in pkgutil.walk_packages([str(Path(__file__).parent)], f"{_PACKAGE}."):
        module = importlib.import_module(file.name)
        for cls in vars(module).values():
            if not (isinstance(cls, type) and issubclass(cls, Loss) and cls.__module__ == file.name and "name" in vars(cls)):
                continue
            if cls.name in losses or cls.reads not in READS:
                raise TypeError(f'{cls.__module__}.{cls.__name__}: a second loss "{cls.name}", or reads none of {READS}')
            losses[cls.name] = cls
    return losses


LOSSES: dict[str, type[Loss]] = _named_losses()
