"""scripts/metric_differences.py: any metric of `nnunet-kd evaluate`, method against method over seeds."""

import csv
import json
import sys

import pytest
from helpers import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("metric_differences")


@pytest.fixture
def report(tmp_path):
    """Two methods of two seeds on three cases of two children; b is better by 0.02 or 0.04, and undefined once."""
    rows = []
    for seed in (0, 1):
        for number, case in enumerate(("c1_left", "c1_right", "c2_left")):
            base = 0.5 + 0.1 * number
            rows.append({"model": f"a_seed{seed}", "domain": "D", "case": case, "dice": base, "hd95": 4.0})
            better = base + (0.02 if seed == 0 else 0.04)
            rows.append({"model": f"b_seed{seed}", "domain": "D", "case": case, "dice": better, "hd95": 3.0})
    rows[-1]["dice"] = ""
    file = tmp_path / "report.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def run(script, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["metric_differences.py", *map(str, arguments)])
    script.main()
    return capsys.readouterr().out.splitlines()


def test_differences_are_paired_by_case_and_seed(script, report, monkeypatch, capsys):
    lines = run(script, monkeypatch, capsys, report, "--against", "a", "--metrics", "dice", "hd95", "--clusters", r"(c\d)")
    assert lines[0] == "D" and lines[4] == "| a | 2 | 0.6000 | 4.0000 |"
    found = json.loads(lines[-1])["D"]["b"]
    # three pairs of 0.02 and two of 0.04: the sixth has no value
    assert found["dice"]["mean"] == pytest.approx((3 * 0.02 + 2 * 0.04) / 5)
    assert (found["dice"]["pairs"], found["dice"]["seeds"], found["dice"]["clusters"]) == (5, 2, 2)
    assert found["dice"]["low"] == pytest.approx(0.02) and found["dice"]["high"] == pytest.approx(0.04)
    # points for Dice, pixels for distances
    assert "(+2.80 [+2.00, +4.00]), 1 undefined | 3.0000 (-1.00 [-1.00, -1.00]) |" in lines[5]


def test_mistakes_are_one_line(script, report, monkeypatch, capsys):
    for arguments, says in (
        (("--against", "c"), 'no method "c" on D, only a, b'),
        (("--against", "a", "--metrics", "cldice"), "no column cldice"),
        (("--against", "a", "--metrics", "dice", "--clusters", "x"), "does not match case c1_left"),
    ):
        if "--metrics" not in arguments:
            arguments = (*arguments, "--metrics", "dice")
        with pytest.raises(SystemExit, match=says):
            run(script, monkeypatch, capsys, report, *arguments)
    report.write_text(report.read_text() + report.read_text().splitlines()[-2] + "\n")
    with pytest.raises(SystemExit, match="more than once"):
        run(script, monkeypatch, capsys, report, "--against", "a", "--metrics", "dice")
