"""`nnunet-kd compare`: settings, statistics and table from small numbers; the work itself on a tiny data set."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compare_lab import CONTENT, lab, row, write

import nnunet_kd.comparison.running.execute as execution
import nnunet_kd.comparison.running.loop as loop
from nnunet_kd.cli.main import main
from nnunet_kd.comparison.analysis.statistics import paired_difference, smallest_p_value
from nnunet_kd.comparison.checked_settings import read_settings
from nnunet_kd.comparison.locks import RunLock
from nnunet_kd.comparison.planning import plan_comparison
from nnunet_kd.comparison.report.tables import table
from nnunet_kd.comparison.rows import COLUMNS, MEASURED, append_rows, read_rows
from nnunet_kd.comparison.running.train import train
from nnunet_kd.comparison.settings import cluster_of
from nnunet_kd.config.run import read_config
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.planning.plans import plan_teacher
from nnunet_kd.planning.requests import TeacherRequest
from nnunet_kd.utils.errors import KDError

SHORT = {"schedule": {"epochs": 3, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "save_every": 1}}
__all__ = ["lab"]  # the fixture

# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datset": 1}, 'unknown key "datset"; did you mean "dataset"'),
        ({"dataset": None}, '"dataset" is missing'),
        ({"dataset": "801"}, "\"dataset\" is '801': it must be of type int"),
        ({"commit": 1}, '"commit" is 1: it must be of type bool'),
        ({"teacher": {"iterations": True}}, '"teacher.iterations" is True'),
        ({"teacher": {"iterations": 0}}, '"teacher.iterations" is 0: it must be at least 1'),
        ({"student": {"features": [4, 4.5], "iterations": 1}}, '"student.features" is [4, 4.5]'),
        ({"student": {}}, '"student.features" is missing'),
        ({"student": None}, '"student" is missing'),
        ({"methods": {"teacher": {"role": "teacher"}}}, '"student" is set but every method is a teacher'),
        ({"methods": {}}, '"methods" is empty'),
        ({"methods": {"kd": None}}, '"methods.kd" must be a mapping'),
        ({"methods": {"kd": {}}}, '"methods.kd.preset" is missing'),
        ({"methods": {"kd": {"preset": "kdd"}}}, '"methods.kd.preset" is "kdd": a student can have'),
        ({"methods": {"t": {"role": "teacher", "preset": "kd"}}, "student": None}, "a teacher can have student, views-only"),
        ({"methods": {"a/b": {"preset": "kd"}}}, "\"methods\" has the name 'a/b'"),
        ({"methods": {"kd+v": {"preset": "kd"}, "kd-v": {"preset": "kd"}}}, "would share a plans name"),
        ({"methods": {"kd": {"preset": "kd", "settings": {"seed": 3}}}}, '"methods.kd.settings.seed": this file sets it'),
        ({"methods": {"s": {"preset": "student", "settings": {"views": {}}}}}, 'preset "student" does not read it'),
        ({"methods": {"kd": {"preset": "kd", "seeds": [0, 0]}}, "seeds": None}, "name every seed once"),
        ({"methods": {"kd": {"preset": "kd", "seeds": [0]}}}, '"seeds" is set but every method names its own'),
        ({"methods": {"kd": {"preset": "kd", "teacher": "big"}}}, 'methods.kd.teacher" is "big"'),
        ({"seeds": None}, '"seeds" is missing'),
        ({"seeds": [-1]}, '"seeds" is [-1]'),
        ({"device": "gpu"}, '"device" is "gpu"'),
        ({"device": "cuda", "cpu_precision": "bfloat16"}, '"cpu_precision" is set but device is cuda'),
        ({"cpu_precision": "half"}, '"cpu_precision" is "half"'),
        ({"csv": "tiny.txt"}, "name a file that ends in .csv"),
        ({"domains": {"a": {"domain": "950", "methods": ["none"]}}}, 'names "none": known methods are teacher, kd+views'),
        ({"domains": {"a": {"domain": "950", "methods": []}}}, '"domains.a.methods" is empty'),
        ({"domains": {"a": {"domain": "950", "cases": "some"}}}, '"domains.a.cases" is "some"'),
        ({"domains": {"a": {"domain": "950", "clusters": "("}}}, "is no regular expression"),
    ],
)
def test_mistakes_in_the_file_are_one_line_with_the_fix(tmp_path, changes, says):
    file = write(tmp_path, **changes)
    with pytest.raises(KDError) as error:
        read_settings(file)
    assert says in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "no valid YAML"), ("seeds: [0]\nseeds: [1]", '"seeds" is there twice'), ("3", "the file")]
)
def test_text_that_is_no_comparison(tmp_path, text, says):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(KDError, match=says):
        read_settings(file)
    with pytest.raises(KDError, match="does not exist"):
        read_settings(tmp_path / "none.yaml")


def test_clusters_of_cases(tmp_path):
    settings = read_settings(write(tmp_path, domains={"a": {"domain": "950", "clusters": r"CHASEDB1_(\d\d)"}, "b": "950"}))
    assert cluster_of(settings, "a", "CHASEDB1_02L") == cluster_of(settings, "a", "CHASEDB1_02R__hue") == "02"
    assert cluster_of(settings, "b", "x__jpeg") == cluster_of(settings, "elsewhere", "x") == "x"
    with pytest.raises(KDError, match="does not match case DRIVE_1"):
        cluster_of(settings, "a", "DRIVE_1")


def test_the_repository_s_own_file_is_valid():
    settings = read_settings(Path(__file__).parents[2] / "docs/results/vessels.yaml")
    assert settings.dataset == 801 and {"teacher", "student", "kd+views", "default", "paper"} <= settings.methods.keys()


# --- statistics, rows, table -----------------------------------------------------------------------------------------


def test_paired_difference_by_hand():
    # two seeds, clusters x (two cases) and y (one): differences 1, 2 | 3 and 5, 4 | -3
    a = {(0, "x1"): 1.0, (0, "x2"): 2.0, (0, "y1"): 3.0, (1, "x1"): 5.0, (1, "x2"): 4.0, (1, "y1"): -3.0, (2, "x1"): 9.0}
    b = {k: 0.0 for k in a if k[0] < 2} | {(3, "x1"): 1.0}
    found = paired_difference(a, b, cluster=lambda c: c[0])
    assert found.mean == pytest.approx(2.0) and (found.pairs, found.seeds, found.clusters) == (6, 2, 2)
    # drawn are seeds 00, 01, 10, 11 and clusters xx, xy, yx, yy, 16 means in all: -3 once (seed 1 with y, both twice),
    # 0 twice, 1.5 once, 2 eight times, 3 three times, 4.5 once (seed 1 with x, both twice)
    assert (found.low, found.high) == pytest.approx((-3.0, 4.5))
    narrow = paired_difference(a, b, cluster=lambda c: c[0], level=0.7)  # 15% and 85%
    assert (narrow.low, narrow.high) == pytest.approx((0.0, 3.0))
    assert paired_difference(a, b, cluster=lambda c: c[0]) == found  # the same seed, the same interval


def test_pairs_that_cannot_be_drawn_have_no_interval():
    one = paired_difference({(0, "a"): 0.7, (0, "b"): float("nan")}, {(0, "a"): 0.5, (0, "b"): 0.1})
    assert one.mean == pytest.approx(0.2) and one.pairs == 1 and np.isnan([one.low, one.high]).all()
    assert paired_difference({(0, "a"): 0.7}, {(1, "a"): 0.7}) is None


def test_more_cases_of_one_child_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    child = {c: rng.normal() for c in range(5)}
    few = {(0, f"{c}_0"): child[c] for c in child}
    many = {(0, f"{c}_{i}"): child[c] for c in child for i in range(20)}
    wide, wrong = (paired_difference(many, dict.fromkeys(many, 0.0), cluster=f) for f in (lambda c: c[0], str))
    same = paired_difference(few, dict.fromkeys(few, 0.0), cluster=lambda c: c[0])
    assert (wide.low, wide.high) == pytest.approx((same.low, same.high))
    assert wrong.high - wrong.low < 0.5 * (wide.high - wide.low)


def test_smallest_p_value():
    # 3 against 3: of the 20 ways to choose three out of six, the two extreme ones
    assert smallest_p_value(3, 3) == pytest.approx(0.1)
    assert smallest_p_value(5, 5) == pytest.approx(2 / 252)
    assert smallest_p_value(1, 1) == 1


def test_rows_are_appended_once_and_a_half_written_one_is_mended(tmp_path):
    file = tmp_path / "new" / "a.csv"
    append_rows(file, [row(), row(case="b")])
    append_rows(file, [row(dice=0.9), row(case="c"), row(config_hash="h1")])
    assert [(r["case"], r["dice"], r["config_hash"]) for r in read_rows(file)] == [
        ("a", "0.5", "h0"),
        ("b", "0.5", "h0"),
        ("c", "0.5", "h0"),
        ("a", "0.5", "h1"),
    ]
    whole = file.read_bytes()
    file.write_bytes(whole + b"kd,0,val,d,0." + b"1" * 500)  # longer than what replaces it
    assert len(read_rows(file)) == 4
    append_rows(file, [row(case="d", dice=0.25)])
    assert read_rows(file)[-1]["dice"] == "0.25" and file.read_bytes().startswith(whole)
    assert len(file.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method,seed\n", "other columns"),
        (f"{','.join(COLUMNS)}\nkd,0\n", "line 2 is no row"),
        (f"{','.join(COLUMNS)}\n{','.join(['x'] * 12)}\n", "line 2 is no row"),
    ],
)
def test_a_foreign_csv_is_refused_and_not_changed(tmp_path, text, says):
    file = tmp_path / "a.csv"
    file.write_text(text)
    for use in (lambda: read_rows(file), lambda: append_rows(file, [row()])):
        with pytest.raises(KDError, match=says):
            use()
    assert file.read_text() == text


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [c.strip() for c in line.strip("|").split("|")]


def test_table_by_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, domains={"val": {"domain": "950:Tr", "clusters": "(.)"}, "all": "950:Tr"})
    scores = {
        "teacher": [(0, "a1", 0.9), (0, "b1", 0.7)],
        "kd+views": [(0, "a1", 0.6), (0, "b1", 0.5), (1, "a1", 0.8)],
        "kd": [(0, "a1", 0.7), (0, "b1", 0.5), (1, "a1", 0.6)],
    }
    rows = [row(m, s, c, d, params=900 if m == "teacher" else 100) for m, values in scores.items() for s, c, d in values]
    rows += [row("kd", 0, "a1", 0.25, dataset="all", cpu_seconds="10.0"), row("kd", 1, "z", "nan", cpu_seconds="")]
    rows += [row("kd", 0, "a1", 0.01, config_hash="old", date="2025-12-31T00:00:00")]
    append_rows(Path("results/tiny.csv"), rows)
    assert main(["compare", str(file), "--table", "--against", "kd+views"]) == 0
    means, differences = capsys.readouterr().out.split("Difference from kd+views")
    assert cells(means, "method") == ["method", "parameters", "seeds", "val", "all", "CPU s per training"]
    assert cells(means, "teacher") == ["teacher", "900", "1", "0.8000", "", "10"]
    assert cells(means, "kd+views")[1:4] == ["100", "2", "0.6333 ± 0.1768"]
    assert cells(means, "kd")[1:] == ["100", "2", "0.6000 ± 0.0000", "0.2500 (1 of 2 seeds)", "10"]
    # kd - kd+views: +0.1, 0 and -0.2: mean -3.33 points
    assert cells(differences, "kd")[1:4] == ["100", "2", "-3.33 [-20.00, +10.00]"]
    assert cells(differences, "teacher")[1:4] == ["900 against 100", "1", "+25.00 [+20.00, +30.00]"]
    assert "Left out: rows of kd (100 parameters) with older settings (old)" in differences
    assert "With 2 against 2 seeds no seed-level p-value can go below 0.33." in differences
    assert "| kd+views |" not in differences
    with pytest.raises(KDError, match="--against paper: results/tiny.csv has rows of teacher, kd"):
        table(read_settings(file), "paper")


def test_three_seeds_cannot_give_a_small_p_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read_settings(write(tmp_path))
    with pytest.raises(KDError, match="has no rows yet"):
        table(settings)
    append_rows(settings.csv, [row(m, s, dice=0.5 + s / 10) for m in ("kd", "student") for s in range(3)])
    assert "With 3 against 3 seeds no seed-level p-value can go below 0.1." in table(settings, "student")


# --- the work --------------------------------------------------------------------------------------------------------


def identity(rows: list[dict]) -> list[tuple]:
    return [(r["method"], r["seed"], r["dataset"], r["case"], r["config_hash"]) for r in rows]


def test_learning_rates_of_the_file_reach_the_plans(lab):
    def rates(**changes):
        runs = {r.method: r for r in lab.plan(**changes).runs}
        return [runs[m].plans["nnunet_kd"]["schedule"]["initial_lr"] for m in CONTENT["methods"]], runs["kd+views"].config_hash

    plain, usual = rates()
    own, other = rates(student={**CONTENT["student"], "initial_lr": 0.002})
    # a small student takes the rate of its size, unless it has its own or its teacher's is of another optimizer
    assert plain == [0.01, 0.1] and own == [0.01, 0.002] and other != usual
    teacher = {**CONTENT["teacher"], "initial_lr": 0.003}
    assert rates(teacher=teacher)[0] == [0.003, 0.003]
    assert rates(teacher=teacher, student={**CONTENT["student"], "initial_lr": 0.01})[0] == [0.003, 0.01]
    assert rates(student={**CONTENT["student"], "initial_lr": 0.1})[1] == usual


def test_a_comparison_from_nothing_then_skipped_then_only_what_is_missing(lab, capsys):
    rows = lab.compare()
    said = capsys.readouterr().out
    assert lab.trained == ["nnUNetTeacherPlans", f"KD_kd_views_4_4_8_{rows[-1]['config_hash']}"]
    validation = json.loads((lab.folder / "preprocessed/Dataset950_Tiny/splits_final.json").read_text())[0]["val"]
    expected = [("val", c) for c in validation] + [("all", f"case_0{i}") for i in range(3)]
    for method in ("teacher", "kd+views"):
        own = [r for r in rows if r["method"] == method]
        assert [(r["dataset"], r["case"]) for r in own] == expected
        assert all(0 <= float(r["dice"]) <= 1 and r["iterations"] == "2" and float(r["cpu_seconds"]) > 0 for r in own)
    assert int(rows[0]["params"]) > int(rows[-1]["params"]) and rows[0]["config_hash"] != rows[-1]["config_hash"]
    assert "1 of 2 runs left" in said and "0 of 2 runs left" in said and "kd+views seed 0: val 0." in said
    assert sorted(p.name for p in Path("results/models").iterdir()) == ["kd+views_4-4-8_seed0", "teacher_8-16-32_seed0"]
    plans = json.loads(Path("results/models/kd+views_4-4-8_seed0/plans.json").read_text())
    assert "nnunet_kd" not in plans

    trained, before = list(lab.trained), Path("results/tiny.csv").read_bytes()
    assert lab.compare() == rows and lab.trained == trained and Path("results/tiny.csv").read_bytes() == before
    assert main(["compare", str(write(lab.folder)), "--dry-run"]) == 0
    assert "2 of 2 runs done" in capsys.readouterr().out

    # one case lost, and a third domain for one method only: predicted from the kept models, nothing is trained
    shutil.rmtree(lab.results)
    kept = [r for r in rows if (r["method"], r["dataset"], r["case"]) != ("teacher", "all", "case_01")]
    Path("results/tiny.csv").unlink()
    append_rows(Path("results/tiny.csv"), kept)
    more = {**CONTENT["domains"], "once": {"domain": "950:Tr:case_05", "methods": ["kd+views"]}}
    again = lab.compare(domains=more)
    assert lab.trained == trained
    assert identity(again[len(kept) :]) == [
        ("teacher", "0", "all", "case_01", rows[0]["config_hash"]),
        ("kd+views", "0", "once", "case_05", rows[-1]["config_hash"]),
    ]
    lost = next(r for r in rows if (r["method"], r["dataset"], r["case"]) == ("teacher", "all", "case_01"))
    assert again[len(kept)]["dice"] == lost["dice"] and again[len(kept)]["cpu_seconds"] == lost["cpu_seconds"]


def test_changed_settings_train_anew_and_old_rows_stay(lab, capsys):
    methods = {"views-only": {"preset": "views-only"}}
    first = lab.compare(methods=methods)
    capsys.readouterr()
    methods = {"views-only": {"preset": "views-only", "settings": {"views": {"count": 2}}}}
    second = lab.compare(methods=methods)
    assert "settings have changed since the kept model (views.count 1 -> 2), so it is trained anew" in capsys.readouterr().out
    assert second[: len(first)] == first and len(second) == 2 * len(first) and len(lab.trained) == 2
    assert first[0]["config_hash"] != second[-1]["config_hash"]
    main(["compare", str(write(lab.folder, methods=methods)), "--table"])
    assert f"Left out: rows of views-only ({int(first[0]['params']):,} parameters) with older" in capsys.readouterr().out
    kept = json.loads(Path("results/models/views-only_4-4-8_seed0/compare.json").read_text())
    assert kept["config_hash"] == second[-1]["config_hash"]


def test_a_new_machine_learns_from_the_exported_teacher(lab):
    lab.compare(methods={"teacher": {"role": "teacher"}}, student=None, domains={"val": "950:Tr:case_00"})
    shutil.rmtree(lab.results)
    for file in (lab.folder / "preprocessed/Dataset950_Tiny").glob("nnUNetTeacherPlans*"):
        file.unlink()
    rows = lab.compare(domains={"val": "950:Tr:case_00"})
    assert [t for t in lab.trained if "Teacher" in t] == ["nnUNetTeacherPlans"]  # the first time only
    assert [r["method"] for r in rows] == ["teacher", "kd+views"]
    section = json.loads((lab.folder / f"preprocessed/Dataset950_Tiny/{lab.trained[-1]}.json").read_text())["nnunet_kd"]
    assert section["teacher"]["folder"] == str(lab.folder / "results/models/teacher_8-16-32_seed0")


def test_a_teacher_trained_by_hand_is_used_if_its_plans_are_the_same(lab, train_by_hand):
    plan_teacher(TeacherRequest(950, "2d", features=[8, 16, 32], iterations=2, seed=1))
    train_by_hand("nnUNetTeacherPlans_seed1")
    plan_teacher(TeacherRequest(950, "2d", features=[8, 16, 32], iterations=3, seed=2))  # another schedule
    train_by_hand("nnUNetTeacherPlans_seed2")
    rows = lab.compare(methods={"teacher": {"role": "teacher"}}, student=None, seeds=[1, 2], domains={"v": "950:Tr:case_00"})
    assert lab.trained == [f"KD_teacher_8_16_32_{rows[0]['config_hash']}_seed2"]
    assert [r["cpu_seconds"] == "" for r in rows] == [True, False]


@pytest.fixture
def train_by_hand(lab):
    def run(plans: str) -> Path:
        train("Dataset950_Tiny", "2d", 0, plans, "nnUNetTrainerScheduled", "cpu", False)
        fold = lab.results / f"nnUNetTrainerScheduled__{plans}__2d" / "fold_0"
        (fold / "compare_training.json").unlink()
        return fold

    return run


def test_a_training_of_another_program_is_waited_for_but_not_for_ever(lab, train_by_hand, monkeypatch, capsys):
    plan_teacher(TeacherRequest(950, "2d", features=[8, 16, 32], iterations=2))
    fold = train_by_hand("nnUNetTeacherPlans")
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    looks = []

    def finish_at_the_third_look(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            (fold / "checkpoint_latest.pth").rename(fold / "checkpoint_final.pth")

    monkeypatch.setattr(loop.time, "sleep", finish_at_the_third_look)
    methods = {**CONTENT["methods"], "student": {"preset": "student"}}
    rows = lab.compare(methods=methods, domains={"v": "950:Tr:case_00"})
    assert [r["method"] for r in rows] == ["student", "teacher", "kd+views"]  # others are done in the meantime
    assert len(lab.trained) == 2 and not any("Teacher" in t for t in lab.trained)
    assert capsys.readouterr().out.count("is being trained by another program") == 1

    shutil.rmtree("results")
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    for file in fold.iterdir():
        os.utime(file, (0, 0))
    with pytest.raises(KDError, match="2 of 2 runs failed"):
        lab.compare()
    said = capsys.readouterr().err
    assert "unfinished training that no comparison has begun" in said and "kd+views seed 0: its teacher failed" in said


def test_an_interrupted_training_goes_on_to_the_same_result(lab):
    changes = {"methods": {"views-only": {"preset": "views-only", "settings": SHORT}}, "domains": {"v": "950:Tr:case_00"}}
    whole = lab.compare(**changes)
    weights = load_checkpoint(Path("results/models/views-only_4-4-8_seed0/fold_0/checkpoint_final.pth"))["network_weights"]
    shutil.rmtree("results")
    shutil.rmtree(lab.results)

    from nnunet_kd.training.scheduled import nnUNetTrainerScheduled

    with pytest.MonkeyPatch.context() as patch:
        save = nnUNetTrainerScheduled.save_checkpoint

        def stop_after_two_epochs(self, filename):
            save(self, filename)
            if self.current_epoch == 1 and filename.endswith("latest.pth"):
                raise KeyboardInterrupt

        patch.setattr(nnUNetTrainerScheduled, "save_checkpoint", stop_after_two_epochs)
        with pytest.raises(KeyboardInterrupt):
            lab.compare(**changes)
    assert not Path("results/tiny.csv").exists()
    plan = lab.plan(**changes)
    assert execution.status(plan, plan.runs[0]) == "to train (2 epochs done, 3 iterations) and predict: v (1)"
    again = lab.compare(**changes)
    assert lab.trained[1:] == [lab.trained[0], f"{lab.trained[0]} --c"]
    now = load_checkpoint(Path("results/models/views-only_4-4-8_seed0/fold_0/checkpoint_final.pth"))["network_weights"]
    assert all(torch.equal(v, now[k]) for k, v in weights.items())
    assert again[0]["dice"] == whole[0]["dice"]
    kept = json.loads(Path("results/models/views-only_4-4-8_seed0/compare.json").read_text())
    fold = next(lab.results.glob("nnUNetTrainer*/fold_0"))
    epochs = json.loads((fold / "compare_training.json").read_text())["epochs"]
    assert [*epochs] == ["1", "2", "3"] and kept["cpu_seconds"] == epochs["3"][0] > epochs["2"][0] > epochs["1"][0] > 0


def test_one_failure_leaves_the_others_alone(lab, capsys):
    methods = {"views-only": {"preset": "views-only"}, "student": {"preset": "student"}}

    def break_views(run):
        if run.method == "views-only":
            raise RuntimeError("no space left")

    lab.before_training = break_views
    file = write(lab.folder, methods=methods, domains={"v": "950:Tr:case_00"})
    assert main(["compare", str(file)]) == 2
    said = capsys.readouterr()
    assert "training of views-only seed 0 failed: RuntimeError: no space left (log in " in said.err
    assert "1 of 2 runs failed" in said.err and "Traceback" not in said.err
    assert [r["method"] for r in read_rows(Path("results/tiny.csv"))] == ["student"]
    lab.before_training = lambda run: None
    assert main(["compare", str(file)]) == 0
    assert [r["method"] for r in read_rows(Path("results/tiny.csv"))] == ["student", "views-only"]


def test_a_run_that_another_worker_holds_is_left_to_it(lab, monkeypatch):
    changes = {
        "methods": {"views-only": {"preset": "views-only"}, "student": {"preset": "student"}},
        "domains": {"v": "950:Tr:case_00"},
    }
    comparison = lab.plan(**changes)
    held = RunLock(comparison.runs[0].source.notes / "views-only_4-4-8_seed0.lock")
    assert held.take()

    def the_other_finishes(seconds):
        run = comparison.runs[0]
        append_rows(
            Path("results/tiny.csv"),
            [row(run.method, case="case_00", dataset="v", params=run.parameters, config_hash=run.config_hash)],
        )
        held.close()

    monkeypatch.setattr(loop.time, "sleep", the_other_finishes)
    rows = lab.compare(**changes)
    assert [r["method"] for r in rows] == ["student", "views-only"] and len(lab.trained) == 1


def test_order_seeds_and_hashes(lab):
    methods = {
        "student": {"preset": "student", "seeds": [0]},
        "kd": {"preset": "kd", "seeds": [0, 4]},
        "teacher": {"role": "teacher"},
        "teacher+views": {"role": "teacher", "preset": "views-only"},
        "late": {"preset": "kd", "teacher": "teacher+views", "seeds": [1]},
        "kd-null": {"preset": "kd+views", "settings": {"views": None, "terms": {"kd": {"target": "view"}}}},
        "lr": {"preset": "student", "settings": {"schedule": {"initial_lr": 0.02}}},
    }
    plan = lab.plan(methods=methods, seeds=[0, 1])
    keys = [r.key[:2] for r in plan.runs]
    teachers = [(t, s) for s in (0, 1) for t in ("teacher", "teacher+views")] + [("teacher", 4)]
    assert keys[:5] == teachers  # seed 4 for kd's sake
    assert keys[5:] == [("student", 0), ("kd", 0), ("kd-null", 0), ("lr", 0), ("late", 1), ("kd-null", 1), ("lr", 1), ("kd", 4)]
    runs = {r.key[:2]: r for r in plan.runs}
    assert runs["kd", 4].teacher is runs["teacher", 4] and runs["late", 1].teacher is runs["teacher+views", 1]
    assert runs["student", 0].teacher is None and "teacher" not in runs["student", 0].plans["nnunet_kd"]
    hashes = {k: r.config_hash for k, r in runs.items()}
    assert hashes["kd", 0] == hashes["kd", 4] == hashes["kd-null", 0]  # what counts is what a preset comes to
    different = [hashes[k] for k in (("kd", 0), ("late", 1), ("student", 0), ("lr", 0), ("teacher", 0), ("teacher+views", 0))]
    assert len(set(different)) == 6
    longer = {r.key[:2]: r.config_hash for r in lab.plan(methods=methods, teacher=CONTENT["teacher"] | {"iterations": 9}).runs}
    assert longer["kd", 0] != hashes["kd", 0] and longer["student", 0] == hashes["student", 0]
    views = runs["teacher+views", 0]
    assert views.trainer == "nnUNetTrainerDistillation" and views.plans["nnunet_kd"]["role"] == "teacher"
    with pytest.raises(KDError, match="trains students"):
        read_config({"nnunet_kd": {"role": "teacher", "preset": "kd"}}, None, "nnUNetTrainerDistillation")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": {"kd": {"preset": "kd"}}}, 'method kd learns from method "teacher", which is not there'),
        ({"methods": {"v": {"preset": "views-only", "settings": {"view": {}}}}}, 'method v: unknown key "nnunet_kd.view"'),
        ({"methods": {"v": {"preset": "views-only", "settings": {"schedule": 3}}}}, 'settings.schedule" must be a mapping'),
        ({"student": {"features": [8, 16, 32], "iterations": 2}}, "is as heavy as the teacher"),
        ({"student": {"features": [4, 4, 4, 4], "iterations": 2}}, "features"),
        ({"configuration": "3d_fullres"}, "configuration 3d_fullres is not in plans"),
        ({"dataset": 123}, "dataset 123 is unknown"),
        ({"fold": 9}, '"fold" is 9'),
        ({"domains": {"a": "951:Tr"}}, "no Dataset951"),
        ({"domains": {"a": {"domain": "950:Tr", "clusters": "child"}}}, "does not match case case_00"),
    ],
)
def test_what_only_planning_can_find_stops_before_anything_trains(lab, changes, says):
    with pytest.raises(KDError, match=says):
        lab.compare(**changes)
    assert not lab.trained and not Path("results").exists() and not lab.results.exists()
    assert not list((lab.folder / "preprocessed/Dataset950_Tiny").glob("*Teacher*"))


def test_git_commits_the_results_and_nothing_else(lab, monkeypatch, capsys):
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "tester@example.org")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(lab.folder.parent))
    changes = {"methods": {"views-only": {"preset": "views-only"}}, "domains": {"v": "950:Tr:case_00"}, "commit": True}
    lab.compare(**changes)
    assert "is in no git work tree" in capsys.readouterr().out

    def git(*arguments) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout

    shutil.rmtree("results")
    git("init", "-q")
    Path("staged.txt").write_text("mine")
    git("add", "staged.txt")
    lab.compare(**changes)
    assert git("log", "--format=%s").splitlines() == ["compare: views-only seed 0"]
    files = git("show", "--name-only", "--format=").split()
    assert "results/tiny.csv" in files and "results/models/views-only_4-4-8_seed0/compare.json" in files
    assert all(f.startswith("results/") for f in files) and "A  staged.txt" in git("status", "--porcelain")
    lab.compare(**changes)
    assert len(git("log", "--format=%s").splitlines()) == 1  # nothing new, no commit


def test_options_that_do_not_fit(tmp_path, capsys):
    file = str(write(tmp_path))
    for options, says in (
        (["--against", "kd"], "--against is for --table"),
        (["--jobs", "0"], "at least 1"),
        (["--table", "--dry-run"], "exclude each other"),
    ):
        assert main(["compare", file, *options]) == 2
        assert says in capsys.readouterr().err


# --- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_share_and_a_killed_one_is_taken_over(lab):
    methods = {"teacher": {"role": "teacher"}, "kd": {"preset": "kd", "settings": SHORT}, "student": {"preset": "student"}}
    methods["teacher"]["settings"] = {"schedule": SHORT["schedule"] | {"epochs": 12}}
    file = write(lab.folder, methods=methods, domains={"v": "950:Tr:case_00"}, seeds=[0, 1])
    command = [str(Path(sys.executable).parent / "nnunet-kd"), "compare", str(file)]

    with Path("first.txt").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
    latest = None
    end = time.time() + 120
    while latest is None:
        assert first.poll() is None and time.time() < end, Path("first.txt").read_text()
        latest = next(lab.results.glob("*TeacherPlans__2d/fold_0/checkpoint_latest.pth"), None)
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)  # its training lives on and keeps the lock
    first.wait()
    comparison = plan_comparison(read_settings(file))
    assert not RunLock(comparison.runs[0].source.notes / "teacher_8-16-32_seed0.lock").take()

    second = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, check=False, timeout=600)
    assert second.returncode == 0, second.stderr + second.stdout
    rows = read_rows(Path("results/tiny.csv"))
    assert sorted((r["method"], r["seed"]) for r in rows) == sorted((m, str(s)) for m in methods for s in (0, 1))
    assert all(float(r["cpu_seconds"]) > 0 for r in rows)
    with Path("results/tiny.csv").open() as table_file:
        assert next(csv.reader(table_file)) == [*COLUMNS, *MEASURED]
    assert len(list(lab.results.glob("*/fold_0/training_log_*"))) == len(rows)  # every training was begun once


@pytest.mark.slow
def test_ctrl_c_ends_the_training_too_and_it_can_go_on(lab):
    long = {"schedule": SHORT["schedule"] | {"epochs": 60}}
    file = write(lab.folder, methods={"student": {"preset": "student", "settings": long}}, domains={"v": "950:Tr:case_00"})
    command = [str(Path(sys.executable).parent / "nnunet-kd"), "compare", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.time() + 120
    while not list(lab.results.glob("*/fold_0/checkpoint_latest.pth")):
        assert process.poll() is None and time.time() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().endswith("nnunet-kd: stopped"), (out, err)
    comparison = plan_comparison(replace(read_settings(file)))
    assert RunLock(comparison.runs[0].source.notes / "student_4-4-8_seed0.lock").take()  # nobody trains any more
    assert "epochs done" in execution.status(comparison, comparison.runs[0])


def test_where_there_are_no_file_locks_a_comparison_says_so(tmp_path, monkeypatch):
    """Windows. The rest of the package does without."""
    monkeypatch.setattr("nnunet_kd.comparison.locks.fcntl", None)
    with pytest.raises(KDError, match="comparisons need the file locks of Linux or macOS"):
        RunLock(tmp_path / "lock")
