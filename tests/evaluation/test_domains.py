"""Domains out of nnU-Net's raw layout, and predictions measured against them."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from skimage.io import imsave

from nnunet_kd.evaluation.domains import evaluate_predictions, parse_domain, read_image, read_label
from nnunet_kd.utils.errors import KDError


def _save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    imsave(file, array.astype(np.uint8), check_contrast=False)


def _label(seed: int) -> np.ndarray:
    truth = np.zeros((24, 32), np.uint8)
    truth[5 + seed : 12 + seed, 8:20] = 1
    return truth


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Dataset 801 with a training and a labelled test set, 802 with a training set of two groups and fields of view."""
    first, second = tmp_path / "Dataset801_CHASE_DB1", tmp_path / "Dataset802_DRIVE"
    for i, (tag, case) in enumerate([("Tr", "C_01"), ("Tr", "C_02"), ("Ts", "C_03"), ("Ts", "C_04"), ("Ts", "C_05")]):
        _save(first / f"images{tag}" / f"{case}_0000.png", np.full((24, 32), 50 + i))
        _save(first / f"labels{tag}" / f"{case}.png", _label(i))
    for i, case in enumerate(["DRIVE_test_01", "DRIVE_test_02", "DRIVE_training_21"]):
        _save(second / "imagesTr" / f"{case}_0000.png", np.full((24, 32), 90))
        _save(second / "labelsTr" / f"{case}.png", _label(i))
        _save(second / "fovTr" / f"{case}.png", np.pad(np.full((20, 28), 255), 2))
    for folder in (first, second):
        (folder / "dataset.json").write_text(json.dumps({"file_ending": ".png"}))
    return tmp_path


def test_from_a_dataset_id(raw):
    assert parse_domain("CHASE_DB1=801", raw).cases == ["C_03", "C_04", "C_05"]
    assert parse_domain("CHASE_DB1=801:Tr", raw).cases == ["C_01", "C_02"]
    drive = parse_domain("DRIVE=802:Tr:DRIVE_test_*", raw)
    assert drive.name == "DRIVE" and drive.cases == ["DRIVE_test_01", "DRIVE_test_02"]
    assert drive.fov == raw / "Dataset802_DRIVE" / "fovTr" and drive.file_ending == ".png"
    assert parse_domain("DRIVE=802", raw).labels.name == "labelsTr"  # no test labels
    assert read_image(drive, "DRIVE_test_01").shape == read_label(drive, "DRIVE_test_01").shape == (24, 32)


def test_from_folders(raw):
    folder = raw / "Dataset802_DRIVE"
    domain = parse_domain(f"HERE={folder / 'imagesTr'},{folder / 'labelsTr'},{folder / 'fovTr'}", raw)
    assert len(domain.cases) == 3 and domain.file_ending == ".png" and domain.fov == folder / "fovTr"
    assert parse_domain(f"HERE={folder / 'imagesTr'},{folder / 'labelsTr'}", raw).fov is None


def test_mistakes_are_one_line(raw):
    first = raw / "Dataset801_CHASE_DB1"

    def fails(spec: str, *words: str) -> None:
        with pytest.raises(KDError) as error:
            parse_domain(spec, raw)
        assert "\n" not in str(error.value)
        assert all(w in str(error.value) for w in words), str(error.value)

    fails("DRIVE", "must read NAME=ID")
    fails("DRIVE=a,b,c,d", "must read NAME=ID")
    fails("DRIVE=803", "no Dataset803_*", "nnUNet_raw")
    fails("DRIVE=802:Ts", "imagesTs does not exist")
    fails("DRIVE=802:Tr:CHASE_*", "match CHASE_*")
    fails(f"X={first / 'labelsTr'},{first / 'labelsTr'}", "no images named CASE_0000.png")
    (first / "imagesTs" / "C_04_0000.png").unlink()
    fails("CHASE_DB1=801:Ts", "label C_04.png has no image")
    (first / "labelsTr" / "C_02.png").unlink()
    fails("CHASE_DB1=801:Tr", "image C_02_0000.png has no label")
    assert parse_domain("CHASE_DB1=801:Tr", raw, labelled=False).cases == ["C_01", "C_02"]
    (raw / "Dataset802_DRIVE" / "fovTr" / "DRIVE_test_02.png").unlink()
    fails("DRIVE=802", "field of view", "DRIVE_test_02.png is missing")
    (raw / "Dataset802_Other").mkdir()
    fails("DRIVE=802", "share the id 802")
    (first / "dataset.json").write_text("{}")
    fails("CHASE_DB1=801", "file_ending")


@pytest.mark.parametrize("workers", [1, 2])
def test_predictions_are_measured_inside_the_field_of_view(raw, tmp_path, workers):
    domain = parse_domain("DRIVE=802", raw)
    predictions = tmp_path / "predictions"
    for case in domain.cases:
        prediction = read_label(domain, case).copy()
        prediction[0, :] = 1  # outside the field of view
        prediction[2, 2:8] = 1  # inside
        _save(predictions / f"{case}.png", prediction)
    found = evaluate_predictions(domain, predictions, [1], workers=workers)
    assert list(found) == domain.cases
    for metrics in found.values():
        assert (metrics["tp"], metrics["fp"], metrics["fn"]) == (84, 6, 0)
        assert metrics["tp"] + metrics["fp"] + metrics["tn"] == 20 * 28 and metrics["hd95_unit"] == "px"


def test_wrong_predictions(raw, tmp_path):
    domain = parse_domain("CHASE_DB1=801:Tr", raw)
    predictions = tmp_path / "predictions"
    _save(predictions / "C_01.png", _label(0))
    with pytest.raises(KDError, match=r"C_02\.png is missing"):
        evaluate_predictions(domain, predictions, [1])
    _save(predictions / "C_02.png", _label(0)[:10])
    with pytest.raises(KDError, match=r"C_02\.png does not fit .*\(10, 32\)"):
        evaluate_predictions(domain, predictions, [1])
    (predictions / "C_02.png").write_bytes(b"not a picture")
    with pytest.raises(KDError, match=r"cannot read .*C_02\.png"):
        evaluate_predictions(domain, predictions, [1])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_are_measured_in_millimetres(tmp_path, ending):
    truth = np.zeros((8, 20, 20), np.uint8)
    truth[2:6, 4:12, 4:12] = 1
    moved = np.roll(truth, 2, axis=0)
    for folder, name, array in (("images", "a_0000", truth), ("labels", "a", truth), ("predicted", "a", moved)):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.5, 3.0))  # x, y, z
        (tmp_path / folder).mkdir()
        SimpleITK.WriteImage(image, str(tmp_path / folder / f"{name}{ending}"))
    domain = parse_domain(f"CT={tmp_path / 'images'},{tmp_path / 'labels'}", tmp_path)
    metrics = evaluate_predictions(domain, tmp_path / "predicted", [1])["a"]
    assert metrics["hd95"] == pytest.approx(6.0) and metrics["hd95_unit"] == "mm" and metrics["dice"] == 0.5
