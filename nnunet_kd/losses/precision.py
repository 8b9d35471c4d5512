"""float32 for losses and small alignment networks, whatever autocast does around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def full_precision(function: Function) -> Function:
    """Run ``function`` outside autocast, with half-precision tensor arguments cast to float32.

    float64 stays float64, so that gradients can be checked numerically. Softmaxes at small temperatures, cosines and
    sums over a patch lose too much in 16 bits.
    """

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        device = next(_tensors([*args, *kwargs.values()])).device.type
        with torch.autocast(device_type=device, enabled=False):
            return function(*map(_full, args), **{key: _full(value) for key, value in kwargs.items()})

    return inner  # type: ignore[return-value]


def _full(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list | tuple):  # deep supervision's outputs
        return [_full(part) for part in value]
    return value


def _tensors(values: list | tuple) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
