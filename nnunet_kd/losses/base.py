"""What every loss between a student and a teacher says of itself. The registry finds the classes that say it."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from torch import nn

# keyword arguments of a loss that the networks and the data decide; all others are settings of the plans file
CONTEXT = ("student_channels", "teacher_channels", "dims", "classes", "regions", "gather")
READS = ("logits", "features", "pairs", "vectors")


class Loss(nn.Module):
    """A loss that plans can name: ``loss(student, teacher, target)`` gives a scalar.

    A subclass with a ``name`` is in the registry. The keyword arguments of its ``__init__`` are its settings, with numbers or
    text as defaults, but for those in :data:`CONTEXT`, which the networks and the data decide; values that it cannot use
    raise ValueError.

    Attributes:
        name: in plans and logs.
        reads: "logits" `(B, C, *S)`, "features" of one stage `(B, K, *S)`, "pairs" of such features of two stages, or what
            comes of semantic "vectors" (the terms of GKD).
        weight: the published one, at the reduction of this implementation.
        needs_target: it reads the annotation `(B, *S)`: class numbers, -1 where not annotated.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    weight: ClassVar[float] = 1.0
    needs_target: ClassVar[bool] = False

    @classmethod
    def settings(cls) -> dict[str, inspect.Parameter]:
        """Its keyword arguments that are settings, by name."""
        return {name: p for name, p in _keywords(cls).items() if name not in CONTEXT}

    @classmethod
    def build(cls, settings: dict[str, Any], **context: Any) -> Loss:
        """The loss with these settings and with what it takes of ``context``.

        Raises:
            ValueError: a setting out of range, or one that does not go with the context.
        """
        return cls(**settings, **{name: value for name, value in context.items() if name in _keywords(cls)})

    @classmethod
    def example(cls, **settings: Any) -> Loss:
        """The loss for the smallest networks there are: to check settings before any network exists."""
        channels = (1, 1) if cls.reads == "pairs" else 1
        return cls.build(settings, student_channels=channels, teacher_channels=channels, dims=2, classes=2, regions=False)


def _keywords(cls: type) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]  # read, not called
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
