"""User errors: one line that says what is wrong, where, and how to mend it."""

from __future__ import annotations

import sys
from types import TracebackType


class KDError(Exception):
    """A mistake the user can mend. The message is one line and holds the fix."""


class NotSupported(KDError, NotImplementedError):
    """What no setting can make work. nnU-Net asks its trainers for a NotImplementedError there; the message has the reason."""


def first_line(error: Exception) -> str:
    """What an exception says, in one line; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def print_user_errors_in_one_line() -> None:
    """Let an uncaught KDError end the process with its one line instead of a traceback.

    nnU-Net's commands have no error handling of their own, so the trainers call this when they are imported. Every other
    exception keeps Python's traceback.
    """
    previous = sys.excepthook
    if getattr(previous, "_nnunet_kd", False):
        return

    def hook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KDError):
            print(f"nnunet-kd: error: {value}", file=sys.stderr)
        elif issubclass(kind, KeyboardInterrupt) and value.args:  # Ctrl-C in a training, which says how to go on
            print(f"nnunet-kd: {value}", file=sys.stderr)
        else:
            previous(kind, value, traceback)

    hook._nnunet_kd = True
    sys.excepthook = hook
