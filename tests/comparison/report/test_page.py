"""The comparison's HTML page: every part is there, it needs no network, and broken input is one line."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from compare_lab import lab, row, write

from nnunet_kd.cli.main import main
from nnunet_kd.comparison.rows import append_rows
from nnunet_kd.planning.pareto import pareto_front

__all__ = ["lab"]  # the fixture
FSD = {
    "fsd": [
        {"model": "x", "network": "student", "source": "val", "target": "all", "relative": 0.5, "relative_extrapolated": 0.25},
        {"model": "x", "network": "teacher", "source": "val", "target": "all", "relative": 0.75, "relative_extrapolated": None},
        {"model": "x", "network": "student", "source": "val", "target": "val (other half)", "relative": 0.1},
        {"model": "x", "network": "student", "source": "val", "target": "all", "relative": 9.0, "comparison": "networks"},
    ]
}


@pytest.fixture
def eight_cases(tmp_path, monkeypatch) -> Path:
    """Teacher, student and kd, two seeds, eight cases of "all" (unseen) and two of "val" (home). No data, no models."""
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    rows = [
        row(method, seed, f"{d}{case}", level - lost + case / 100 + seed / 1000, dataset=d, params=900 if level > 0.7 else 100)
        for method, level in (("student", 0.6), ("kd", 0.7), ("teacher", 0.8))
        for d, cases, lost in (("val", 2, 0.0), ("all", 8, 0.2))
        for case in range(cases)
        for seed in range(2)
    ]
    rows.append(row("kd", 0, "val0", 0.1, dataset="val", config_hash="older", date="2025-01-01T00:00:00"))
    append_rows(Path("results/tiny.csv"), rows)
    methods = {"teacher": {"role": "teacher"}, "student": {"preset": "student"}, "kd": {"preset": "kd"}}
    return write(tmp_path, methods=methods, domains={"val": "950:Ts", "all": {"domain": "951:Ts"}}, failed_below=0.445)


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images, self.links, self.cells, self.titles, self._in = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self._in = tag
        if tag == "img":
            self.images.append(given)
        self.links += [v for k, v in attrs if k in ("href", "src")]

    def handle_data(self, data):
        if self._in in ("td", "th", "strong") and data.strip():
            self.cells.append(data.strip())
        if self._in in ("h2", "h3") and data.strip():
            self.titles.append(data.strip())

    def handle_endtag(self, tag):
        self._in = ""


def test_every_part_is_there(eight_cases, tmp_path, capsys):
    Path("fsd.json").write_text(json.dumps(FSD))
    out = tmp_path / "new" / "page.html"
    assert main(["compare", str(eight_cases), "--report", str(out), "--fsd", "kd=fsd.json"]) == 0
    assert f"report: {out}" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    page = Seen(text)
    assert page.titles == [
        "Dice by method and domain",
        "Critical comparisons, against student",
        "Cost",
        "Semantic distance (FSD) against loss of Dice",
        "Data",
        "How it was made",
    ]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)  # nothing from elsewhere
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(image["alt"] for image in page.images) and len(page.images) == 4  # cases, differences, cost of training, FSD
    # val of kd: 0.70, 0.71 and 0.701, 0.711; on all 0.5355 of 0.5 to 0.571; 0.1 points above the student with every pair
    assert "0.705" in page.cells and "0.535" in page.cells
    assert "On all, kd has the highest mean Dice of the 2 students with 2 trainings each: 0.535, +10.00 points" in text
    assert "Wilcoxon p after Holm" in text and "the teacher&#39;s is 0.635" in text
    assert "62.5% below 0.445" in text  # the student's cases 0.4 to 0.44 and 0.441 of 0.4 to 0.471
    assert "older settings of kd (older)" in text and "nnunet-kd compare" in text and "numpy" in text and "preset: kd" in text
    # the student's network from val to all: 0.25, with 0.7055 - 0.5355 lost; the teacher's without a corrected value: raw
    lines = [[cell for cell in Seen(line).cells] for line in re.findall("<tr>.*?</tr>", text, re.DOTALL)]
    assert ["kd", "val", "all", "0.250", "17.00"] in lines and ["teacher", "val", "all", "0.750", "17.00"] in lines
    assert "9.000" not in text  # a comparison of networks, not of domains
    assert "not at hand: domain val: no Dataset950_" in text and "No cases of val are shown" in text
    assert not list(out.parent.glob(".*"))


def test_what_is_broken_is_one_line(eight_cases, tmp_path, capsys):
    for name, text in {
        "text.json": "no",
        "other.json": "{}",
        "half.json": '{"fsd": [{"network": "student"}]}',
        "far.json": json.dumps({"fsd": [FSD["fsd"][2]]}),
    }.items():
        Path(name).write_text(text)
    out = str(tmp_path / "page.html")
    for options, says in (
        (["--report", "page.txt"], "name a file that ends in .html"),
        (["--report", out, "--against", "none"], "--against none: results/tiny.csv has rows of"),
        (["--report", out, "--overlays", "far"], "--overlays far: the domains with rows are val, all"),
        (["--report", out, "--overlays", "val"], "no kept model of teacher in results/models"),
        (["--report", out, "--fsd", "kd"], '--fsd "kd" must read METHOD=FILE'),
        (["--report", out, "--fsd", "x=text.json"], "method x has no rows, known are teacher, student, kd"),
        (["--report", out, "--fsd", "kd=no.json"], "no.json does not exist: make it with"),
        (["--report", out, "--fsd", "kd=text.json"], "text.json is no result of `nnunet-kd fsd -o`"),
        (["--report", out, "--fsd", "kd=other.json"], "other.json is no result"),
        (["--report", out, "--fsd", "kd=half.json"], "half.json is no result"),
        (["--report", out, "--fsd", "kd=far.json"], "none of its sources and targets are domains with rows (val, all)"),
    ):
        assert main(["compare", str(eight_cases), *options]) == 2, options
        said = capsys.readouterr().err.strip()
        assert says in said and "\n" not in said, said
    assert not list(tmp_path.glob("*.html"))


def test_no_cases_of_patients_in_a_repository(eight_cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    subprocess.run(["git", "init", "-q"], check=True)
    assert main(["compare", str(eight_cases), "--report", "page.html", "--overlays", "val"]) == 2
    assert "page.html lies in a git work tree" in capsys.readouterr().err and not Path("page.html").exists()
    assert main(["compare", str(eight_cases), "--report", "page.html"]) == 0
    assert "No cases are shown: the page lies in a git work tree" in Path("page.html").read_text(encoding="utf-8")
    assert main(["compare", str(eight_cases), "--report", "page.html", "--overlays", "none", "--methods", "kd"]) == 0
    text = Path("page.html").read_text(encoding="utf-8")
    assert "No cases" not in text and "There is nothing to compare kd with" in text


@pytest.mark.slow
def test_cases_curves_and_costs_of_real_runs(lab, tmp_path):
    lab.compare()
    out = tmp_path / "page.html"
    assert main(["compare", str(lab.folder / "compare.yaml"), "--report", str(out), "--against", "teacher"]) == 0
    text = out.read_text(encoding="utf-8")
    page = Seen(text)
    alts = " | ".join(image["alt"] for image in page.images)
    assert "val: outlines of the annotation and of the predictions of teacher, kd+views on 2 cases" in alts
    assert "Training curves of teacher, kd+views" in alts and "Dice on val, all against cost" in alts
    assert "What it looks like" in page.titles and "Training" in page.titles
    assert "CPU s per case" in page.cells and "MFLOPs per patch" in page.cells
    assert "48 x 48" in page.cells and "none in the files" in page.cells and "950:Tr:case_0[0-2]" in page.cells


def test_pareto_front_by_hand():
    points = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (2.0, 0.6), "d": (3.0, 0.6), "e": (4.0, 0.7), "f": (1.0, 0.3)}
    assert pareto_front(points, lambda n: points[n][1], lambda n: points[n][0]) == ["a", "c", "e"]
