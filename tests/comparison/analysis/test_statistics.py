"""Tests of differences and the tables' forms, against values by hand."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from compare_lab import row, write

from nnunet_kd.cli.main import main
from nnunet_kd.comparison.analysis.significance import (
    almost_stochastic_order,
    holm,
    permutation_of_trainings,
    wilcoxon_of_clusters,
)
from nnunet_kd.comparison.report.render import Table, latex, markdown
from nnunet_kd.comparison.report.tables import deviation
from nnunet_kd.comparison.rows import append_rows


def test_wilcoxon_of_clusters_by_hand():
    # cluster means 1, 2, 3, 4, 5, 6, all positive: two of 2^6 signs are as extreme
    a = {((s, 0), f"{c}_{i}"): c + (i - 0.5) + (s - 0.5) for c in range(1, 7) for i in (0, 1) for s in (0, 1)}
    b = dict.fromkeys(a, 0.0)
    assert wilcoxon_of_clusters(a, b, lambda c: c[0]) == (pytest.approx(2 / 64), 6)
    # -1, +2, +3: positive ranks 5 of 6; sums of at least 5 or at most 1: {2,3}, {1,2,3}, {}, {1} of 8
    few = {((0, 0), "a"): -1.0, ((0, 0), "b"): 2.0, ((0, 0), "c"): 3.0, ((0, 0), "d"): math.nan}
    assert wilcoxon_of_clusters(few, dict.fromkeys(few, 0.0)) == (pytest.approx(0.5), 3)
    assert wilcoxon_of_clusters(b, b) == (1.0, 12)
    assert math.isnan(wilcoxon_of_clusters({}, b)[0])
    # copies of one child's images are no evidence: each image for itself would give far less
    assert wilcoxon_of_clusters(a, b)[0] < 0.01


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.2: x4 = 0.04, x3 = 0.06, x2 = 0.06, x1 = 0.2
    assert holm([0.02, 0.2, math.nan, 0.01, 0.03]) == pytest.approx([0.06, 0.2, math.nan, 0.04, 0.06], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_permutation_of_trainings_by_hand():
    assert permutation_of_trainings([3, 4, 5], [0, 1, 2]) == pytest.approx(0.1)  # 2 of the 20 ways
    # differences of the 6 ways to choose two of 0, 1, 2, 10 against 2 and 10: 5.5 is the largest, so is its mirror -5.5
    assert permutation_of_trainings([2, 10], [0, 1]) == pytest.approx(2 / 6)
    assert permutation_of_trainings([1, 2, 3], [1, 2, 3]) == 1
    assert math.isnan(permutation_of_trainings([1], [2, 3]))


def test_almost_stochastic_order_by_hand():
    better, worse = [5.0, 6, 7, 8, 9], [1.0, 2, 3, 4, 4.5]
    assert almost_stochastic_order(better, worse) == 0 and almost_stochastic_order(worse, better) == 1
    # quantiles 0, 4 against 1, 2: below on the first half by 1, above on the second by 2: 1 / (1 + 4)
    from nnunet_kd.comparison.analysis.significance import _violation

    assert _violation(np.array([0.0, 4]), np.array([1.0, 2])) == pytest.approx(0.2)
    # thirds against halves, joint steps at 1/3, 1/2, 2/3: differences -1, +1, -1, +1 of widths 2, 1, 1, 2
    assert _violation(np.array([0.0, 2, 4]), np.array([1.0, 3])) == pytest.approx(0.5)
    assert _violation(np.array([1.0, 2]), np.array([1.0, 2])) == 0.5
    noise = np.random.default_rng(0)
    same = almost_stochastic_order(noise.normal(size=20), noise.normal(size=20))
    assert same > 0.5  # nothing to claim


def test_deviation():
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2)) and math.isnan(deviation([1.0]))


TABLE = Table("Dice ± sd of kd_1.", ["method", "p"], [["kd+views & 5%", "<0.001"]], ["One note."])


def test_forms_of_a_table():
    assert markdown([TABLE]) == "Dice ± sd of kd_1.\n\n| method | p |\n| --- | --- |\n| kd+views & 5% | <0.001 |\n\nOne note."
    text = latex([TABLE, Table("Only words_.", [])])
    assert r"\caption{Dice $\pm$ sd of kd\_1. One note.}" in text and r"\begin{tabular}{lr}" in text
    assert r"kd+views \& 5\% & $<$0.001 \\" in text and "% Only words\\_." in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1


@pytest.fixture
def eight_cases(tmp_path, monkeypatch) -> Path:
    """Two methods, three seeds, eight cases of "all" and two of "val"; kd is 0.1 better on every case, and once wrong."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for seed in range(3):
        for case in range(8):
            base = 0.5 + 0.01 * case + 0.001 * seed
            rows += [
                row("student", seed, f"c{case}", base, dataset="all"),
                row("kd", seed, f"c{case}", base + 0.1, dataset="all", cpu_seconds="40.0"),
            ]
        rows += [row("student", seed, f"v{c}", 0.5, dataset="val") for c in range(2)]
        rows += [
            row("kd", seed, f"v{c}", 0.0 if (seed, c) == (0, 0) else 0.5, dataset="val", cpu_seconds="40.0") for c in range(2)
        ]
    append_rows(Path("results/tiny.csv"), rows)
    return write(tmp_path)


