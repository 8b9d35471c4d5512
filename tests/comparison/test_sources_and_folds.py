"""`nnunet-kd compare` with several sources and folds, lengths of its own per method, and the one checkpoint it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from compare_lab import CONTENT, lab, row, write

from nnunet_kd.cli.main import main
from nnunet_kd.comparison.analysis.groups import collect
from nnunet_kd.comparison.checked_settings import read_settings
from nnunet_kd.comparison.rows import ADDED, COLUMNS, MEASURED, append_rows, read_rows
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.utils.errors import KDError

__all__ = ["lab"]  # the fixture
TEACHER = {"methods": {"teacher": {"role": "teacher"}}, "student": None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": {"a": 950}}, '"dataset" and "sources" are both set'),
        ({"fold": 0, "folds": [0]}, '"fold" and "folds" are both set'),
        ({"folds": [0, 0]}, '"folds" is [0, 0]: name every fold once'),
        ({"folds": []}, '"folds" is []: list whole numbers'),
        ({"dataset": None, "sources": {}}, '"sources" is empty'),
        ({"dataset": None, "sources": {"a": "x"}}, "\"sources.a.dataset\" is 'x': it must be of type int"),
        ({"domains": {"v": {"domain": "950", "sources": ["a"]}}}, '"domains.v.sources" names "a": known sources are none'),
        ({"methods": {"teacher": {"role": "teacher", "features": [4, 4]}}, "student": None}, "its role is teacher"),
        ({"methods": {"kd": {"preset": "kd", "iterations": 0}}}, '"methods.kd.iterations" is 0'),
        ({"checkpoint": "checkpoint_best.pth"}, 'unknown key "checkpoint"'),
        ({"failed_below": 2}, '"failed_below" is 2'),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, says):
    with pytest.raises(KDError) as error:
        read_settings(write(tmp_path, **changes))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_student_learns_from_the_teacher_of_its_own_fold(lab):
    file = {"domains": {"val": {"domain": "950:Tr", "cases": "validation"}, "test": "950:Tr:case_00"}}
    plan = lab.plan(**file, folds=[0, 2])
    assert [(r.label, r.model_name) for r in plan.runs] == [
        ("teacher seed 0 fold 0", "teacher_8-16-32_seed0"),
        ("kd+views seed 0 fold 0", "kd+views_4-4-8_seed0"),
        ("teacher seed 0 fold 2", "teacher_8-16-32_seed0_fold2"),
        ("kd+views seed 0 fold 2", "kd+views_4-4-8_seed0_fold2"),
    ]
    for run in plan.runs:
        assert run.teacher is None or (run.teacher.fold, run.teacher.seed) == (run.fold, run.seed)
    assert len({r.config_hash for r in plan.runs}) == 4

    rows = lab.compare(**file, folds=[2])
    validation = json.loads((lab.folder / "preprocessed/Dataset950_Tiny/splits_final.json").read_text())[2]["val"]
    for method in ("teacher", "kd+views"):
        own = [(r["dataset"], r["case"]) for r in rows if (r["method"], r["fold"]) == (method, "2")]
        assert own == [*(("val", c) for c in validation), ("test", "case_00")]
    section = json.loads((lab.folder / f"preprocessed/Dataset950_Tiny/{lab.trained[1]}.json").read_text())["nnunet_kd"]
    folder = Path(section["teacher"]["folder"])
    assert section["teacher"]["fold"] == "same" and folder.name == "teacher_8-16-32_seed0_fold2"
    assert [p.name for p in folder.glob("fold_*")] == ["fold_2"]


def test_folds_are_trainings_of_one_group(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    append_rows(Path("results/tiny.csv"), [row(fold=""), *(row(fold=f, config_hash=f"h{f}") for f in (1, 2))])
    (group,) = collect(read_settings(write(tmp_path, folds=[0, 1, 2])))
    assert group.trainings == [(0, 0), (0, 1), (0, 2)] and group.seeds == [0]
    assert [*group.scores["val"]] == [((0, 0), "a"), ((0, 1), "a"), ((0, 2), "a")]  # one case, three networks


def test_a_file_that_gets_folds_keeps_its_rows_and_models(lab):
    plain = TEACHER | {"domains": {"v": "950:Tr:case_00"}}
    before = lab.compare(**plain)
    assert tuple(Path("results/tiny.csv").read_text().splitlines()[0].split(",")) == (*COLUMNS, *MEASURED)
    after = lab.compare(**plain, folds=[0, 1])
    assert after[0] == before[0] and [r["fold"] for r in after] == ["", "1"] and len(lab.trained) == 2
    assert tuple(Path("results/tiny.csv").read_text().splitlines()[0].split(",")) == (*COLUMNS, *ADDED, *MEASURED)
    (group,) = collect(read_settings(write(lab.folder, **plain, folds=[0, 1])))
    assert group.trainings == [(0, 0), (0, 1)]
    kept = json.loads(Path("results/models/teacher_8-16-32_seed0_fold1/compare.json").read_text())
    assert kept["cpu_seconds_per_case"]["v"] > 0


@pytest.fixture(scope="module")
def other(make_dataset):
    return make_dataset(952, "Other")  # before `lab` changes nnU-Net's folders


def test_two_sources_make_a_matrix(other, lab, capsys):
    shutil.copytree(other.preprocessed, lab.folder / "preprocessed" / other.name)
    domains = {
        "A": {"domain": "950:Tr", "cases": "validation", "sources": ["A"]},
        "B": "952:Tr:case_00",
        "A_all": "950:Tr:case_00",
    }
    rows = lab.compare(**TEACHER, dataset=None, sources={"A": 950, "B": {"dataset": 952}}, domains=domains)
    assert list(dict.fromkeys((r["source"], r["dataset"]) for r in rows)) == [
        ("A", "A"),
        ("A", "B"),
        ("A", "A_all"),
        ("B", "B"),
        ("B", "A_all"),
    ]
    assert Path("results/models/A/teacher_8-16-32_seed0").is_dir() and Path("results/models/B/teacher_8-16-32_seed0").is_dir()
    assert len(lab.trained) == 2 and len({r["config_hash"] for r in rows}) == 2
    capsys.readouterr()
    assert main(["compare", str(lab.folder / "compare.yaml"), "--table"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| teacher")]
    assert [line[1] for line in lines[:2]] == ["A", "B"]
    assert main(["compare", str(lab.folder / "compare.yaml"), "--dry-run"]) == 0
    assert "teacher seed 0 from B: done" in capsys.readouterr().out
    with pytest.raises(KDError, match="no domain is for source B"):
        lab.plan(**TEACHER, dataset=None, sources={"A": 950, "B": 952}, domains={"A": domains["A"]})


def test_a_method_s_own_length_and_width(lab):
    methods = {
        **CONTENT["methods"],
        "long": {"preset": "kd+views", "iterations": 120},
        "student": {"preset": "student"},
        "thin": {"preset": "student", "features": [4, 4, 4]},
    }
    runs = {r.method: r for r in lab.plan(methods=methods).runs}
    assert [runs[m].iterations for m in methods] == [2, 2, 120, 2, 2]
    assert runs["thin"].features == [4, 4, 4] and runs["thin"].parameters < runs["student"].parameters
    assert runs["long"].config_hash != runs["kd+views"].config_hash
    usual = {r.method: r.config_hash for r in lab.plan().runs}
    assert all(runs[m].config_hash == h for m, h in usual.items())
    assert runs["long"].plans["nnunet_kd"]["schedule"]["epochs"] == 2  # about 50 steps each, as for a file's iterations


def test_the_table_keeps_lengths_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    append_rows(Path("results/tiny.csv"), [row(dice=0.5), row(dice=0.7, iterations=9, config_hash="h1")])
    assert main(["compare", str(write(tmp_path)), "--table"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| kd ")]
    assert [line.split(" | ")[1:3] for line in lines[:2]] == [["100", "2"], ["100", "9"]]
    assert "0.5000" in lines[0] and "0.7000" in lines[1]


def test_old_and_new_columns(tmp_path):
    file = tmp_path / "a.csv"
    append_rows(file, [row()])
    old = file.read_text()
    append_rows(file, [row(case="b", source="", fold="")])
    assert file.read_text().startswith(old) and "source" not in file.read_text()
    append_rows(file, [row(case="c", source="CT", fold=3)])
    assert [(r["case"], r["source"], r["fold"]) for r in read_rows(file)] == [("a", "", ""), ("b", "", ""), ("c", "CT", "3")]
    append_rows(file, [row(case="c", source="CT", fold=3), row(case="d")])
    assert len(read_rows(file)) == 4 and not list(tmp_path.glob(".*tmp*"))


def test_only_the_last_epoch_is_compared(lab, capsys):
    """No checkpoint is chosen, so none can be chosen on a target: not even one put in the final one's place."""
    changes = TEACHER | {"domains": {"v": "950:Tr:case_00"}, "teacher": {**CONTENT["teacher"], "iterations": 3}}
    lab.compare(**changes)
    (final,) = lab.results.glob("*/fold_0/checkpoint_final.pth")
    content = load_checkpoint(final)
    shutil.rmtree("results")
    save_atomically(content | {"current_epoch": 0}, final)  # as nnU-Net's checkpoint_best.pth of an earlier epoch
    assert main(["compare", str(lab.folder / "compare.yaml")]) == 2
    said = capsys.readouterr().err
    assert "holds epoch 0 of 1: only the schedule's last epoch is compared" in said
    assert not Path("results/models").exists() and not Path("results/tiny.csv").exists()
    save_atomically(content, final)
    lab.compare(**changes)
    kept = json.loads(Path("results/models/teacher_8-16-32_seed0/compare.json").read_text())
    assert kept["checkpoint"] == {"file": "checkpoint_final.pth", "epoch": 1}
