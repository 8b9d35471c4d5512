"""The whole report from images on disk, predictions made by disturbing the annotation, and measured metrics and FSD."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import line
from skimage.io import imread, imsave

from nnunet_kd.evaluation.domains import Domain, evaluate_predictions, parse_domain
from nnunet_kd.evaluation.fsd import distance as fsd
from nnunet_kd.evaluation.fsd.sample import Sample
from nnunet_kd.evaluation.metrics.overlap import case_metrics, pooled, summarise
from nnunet_kd.evaluation.report.report import json_ready, print_table, write_csv, write_report

MODELS = {"teacher": 0.004, "student": 0.03, "kd": 0.022, "gkd": 0.018}  # share of pixels that get a random value
TRAINERS = {
    "teacher": "nnUNetTrainerScheduled",
    "student": "nnUNetTrainerScheduled",
    "kd": "nnUNetTrainerKD",
    "gkd": "nnUNetTrainerGKD",
}
HARDER = {"Source": 1.0, "Contrast": 2.0, "Noise": 4.0}


def _vessels(rng: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A branching tree on a textured background: image and label, uint8."""
    label = np.zeros((size, size), bool)
    for _ in range(4):
        place, angle = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0, 2 * math.pi)
        for _ in range(9):
            angle += rng.normal(0, 0.4)
            end = np.clip(place + 9 * np.array([math.sin(angle), math.cos(angle)]), 1, size - 2)
            label[line(*place.astype(int), *end.astype(int))] = True
            place = end
    label = ndimage.binary_dilation(label)
    image = 120 + 25 * ndimage.gaussian_filter(rng.normal(size=label.shape), 8) * 8 - 45 * label + rng.normal(0, 8, label.shape)
    return np.clip(image, 1, 255).astype(np.uint8), label.astype(np.uint8)


def _write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    imsave(file, array, check_contrast=False)


def _curves(rng: np.random.Generator, distilled: bool, aligned: bool, epochs: int = 30) -> dict[str, list]:
    t = np.arange(epochs)
    fall = np.exp(-t / 8)
    curves = {
        "train_losses": list(-0.5 + fall + rng.normal(0, 0.02, epochs)),
        "val_losses": list(-0.45 + fall + rng.normal(0, 0.03, epochs)),
        "mean_fg_dice": list(0.75 * (1 - fall)),
        "ema_fg_dice": list(0.7 * (1 - fall)),
    }
    if distilled:
        curves["kd/seg_loss"] = list(-0.5 + fall)
        curves["kd/kd"] = list(0.4 * fall + 0.1)
    if aligned:
        for key in ("intra", "inter", "cross_ts", "cross_st"):
            curves[f"kd/{key}"] = [None] * 10 + list(0.2 * fall[:20] + rng.uniform(0, 0.02, 20))
        for key in ("reconstruction", "consistency"):
            for network in ("teacher", "student"):
                curves[f"kd/act_{key}_{network}"] = [None] * 3 + list(fall[: epochs - 3] + 0.1 * (network == "teacher"))
    return curves


def make_domains(root: Path, cases: int = 6, seed: int = 0) -> list[Domain]:
    rng = np.random.default_rng(seed)
    for i, name in enumerate(HARDER):
        folder = root / f"Dataset{901 + i}_{name}"
        for c in range(cases):
            image, label = _vessels(rng)
            _write(folder / "imagesTr" / f"{name.lower()}_{c:02d}_0000.png", image)
            _write(folder / "labelsTr" / f"{name.lower()}_{c:02d}.png", label)
        (folder / "dataset.json").write_text(json.dumps({"file_ending": ".png"}))
    return [parse_domain(f"{name}={901 + i}:Tr", root) for i, name in enumerate(HARDER)]