def test_tests_and_failures_in_the_tables(eight_cases, capsys):
    assert main(["compare", str(eight_cases), "--table", "--against", "student"]) == 0
    said = capsys.readouterr().out
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("|")]
    found = [line for line in lines if line[0] == "kd"]
    assert found[0][:5] == ["kd", "100", "3", "0.4167 ± 0.1443", "0.6360 ± 0.0010"]
    assert found[1][3:] == ["16.7% (16.7%)", "0.0% (0.0%)"]
    # "val" has two clusters: no Wilcoxon test, and Holm counts one test only. 2 / 2^8 and 2 / 20
    assert found[3] == ["kd", "100", "val", "-8.33 [-33.33, +0.00]", "2", "", "", "1", ""]
    assert found[4][2:] == ["all", "+10.00 [+10.00, +10.00]", "8", "0.0078", "0.0078", "0.1", ""]
    assert main(["compare", str(eight_cases), "--table", "--methods", "student"]) == 0
    said = capsys.readouterr().out
    assert "| kd |" not in said and "No case has a Dice below 0.5." in said


def test_csv_and_latex_of_a_comparison(eight_cases, capsys):
    assert main(["compare", str(eight_cases), "--table", "--csv", "--against", "student"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["method"], r["domain"]) for r in rows] == [(m, d) for m in ("student", "kd") for d in ("val", "all")]
    kd = rows[3]
    assert float(kd["dice"]) == pytest.approx(0.636) and float(kd["difference"]) == pytest.approx(0.1)
    assert (kd["cases"], kd["trainings"], kd["unseen"], kd["cpu_seconds_per_training"]) == ("8", "3", "False", "40")
    assert float(kd["p_wilcoxon"]) == pytest.approx(2 / 256, rel=1e-4) and float(kd["p_permutation"]) == pytest.approx(0.1)
    assert rows[0]["difference"] == "" and float(rows[2]["below_0.5"]) == pytest.approx(1 / 6, rel=1e-4)
    assert main(["compare", str(eight_cases), "--table", "--latex"]) == 0
    text = capsys.readouterr().out
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2 and r"0.6360 $\pm$ 0.0010" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--latex"], "--latex is for --table"),
        (["--table", "--latex", "--csv"], "--latex and --csv exclude"),
        (["--methods", "kd"], "--methods is for --table or --report"),
        (["--table", "--methods", "none"], "--methods none: results/tiny.csv has rows of student, kd only"),
        (["--table", "--overlays", "val"], "--overlays is for --report"),
        (["--table", "--report", "a.html"], "--table and --report exclude each other"),
        (["--slurm", "--jobs", "2"], "--jobs and --slurm exclude each other"),
    ],
)
def test_options_that_do_not_fit(eight_cases, capsys, options, says):
    assert main(["compare", str(eight_cases), *options]) == 2
    assert says in capsys.readouterr().err
