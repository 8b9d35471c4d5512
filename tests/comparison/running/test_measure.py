"""What a row of the CSV holds beside its Dice: distance, empty annotations, the best offset, organs."""

from __future__ import annotations

import csv
import io
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compare_lab import lab, row, write
from skimage.io import imread, imsave

import nnunet_kd.comparison.running.execute as execution
from nnunet_kd.cli.main import main
from nnunet_kd.comparison.rows import COLUMNS, MEASURED, append_rows, read_rows
from nnunet_kd.comparison.running.measure import measured_cells
from nnunet_kd.evaluation.domains import parse_domain
from nnunet_kd.evaluation.metrics.overlap import case_metrics
from nnunet_kd.evaluation.offsets import CaseLogits
from nnunet_kd.evaluation.predict import load_predictor, predict_domain

__all__ = ["lab"]  # the fixture
TEACHER = {"methods": {"teacher": {"role": "teacher"}}, "student": None}


def cells(prediction: np.ndarray, truth: np.ndarray, labels=(1,), regions: bool = False) -> dict:
    """Of a network that is sure (logits of 9) of ``prediction``."""
    heads = [np.isin(prediction, r) for r in labels] if regions else [prediction == 0, *(prediction == k for k in labels)]
    logits = torch.from_numpy(np.stack(heads)[:, None] * 18.0 - 9.0)
    box = tuple(slice(0, n) for n in (1, *prediction.shape))
    order = tuple(r[0] for r in labels) if regions else None
    curves = CaseLogits(logits, box, (0, 1, 2), order).dice(truth[None], labels)
    return measured_cells(case_metrics(prediction, truth, labels), curves)


def test_a_row_by_hand():
    prediction, truth = np.zeros((30, 40), int), np.zeros((30, 40), int)
    truth[10, 10:20] = 1
    prediction[13, 10:20] = 1
    found = cells(prediction, truth)
    assert found == {
        "hd95": "3.000",
        "truth_empty": 0,
        "marked": 10,
        "best_dice": "0.000000",
        "best_offset": "0",
        "dice_per_label": "",
    }
    empty = np.zeros_like(truth)
    alarm, quiet = cells(prediction, empty), cells(empty, empty)
    assert (alarm["truth_empty"], alarm["marked"], alarm["hd95"], alarm["best_dice"]) == (1, 10, "50.000", "nan")
    assert (quiet["truth_empty"], quiet["marked"], quiet["hd95"]) == (1, 0, "nan")
    missed = cells(empty, truth)
    assert (missed["truth_empty"], missed["marked"], missed["hd95"]) == (0, 0, "50.000")  # the diagonal of 30 x 40


def test_organs_by_hand():
    prediction, truth = np.zeros((8, 8), int), np.zeros((8, 8), int)
    truth[0, :4], truth[4, :4] = 1, 2
    prediction[0, :4], prediction[4, :2] = 1, 2
    found = cells(prediction, truth, (1, 2, 3))
    assert found["dice_per_label"] == "1:1.000000;2:0.666667;3:nan" and found["marked"] == 6
    assert float(found["best_dice"]) == pytest.approx(5 / 6, abs=1e-6)  # the absent organ does not count
    # an image without the organs that are looked for is empty; one with one of them is not
    assert cells(prediction, np.zeros_like(truth), (1, 2, 3))["truth_empty"] == 1
    assert cells(prediction, np.where(truth == 1, 0, truth), (1, 2, 3))["truth_empty"] == 0
    # regions: label 2 lies in the region of both, and counts once
    nested = cells(prediction, truth, ((1, 2), (2,)), regions=True)
    assert nested["marked"] == 6 and nested["dice_per_label"] == f"1+2:{12 / 14:.6f};2:0.666667"


def test_the_logits_are_seen_without_changing_the_prediction(tiny_dataset, tiny_teacher, tmp_path):
    domain = parse_domain("d=950:Tr", tiny_dataset.raw.parent)
    predictor = load_predictor(tiny_teacher, ("0",), "checkpoint_final.pth")
    seen = {}
    predict_domain(predictor, domain, tmp_path / "plain", "x")
    predict_domain(predictor, domain, tmp_path / "seen", "x", see=seen.__setitem__)
    assert list(seen) == domain.cases
    for case in domain.cases:
        stock, ours = (imread(tmp_path / place / f"{case}.png") for place in ("plain", "seen"))
        np.testing.assert_array_equal(stock, ours)
        np.testing.assert_array_equal(np.asarray(seen[case].logits.float().argmax(0))[0], stock)