def make_report(domains: list[Domain], out: Path, seed: int = 0) -> dict:
    """A report as `evaluate.evaluate` makes it, with predictions in out/predictions/MODEL/DOMAIN."""
    rng = np.random.default_rng(seed)
    models = []
    for name, wrong in MODELS.items():
        entry = {
            "name": name,
            "role": "teacher" if name == "teacher" else "student",
            "trainer": TRAINERS[name],
            "plans": "nnUNetTeacherPlans" if name == "teacher" else "nnUNetKDPlans",
            "parameters": 1_937_218 if name == "teacher" else 31_402,
            "flops": 412_000_000 if name == "teacher" else 7_900_000,
            "cpu_seconds_per_case": None if name == "kd" else 0.31,
            "description": f"the {name} & its <plans>",
            "domains": {},
            "curves": _curves(rng, name in ("kd", "gkd"), name == "gkd"),
        }
        for domain in domains:
            folder = out / "predictions" / name / domain.name
            for case in domain.cases:
                truth = imread(domain.labels / f"{case}.png")
                random = ndimage.binary_dilation(rng.random(truth.shape) < wrong * HARDER[domain.name] / 5)
                _write(folder / f"{case}.png", np.where(random, 1 - truth, truth).astype(np.uint8))
            if name == "student" and domain.name == "Noise":  # one case in which nothing was found
                _write(folder / f"{domain.cases[0]}.png", np.zeros_like(truth))
            cases = evaluate_predictions(domain, folder, [1])
            summary = summarise(cases)
            entry["domains"][domain.name] = {
                "dice": summary["dice"],
                "cases": cases,
                "summary": summary,
                "pooled": pooled(cases),
                "unseen": domain.name != "Source",
            }
        models.append(entry)
    found = []
    for network in ("student", "teacher"):
        home, owners = rng.normal(size=(60, 8)), np.repeat([f"c{i}" for i in range(6)], 10)
        for target, shift in (("Source (other half)", 0.0), ("Contrast", 0.8), ("Noise", 2.0)):
            other = rng.normal(size=(60, 8)) + shift * (0.5 if network == "teacher" else 1)
            result = fsd.compare(Sample(home, owners), Sample(other, owners), bootstrap=60)
            found.append({"model": "gkd", "network": network, "source": "Source", "target": target, **result})
    return {
        "title": "A light student on synthetic vessels",
        "created": "2026-11-21T10:00:00",
        "seconds": 671.3,
        "seed": 0,
        "commands": ["nnUNetv2_train 901 2d 0 -p nnUNetKDPlans -tr nnUNetTrainerGKD -device cpu"] * 2,
        "versions": {"nnunetv2": "2.8.1", "torch": "2.13.0"},
        "note": "Synthetic images, made on the spot.",
        "models": models,
        "fsd": found,
    }


