"""Long steps say how far they are, on a terminal and in a log file."""

import re

import pytest

from nnunet_kd.utils import progress as module
from nnunet_kd.utils.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it; the last line was written at 0."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_last_line_at", 0.0)
    return now


def test_into_a_file_there_is_a_line_every_30_seconds_with_step_count_and_time_left(clock, capsys):
    for _ in progress(range(10), "gkd on DRIVE"):
        clock[0] += 12
    assert capsys.readouterr().err.splitlines() == [
        "gkd on DRIVE: 3 of 10 cases done, about 84 s left",
        "gkd on DRIVE: 6 of 10 cases done, about 48 s left",
        "gkd on DRIVE: 9 of 10 cases done, about 12 s left",
    ]


def test_many_short_steps_say_something_and_quick_ones_nothing(clock, capsys):
    for step in range(4):
        for _ in progress(iter("ab"), f"step {step}", unit="file"):
            clock[0] += 8
    assert capsys.readouterr().err.splitlines() == ["step 2: 0 files done"]


def test_on_a_terminal_there_is_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress([1, 2, 3], "verify", leave=True)) == [1, 2, 3]
    assert re.search(r"verify: 100%.*3/3", capsys.readouterr().err)


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (89.6, "90 s"), (600, "10 min"), (9000, "2.5 h")])
def test_clock(seconds, text):
    assert module._clock(seconds) == text