def test_volumes_with_regions_are_seen_at_their_own_spacing(make_dataset, train, tmp_path):
    dataset = make_dataset(963, "Seen3d", dims=3, foreground=2, regions=True)
    domain = parse_domain("v=963:Tr", dataset.raw.parent)
    domain = replace(domain, cases=domain.cases[:1])
    predictor = load_predictor(train(dataset), ("0",), "checkpoint_final.pth")
    curves = {}
    reader = predictor.plans_manager.image_reader_writer_class()
    truth = reader.read_seg(str(domain.labels / f"{domain.cases[0]}.nii.gz"))[0][0]

    def see(case: str, logits: CaseLogits) -> None:
        curves.update(logits.dice(truth, [(1, 2), (2,)], offsets=[0.0]))

    predict_domain(predictor, domain, tmp_path, "x", see=see)
    prediction = reader.read_seg(str(tmp_path / f"{domain.cases[0]}.nii.gz"))[0][0]
    stock = case_metrics(prediction, truth, [(1, 2), (2,)])["labels"]
    assert {k: v[0] for k, v in curves.items()} == pytest.approx({k: v["dice"] for k, v in stock.items()}, nan_ok=True)
    assert prediction.any() and not prediction.all()


def test_rows_of_a_run_hold_the_measures(tiny_dataset, lab):
    folders = [lab.folder / name for name in ("images", "labels")]
    for folder, place in zip(folders, ("imagesTr", "labelsTr"), strict=True):
        shutil.copytree(tiny_dataset.raw / place, folder)
    imsave(folders[1] / "case_00.png", np.zeros((48, 48), np.uint8), check_contrast=False)
    domain = ",".join(map(str, folders))
    rows = {r["case"]: r for r in lab.compare(**TEACHER, domains={"v": domain})}
    assert tuple(Path("results/tiny.csv").read_text().splitlines()[0].split(",")) == (*COLUMNS, *MEASURED)
    assert [c for c, r in rows.items() if r["truth_empty"] == "1"] == ["case_00"]
    assert rows["case_00"]["best_dice"] == "nan" and rows["case_00"]["dice"] in ("nan", "0.000000")
    own = [r for c, r in rows.items() if c != "case_00"]
    assert all(float(r["best_dice"]) >= float(r["dice"]) and r["hd95"] and int(r["marked"]) >= 0 for r in own)
    assert any(float(r["best_dice"]) > float(r["dice"]) and float(r["best_offset"]) != 0 for r in own)
    status = [execution.status(p := lab.plan(**TEACHER, domains={"v": domain}), p.runs[0])]
    assert status == ["done"]


def test_a_file_gets_columns_with_the_first_row_that_has_them(tmp_path):
    file, measures = tmp_path / "a.csv", dict.fromkeys(MEASURED, "") | {"hd95": "2.5", "truth_empty": 0, "marked": 7}
    append_rows(file, [row()])
    append_rows(file, [row(case="b") | measures])
    assert file.read_text().splitlines()[0] == ",".join((*COLUMNS, *MEASURED))
    append_rows(file, [row(case="c", source="CT"), row(case="d")])
    found = read_rows(file)
    assert [(r["case"], r["hd95"], r["marked"], r["source"]) for r in found] == [
        ("a", "", "", ""),
        ("b", "2.5", "7", ""),
        ("c", "", "", "CT"),
        ("d", "", "", ""),
    ]
    assert not list(tmp_path.glob(".*tmp*")) and math.isclose(float(found[1]["dice"]), 0.5)


def measured(dice, truth_empty=0, **more) -> dict:
    return {"dice": dice, "hd95": 4.0, "truth_empty": truth_empty, "marked": 5, "best_dice": 0.8, "best_offset": 0.5} | more


@pytest.fixture
def with_empty_cases(tmp_path, monkeypatch) -> Path:
    """kd on two annotated and three empty images, of which it marks one; student's rows are from before the columns."""
    monkeypatch.chdir(tmp_path)
    append_rows(
        Path("results/tiny.csv"),
        [
            row(case="a") | measured(0.7),
            row(case="b") | measured(0.6, hd95=10.0, best_dice=0.6, best_offset=-1.5),
            row(case="x") | measured(0.0, 1, hd95=68.0, best_dice="nan", best_offset="nan"),
            row(case="y") | measured("nan", 1, hd95="nan", best_dice="nan", best_offset="nan"),
            row(case="z") | measured("nan", 1, hd95="nan", best_dice="nan", best_offset="nan"),
            row("student", case="a", dice=0.5),
            row("student", case="b", dice=0.6),
            row("student", case="x", dice=0.0),
            row("student", case="y", dice=0.0),
            row("student", case="z", dice="nan"),
            row("student", case="n", dice=0.0, dataset="all"),
        ],
    )
    return write(tmp_path, domains={"val": "950:Ts", "all": {"domain": "951:Ts"}})


def lines_of(text: str) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [c.strip() for c in line.strip("|").split("|")]
            found.setdefault(cells[0], []).append(cells)
    return found