class _Page(HTMLParser):
    """Checks that tags close in order and keeps what the tests look at."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attributes).get("class"), []))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and "tr" in self.open and data.strip():
            self.rows[-1][1].append(data.strip())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    domains = make_domains(root / "raw")
    report = make_report(domains, root / "out")
    page = write_report(report, root / "out", "Vessels <1>", domains)
    return report, page, domains


def test_the_page_is_whole_and_needs_nothing_else(written):
    report, page, domains = written
    text = page.read_text(encoding="utf-8")
    html = _Page(text)
    sources = [a for tag, attributes in html.tags for n, a in attributes.items() if n in ("src", "href", "srcset", "data")]
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    images = [a for tag, a in html.tags if tag == "img"]
    assert len(images) == len(domains) + 3 and all(len(a["alt"]) > 20 for a in images)
    assert "<title>Vessels &lt;1&gt;</title>" in text and "<plans>" not in text  # escaped
    assert all(m in html.text for m in MODELS) and all(d.name in html.text for d in domains)
    assert "nnunetv2" in html.text and report["commands"][0] in html.text and "11 min 11 s" in html.text
    assert not re.search(r"\b(nan|none)\b", html.text, re.IGNORECASE)


def test_the_main_table_holds_the_numbers(written):
    report, page, _ = written
    html = _Page(page.read_text(encoding="utf-8"))
    teacher, *students = report["models"]
    rows = {cells[0]: (kind, cells) for kind, cells in html.rows[1:5]}
    assert list(rows) == ["teacher", "student", "kd", "gkd"] and rows["teacher"][0] == "teacher"
    for m in report["models"]:
        cells = rows[m["name"]][1]
        for found in m["domains"].values():
            assert f"{found['dice']:.3f}" in cells
        assert f"{m['parameters']:,}" in cells
    assert "1.6% of teacher" in rows["gkd"][1] and "1 of 6 failed" in rows["student"][1]
    best = max(students, key=lambda m: np.mean([v["dice"] for v in m["domains"].values() if v["unseen"]]))
    assert [n for n, (kind, _) in rows.items() if kind == "best"] == [best["name"]]
    assert rows["kd"][1][-1] == "–"  # its CPU seconds were not measured


def test_json_and_csv_hold_every_case(written):
    report, page, domains = written

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    read = json.loads((page.parent / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [m["name"] for m in read["models"]] == list(MODELS) and read["title"] == "Vessels <1>"
    assert read["models"][0]["domains"]["Source"]["dice"] == pytest.approx(report["models"][0]["domains"]["Source"]["dice"])
    assert set(read["figures"]) == {"dice", "curves", "fsd", *(d.name for d in domains)}
    assert all((page.parent / f).is_file() for f in read["figures"].values())
    with (page.parent / "report.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(MODELS) * sum(len(d.cases) for d in domains)
    row = next(r for r in rows if (r["model"], r["case"]) == ("gkd", "noise_03"))
    assert float(row["dice"]) == pytest.approx(report["models"][3]["domains"]["Noise"]["cases"]["noise_03"]["dice"])
    assert row["unseen"] == "True" and row["failed"] == "False" and int(row["tp"]) > 0


def test_a_report_read_from_json_gives_the_same_page(written, tmp_path):
    report, page, domains = written
    again = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    predictions = {m: {d.name: page.parent / "predictions" / m / d.name for d in domains} for m in MODELS}
    second = write_report(again, tmp_path, None, domains, predictions)
    assert second.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_text_table(written):
    lines = print_table(written[0]).splitlines()
    assert lines[0].split() == ["mean", "Dice", "Source", "Contrast", "Noise", "parameters", "CPU", "s/case"]
    assert [row.split()[0] for row in lines[2:]] == list(MODELS) and len({len(row) for row in lines}) == 1
    assert f"{written[0]['models'][0]['domains']['Noise']['dice']:.3f}" in lines[2] and "31,402" in lines[5]


def test_what_was_measured_is_written_though_no_picture_can_be_drawn(written, tmp_path, capsys, monkeypatch):
    """Predictions that have gone, and a matplotlib that does not work at all: a line for each picture, and the numbers."""
    report, page, domains = written

    def broken(*_args):
        assert json.loads((tmp_path / "report.json").read_text())["models"] and (tmp_path / "report.csv").is_file()
        raise TypeError("no such colour")

    monkeypatch.setattr("nnunet_kd.evaluation.report.figures.dice_dots", broken)
    again = write_report(json.loads(json.dumps(json_ready(report))), tmp_path, None, domains)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'nnunet-kd: warning: The picture "dice" is left out: no such colour.'
    assert re.search(r'picture "Source" is left out: .*predictions.teacher.Source.source_\d\d\.png does not exist', lines[1])
    assert (
        "no such colour" in again.read_text()
        and (tmp_path / "report.csv").read_text() == (page.parent / "report.csv").read_text()
    )


def test_smallest_report(written, tmp_path):
    """One student, one domain, no curves, no FSD, no seed, no pictures."""
    report, _, _ = written
    model = {k: v for k, v in report["models"][1].items() if k not in ("curves", "description", "cpu_seconds_per_case")}
    model["domains"] = {"Source": model["domains"]["Source"]}
    small = {**report, "models": [model], "fsd": [], "seed": None, "commands": [], "note": ""}
    html = _Page(write_report(small, tmp_path).read_text(encoding="utf-8"))
    assert "At home (Source) the undistilled student reaches a mean Dice of" in html.text
    assert "Training" not in html.text and "FSD" not in html.text and "What it looks like" not in html.text


def test_strict_json():
    value = {"a": math.nan, "b": (np.float32(0.5), np.int64(2), float("inf")), 3: np.arange(2), "p": Path("x") / "y"}
    assert json_ready(value) == {"a": None, "b": [0.5, 2, None], "3": [0, 1], "p": str(Path("x") / "y")}


def test_csv_leaves_undefined_values_empty_and_lists_labels(tmp_path):
    empty, organ = np.zeros((8, 8), int), np.pad(np.ones((4, 4), int), 2)
    cases = {"none": case_metrics(empty, empty, [1, 2]), "one": case_metrics(organ, organ, [1, 2])}
    model = {"name": "m", "role": "student", "domains": {"D": {"cases": cases, "unseen": False}}}
    with write_csv({"models": [model]}, tmp_path / "r.csv").open(newline="") as stream:
        none, one = csv.DictReader(stream)
    assert none["dice"] == none["hd95"] == none["dice_1"] == "" and none["tn"] == "128"
    assert (one["dice"], one["dice_1"], one["dice_2"]) == ("1.0", "1.0", "")
