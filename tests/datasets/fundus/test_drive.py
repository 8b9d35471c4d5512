import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.fundus.drive import convert
from nnunet_kd.datasets.verify import verify_dataset
from nnunet_kd.utils.errors import KDError

TRAINING = [f"DRIVE_training_{i}" for i in range(21, 41)]
TEST = [f"DRIVE_test_{i:02d}" for i in range(1, 21)]


def run(source: Path, tmp_path: Path, **options):
    return convert(source, tmp_path / "raw", tmp_path / "pre", 802, **{"fov_width": 40, **options})


def test_all_forty_become_training_cases(drive_tree: Path, tmp_path: Path):
    assert CONVERTERS["drive"] is convert
    report = run(drive_tree, tmp_path)
    assert report.train_cases == sorted(TRAINING + TEST) and not report.test_cases
    assert sorted(p.stem for p in (report.folder / "labelsTr").iterdir()) == report.train_cases
    assert sorted(p.stem for p in (report.folder / "imagesTr").iterdir()) == [f"{c}_0000" for c in report.train_cases]
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["numTraining"] == 40 and "research use only" in content["licence"]
    assert report.native_sizes == {(56, 58): 40} and report.label_values == [0, 1]


def test_the_published_masks_are_used(drive_tree: Path, tmp_path: Path):
    """They are smaller (radius 24) than what is lit (27): at the native scale the width tells which was taken."""
    report = run(drive_tree, tmp_path, fov_width=None)
    fov = np.asarray(Image.open(report.folder / "fovTr" / "DRIVE_test_03.png"))
    assert np.unique(fov).tolist() == [0, 255] and np.flatnonzero(fov.any(axis=0)).size == 48
    mask = np.asarray(Image.open(drive_tree / "test" / "mask" / "03_test_mask.gif").convert("L"))
    assert (fov > 0).sum() == (mask > 0).sum()


def test_labels_come_from_the_right_half_and_number(drive_tree: Path, tmp_path: Path):
    report = run(drive_tree, tmp_path, fov_width=None)
    log = json.loads((report.folder / "conversion.json").read_text())["cases"]
    assert sorted(log) == report.train_cases
    for case, entry in log.items():
        _, half, number = case.split("_")
        label = Path(entry["source"]["label"])
        assert label.parts[-3:] == (half, "1st_manual", f"{number}_manual1.gif")
        top, left, bottom, right = entry["crop_box"]
        native = np.asarray(Image.open(drive_tree / label).convert("L"))[top:bottom, left:right] > 127
        written = np.asarray(Image.open(report.folder / "labelsTr" / f"{case}.png"))
        fov = np.asarray(Image.open(report.folder / "fovTr" / f"{case}.png")) > 0
        rows, columns = entry["pad"]
        inner = (slice(rows, rows + bottom - top), slice(columns, columns + right - left))
        assert np.array_equal(written[inner], native & fov[inner])


def test_observer_2_marked_the_test_half_only(drive_tree: Path, tmp_path: Path):
    report = run(drive_tree, tmp_path, observer=2)
    assert report.train_cases == TEST
    assert any("training half" in w and "left out" in w for w in report.warnings)
    log = json.loads((report.folder / "conversion.json").read_text())["cases"]
    assert all(c["source"]["label"].endswith("_manual2.gif") for c in log.values())
    assert 0.01 < report.label_fraction < 0.2  # palette files: indices 0 and 1 are gray levels 0 and 253


@pytest.mark.parametrize("leave_empty_folder", [True, False])
def test_todays_download_lacks_the_test_labels(drive_tree: Path, tmp_path: Path, leave_empty_folder):
    shutil.rmtree(drive_tree / "test" / "1st_manual")
    if leave_empty_folder:
        (drive_tree / "test" / "1st_manual").mkdir()
    report = run(drive_tree, tmp_path)
    assert report.train_cases == TRAINING
    assert any("test half" in w for w in report.warnings) and "left out" in report.text()


def test_todays_download_is_a_zip_of_zips(drive_tree: Path, tmp_path: Path):
    shutil.rmtree(drive_tree / "test" / "1st_manual")
    for half in ("training", "test"):
        shutil.make_archive(str(tmp_path / "inner" / half), "zip", drive_tree, half)
    report = run(Path(shutil.make_archive(str(tmp_path / "datasets"), "zip", tmp_path / "inner")), tmp_path)
    assert report.train_cases == TRAINING and [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset802_DRIVE"]


def test_folder_names_in_any_case(drive_tree: Path, tmp_path: Path):
    (drive_tree / "training").rename(drive_tree / "Training")
    (drive_tree / "test" / "mask").rename(drive_tree / "test" / "Mask")
    assert len(run(drive_tree, tmp_path).train_cases) == 40


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("training/1st_manual/30_manual1.gif", "19 labels in the training half of DRIVE .see number 30"),
        ("test/mask/05_test_mask.gif", "19 field-of-view masks in the test half of DRIVE .see number 05"),
        ("test/images/20_test.tif", "19 images in the test half of DRIVE .see number 20"),
    ],
)
def test_a_missing_file_is_named(drive_tree: Path, tmp_path: Path, path, message):
    (drive_tree / path).unlink()
    with pytest.raises(KDError, match=message):
        run(drive_tree, tmp_path)
    assert not list(tmp_path.glob("raw/*"))


def test_a_mask_of_another_size_is_named(drive_tree: Path, tmp_path: Path):
    Image.fromarray(np.full((58, 50), 255, np.uint8)).save(drive_tree / "training" / "mask" / "22_training_mask.gif")
    with pytest.raises(KDError, match="22_training_mask.gif is 50x58 pixels"):
        run(drive_tree, tmp_path)


def test_a_folder_without_drive_is_an_error(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KDError, match="holds no labels"):
        run(tmp_path / "empty", tmp_path)
    with pytest.raises(KDError, match="--observer"):
        run(tmp_path / "empty", tmp_path, observer=3)


@pytest.mark.slow
def test_the_published_set(real_data: Path, tmp_path: Path):
    report = convert(real_data / "DRIVE", tmp_path / "raw", tmp_path / "pre", 802)
    assert report.train_cases == sorted(TRAINING + TEST)
    assert report.native_sizes == {(565, 584): 40} and not report.warnings
    assert 0.10 < report.label_fraction < 0.15
    assert {w for w, _ in report.canvas_sizes} == {616}
    found = verify_dataset(report.folder)
    assert not found.problems and dict(found.rows)["native size"] == "565 x 584"
