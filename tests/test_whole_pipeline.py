"""What is legal for nnU-Net goes through every step, from the raw data to the report: one table, one test. Minutes."""

import json
from pathlib import Path

import pytest
from dataset_variants import as_before_2_5, change, modality
from small_runs import known_trainers

from nnunet_kd.cli.main import main

pytestmark = pytest.mark.slow

VOLUME = {"dims": 3, "cases": 5}
VARIANTS = {
    # what is unusual: (name of the data set, options of make_dataset, what happens to dataset.json and to the plans)
    "nothing": ("Usual", {}, None, None),
    "modality": ("Modality", {"channels": 2}, modality, None),
    "older plans": ("OldPlans", {}, None, as_before_2_5),
    "older plans and modality, 3-D": ("OldPlans3d", VOLUME, modality, as_before_2_5),
    "an umlaut, a blank, brackets and a dot in the name": ("Gr\u00f6\u00dfe [1] v1.2", {}, None, None),
    "RGB": ("RGB", {"channels": 3, "together": True}, None, None),
    "RGBA": ("RGBA", {"channels": 4, "together": True}, None, None),
    "BMP": ("BMP", {"ending": ".bmp"}, None, None),
    "2-D TIFF": ("TIFF", {"ending": ".tif"}, None, None),
    "2-D NIfTI": ("NIfTI2d", {"ending": ".nii.gz"}, None, None),
    "3-D NIfTI, uncompressed": ("Nii", {**VOLUME, "ending": ".nii"}, None, None),
    "3-D TIFF": ("TIFF3d", {**VOLUME, "ending": ".tif"}, None, None),
    "NRRD": ("NRRD", {**VOLUME, "ending": ".nrrd"}, None, None),
    "MHA": ("MHA", {**VOLUME, "ending": ".mha"}, None, None),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_plan_to_report(variant, make_dataset, train, tmp_path, monkeypatch, capsys):
    name, options, dataset_json, plans = VARIANTS[variant]
    number = 970 + list(VARIANTS).index(variant)
    dataset = make_dataset(number, name, **options)
    if dataset_json is not None:
        for folder in (dataset.raw, dataset.preprocessed):
            change(folder / "dataset.json", dataset_json)
    if plans is not None:
        change(dataset.plans_file, plans)
    known_trainers(monkeypatch)

    def run(*arguments) -> str:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, error = capsys.readouterr()
        assert code == 0, error
        return out

    if "ending" not in options or dataset.raw.joinpath("imagesTr", f"{dataset.cases[0]}_0000.nii.gz").is_file():
        assert "no problems" in run("verify", number)
    teacher = train(dataset)
    run("plan", number, "-c", dataset.configuration, "--teacher", teacher, "--features", 4, 8, 8, "--iterations", 2)
    student = train(dataset, "nnUNetTrainerKD", "nnUNetKDPlans")
    out = tmp_path / "report"
    run("export", student, "-o", tmp_path / "model", "--onnx")
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "PlainConvUNet" in card and dataset.name in card
    domain = f"home={number}:Tr:case_0[01]"
    models = ["--model", f"teacher={teacher}", "--model", f"student={tmp_path / 'model'}"]
    said = run("evaluate", *models, "--domain", domain, "-o", out, "--fsd", "none", "--auc")
    assert "report.html" in said
    report = json.loads((out / "report.json").read_text())
    assert {m["name"]: len(m["domains"]["home"]["cases"]) for m in report["models"]} == {"teacher": 2, "student": 2}
    assert (out / "outlines_home.png").is_file() and (out / "report.csv").is_file() and not report["note"]
    run("predict", "-m", tmp_path / "model", "-i", dataset.raw / "imagesTr", "-o", tmp_path / "predicted")
    ending = json.loads((dataset.raw / "dataset.json").read_text())["file_ending"]
    predicted = sorted(p.name for p in Path(tmp_path / "predicted").glob(f"*{ending}"))
    assert predicted == [f"{case}{ending}" for case in dataset.cases]
    measures = ["-pred", tmp_path / "predicted", "-ref", dataset.raw / "labelsTr", "-djfile", dataset.raw / "dataset.json"]
    assert f"{len(dataset.cases)} cases" in run("metrics", *measures)
