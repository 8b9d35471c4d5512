"""The benchmark scripts at sizes that say nothing about speed: they run, count the right rows and explain mistakes."""

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from nnunet_kd.augmentation.views import VIEW_PRESETS
from nnunet_kd.config.presets import PRESETS

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = ["--batch", "2", "--teacher-features", "4", "8", "8", "--student-features", "2", "4", "4", "--clock", "cpu"]
FLAT = [*TINY, "--patch", "16", "16"]


@pytest.fixture
def bench(monkeypatch, capsys):
    """`bench(script, *arguments)` -> exit code, lines on stdout, stderr."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(script: str, *arguments: str) -> tuple[int, list[str], str]:
        code = importlib.import_module(script).main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


@pytest.fixture
def step(bench):
    """`step(*arguments)` -> the figures of bench_step.py, by row."""

    def run(*arguments: str) -> dict[str, dict]:
        code, lines, error = bench("bench_step", *arguments)
        assert code == 0, error
        return {figure["row"]: figure for figure in json.loads(lines[-1])}

    return run


@pytest.mark.slow
def test_every_preset_has_a_row_and_undistilled_training_is_its_own_floor(step):
    before = {name: value for name, value in os.environ.items() if name.startswith("nnUNet")}
    figures = step(*FLAT, "--rounds", "5")
    # the user's folders are set again
    assert {name: value for name, value in os.environ.items() if name.startswith("nnUNet")} == before
    assert list(figures) == list(PRESETS)
    # the same code on both sides
    assert 0.6 < figures["student"]["ratio"]["median"] < 1.6
    # four terms and ACT cost something, however small the networks
    assert figures["cross-view"]["ratio"]["median"] > 1.2
    for figure in figures.values():
        assert figure["strict_ratio"]["low"] <= figure["strict_ratio"]["median"] <= figure["strict_ratio"]["high"]
        assert figure["step_ms"]["median"] > 0 and figure["floor_ms"]["median"] > 0


@pytest.mark.parametrize(
    ("preset", "rows"),
    [
        ("student", (0, 2, 0, 0)),
        ("views-only", (1, 4, 0, 0)),
        ("kd", (0, 2, 2, 2)),
        ("kd+views", (1, 4, 2, 2)),  # the teacher predicts the anchors
        ("cross-view", (1, 4, 4, 2)),  # its graphs and ACT read the teacher's features of the views
        ("cross", (2, 6, 2, 2)),  # the student's features of the views are read by nothing, its forward has them all the same
        ("all", (2, 6, 6, 2)),  # the graphs read the teacher on every view, its decoder runs on the anchors
    ],
)
def test_the_floor_has_the_rows_that_the_networks_read(step, preset, rows):
    figure = step(*FLAT, "--rounds", "1", "--presets", preset)[preset]
    found = ("views", "student_rows", "teacher_rows", "teacher_rows_decoded")
    assert tuple(figure[name] for name in found) == rows


def test_where_the_time_goes_names_every_term_and_adds_up(step):
    figures = step(*FLAT, "--rounds", "3", "--presets", "student", "kd", "all", "cross-view", "--where")
    assert "where_ms" not in figures["student"]
    assert {"intra", "inter", "cross_ts", "cross_st", "views", "teacher", "terms", "rest"} <= figures["all"]["where_ms"].keys()
    assert {"kd", "teacher", "rest"} <= figures["kd"]["where_ms"].keys()
    assert not {"intra", "views"} & figures["kd"]["where_ms"].keys()
    # these alignment networks go on training, the paper's do not
    assert figures["cross-view"]["where_ms"]["ACT"] > 10 * figures["all"]["where_ms"]["ACT"]
    parts = figures["cross-view"]["where_ms"]
    whole = sum(parts[name] for name in ("views", "teacher", "terms", "ACT", "rest"))
    assert whole == pytest.approx(figures["cross-view"]["step_ms"]["median"], rel=0.5)


def test_settings_make_rows_of_their_own_and_views_sets_k_for_all(step):
    figures = step(
        *FLAT,
        "--rounds",
        "1",
        "--presets",
        "kd",
        "--settings",
        "views-only",
        '{"views": {"preset": "light"}}',
        "--settings",
        "cross",
        '{"terms": {"cross": {"st": 0.0}}}',
        "--views",
        "3",
        "--where",
    )
    assert list(figures) == [
        "kd",
        'views-only + `{"views": {"preset": "light"}}`',
        'cross + `{"terms": {"cross": {"st": 0.0}}}`',
    ]
    assert [figure["student_rows"] for figure in figures.values()] == [2, 8, 8]
    assert "cross_st" not in list(figures.values())[2]["where_ms"]


def test_a_term_that_leaves_steps_out_is_measured_over_as_many_steps(step):
    options = ("--presets", "cross", "--steps", "4", "--settings", "cross", '{"terms": {"cross": {"every": 4}}}')
    whole, sparse = step(*FLAT, "--rounds", "5", *options).values()
    assert sparse["step_ms"]["median"] < 0.9 * whole["step_ms"]["median"]


def test_three_dimensions_a_field_of_view_and_bfloat16(step):
    options = ("--patch", "8", "16", "16", "--field-of-view", "--cpu-precision", "bfloat16", "--rounds", "1")
    figures = step(*TINY, *options, "--presets", "cross-view")
    assert figures["cross-view"]["student_rows"] == 4


def test_peak_memory_is_that_of_a_process_of_its_own(bench, monkeypatch):
    commands = []

    def child(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "123.4\n", "")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", child)
        patch.setattr("nnunet_kd.comparison.git.code_version", lambda: "0")
        code, lines, _ = bench("bench_step", *FLAT, "--rounds", "1", "--presets", "student", "kd", "--memory")
    assert code == 0 and lines[0].endswith("| peak MiB |") and lines[2].endswith("| 123 |")
    ours = [command[2:] for command in commands if "--peak-of" in command]  # nnU-Net asks for the host's name
    assert [command[-2:] for command in ours] == [["--peak-of", "0"], ["--peak-of", "1"]]
    # what the child does with it
    code, lines, _ = bench("bench_step", *ours[1])
    assert code == 0 and float(lines[-1]) > 100  # MiB: torch alone takes more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "kd", "nope"], 'unknown preset "nope"'),
        (["--settings", "kd", "{"], "not valid JSON"),
        (["--settings", "kd", "[]"], "give an object"),
        (["--presets", "kd", "--settings", "kd", '{"term": {}}'], 'did you mean "terms"'),
        (["--patch", "16"], "give 2 or 3"),
        (["--patch", "18", "18"], "multiples of 4"),
        (["--student-features", "4", "8"], "at least 3 numbers"),
        (["--rounds", "0"], "at least 1"),
        (["--settings", "cross", '{"terms": {"cross": {"every": 2}}}'], "give --steps 2"),
        (["--settings", "cross", '{"terms": [1]}'], "must be an object with keys"),
        (["--steps", "2", "--where", "--settings", "cross", '{"terms": {"cross": {"every": 2}}}'], "without --where"),
        (["--compile"], "never compiles on a CPU"),
    ],
)
def test_a_mistake_is_one_line(bench, arguments, message):
    code, lines, error = bench("bench_step", *FLAT, *arguments)
    assert code == 2 and not lines
    assert message in error and error.startswith("bench_step: error: ") and len(error.splitlines()) == 1


def test_views_every_preset_and_operation_in_two_and_three_dimensions(bench):
    shapes = ["2x1x16x16", "2x2x8x8x8"]
    code, lines, error = bench("bench_views", "--shapes", *shapes, "--rounds", "5", "--clock", "cpu", "--field-of-view")
    assert code == 0, error
    found = json.loads(lines[-1])
    assert list(found) == shapes
    for rows in found.values():
        operations = {"gamma alone", "bias_field alone", "blur alone", "low_resolution alone", "noise alone", "sharpen alone"}
        assert {"nothing", *VIEW_PRESETS, *operations} <= rows.keys() and "gin alone" not in rows
        assert 0 < rows["nothing"] < rows["strong"]
    assert "strong" in VIEW_PRESETS and "nothing" not in VIEW_PRESETS


def test_views_explains_a_wrong_shape(bench):
    code, _, error = bench("bench_views", "--shapes", "16x16")
    assert code == 2 and error.startswith('bench_views: error: --shapes "16x16" must read') and len(error.splitlines()) == 1