def test_empty_cases_are_in_no_mean_and_have_a_rate(with_empty_cases, capsys):
    assert main(["compare", str(with_empty_cases), "--table", "--against", "student"]) == 0
    said = capsys.readouterr().out
    lines = lines_of(said)
    # Dice, failures, HD95, best Dice, marked, difference
    assert lines["kd"][0][3:5] == ["0.6500", ""] and lines["student"][0][3:5] == ["0.5500", "0.0000"]
    assert lines["kd"][1][3] == lines["student"][1][3] == "0.0% (0.0%)" and lines["student"][1][4] == "100.0% (100.0%)"
    assert lines["kd"][2][3:] == ["7.00"]
    assert lines["kd"][3][3:] == ["0.7000 (+0.0500 at -0.50)"]
    assert lines["kd"][4][3:] == ["1 of 3 (33.3%)"] and lines["student"][2][3:] == ["2 of 3 (66.7%)"]
    assert lines["kd"][5][3].startswith("+10.00 [")  # +20 and 0, not the five cases
    assert lines["method"][2] == ["method", "parameters", "seeds", "val"]  # the domain without such rows has no column


def test_empty_cases_in_csv_and_report(with_empty_cases, tmp_path, monkeypatch, capsys):
    assert main(["compare", str(with_empty_cases), "--table", "--csv"]) == 0
    rows = {(r["method"], r["domain"]): r for r in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    kd, student, other = rows["kd", "val"], rows["student", "val"], rows["student", "all"]
    assert (kd["cases"], kd["dice"], kd["hd95"], kd["best_dice"], kd["best_dice_gain"]) == ("2", "0.65", "7", "0.7", "0.05")
    assert (kd["empty"], kd["marked_although_empty"], kd["marked_share"]) == ("3", "1", "0.333333")
    assert (student["empty"], student["marked_although_empty"], student["hd95"], other["empty"]) == ("3", "2", "", "")
    for name in ("raw", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    assert main(["compare", str(with_empty_cases), "--report", "page.html"]) == 0
    text = Path("page.html").read_text(encoding="utf-8")
    assert "Distance of the surfaces" in text and "1 of 3 (33.3%)" in text and "0.7000 (+0.0500 at -0.50)" in text


def test_a_domain_of_empty_images_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [row(case=c) | measured(d, 1, best_dice="nan", best_offset="nan") for c, d in (("x", 0.0), ("y", "nan"))]
    append_rows(Path("results/tiny.csv"), [*rows, row(dataset="all", dice=0.5)])
    for form in ([], ["--csv"], ["--latex"]):
        assert main(["compare", str(write(tmp_path)), "--table", "--against", "kd", *form]) == 0
        said = capsys.readouterr().out
        assert ("1 of 2 (50.0%)" in said) or form
    assert main(["compare", str(write(tmp_path)), "--report", "page.html"]) == 0
    assert "1 of 2 (50.0%)" in Path("page.html").read_text(encoding="utf-8")


def test_tables_of_old_rows_are_as_before(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    append_rows(Path("results/tiny.csv"), [row(dice=0.0), row(case="b", dice=0.8)])
    assert main(["compare", str(write(tmp_path)), "--table"]) == 0
    said = capsys.readouterr().out
    assert "0.4000" in said and "HD95" not in said and "offset" not in said and "although" not in said


def test_old_rows_are_measured_again_from_the_kept_model_in_their_place(lab, capsys):
    rows = lab.compare(**TEACHER)
    file, old_columns = Path("results/tiny.csv"), dict.fromkeys(MEASURED, "")
    file.unlink()
    append_rows(file, [r | old_columns for r in rows[:2]])
    append_rows(file, rows[2:3])
    append_rows(file, [r | old_columns for r in rows[3:]])
    append_rows(file, [row(case="elsewhere")])
    yaml, trained = write(lab.folder, **TEACHER), list(lab.trained)
    assert lab.compare(**TEACHER)[3]["hd95"] == ""  # counts as done
    capsys.readouterr()
    assert main(["compare", str(yaml), "--remeasure", "--dry-run"]) == 0
    assert "teacher seed 0: to measure again: val (2), all (2)" in capsys.readouterr().out
    assert main(["compare", str(yaml), "--remeasure"]) == 0
    assert "4 rows measured again: val (2), all (2); Dice differs by at most 0.000000" in capsys.readouterr().out
    found = read_rows(file)
    dated = [{k: v for k, v in r.items() if k != "date"} for r in found]
    assert dated[:-1] == [{k: v for k, v in r.items() if k != "date"} for r in rows] and found[2] == rows[2]
    assert found[-1]["case"] == "elsewhere" and found[-1]["hd95"] == "" and lab.trained == trained
    assert main(["compare", str(yaml), "--remeasure"]) == 0
    assert "has all columns" in capsys.readouterr().out
    shutil.rmtree("results/models")
    file.unlink()
    append_rows(file, [r | old_columns for r in rows])
    before = file.read_bytes()
    assert main(["compare", str(yaml), "--remeasure"]) == 0
    assert "no kept model in results/models/teacher_8-16-32_seed0, its rows stay" in capsys.readouterr().out
    assert file.read_bytes() == before and lab.trained == trained
