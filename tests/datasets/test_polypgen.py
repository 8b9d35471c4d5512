"""PolypGen: tiny trees of the published layout and of a resized copy, drawn here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.polypgen import convert_polypgen
from nnunet_kd.datasets.verify import verify_dataset
from nnunet_kd.utils.errors import KDError

MASK = np.zeros((20, 24), np.uint8)
MASK[5:12, 6:14] = 255


def write(folder: Path, images: str, masks: str, name: str, mask_file: str, seed: int, mask: np.ndarray = MASK) -> None:
    for part in (images, masks):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(rgb).save(folder / images / f"{name}.jpg")
    Image.fromarray(mask).save(folder / masks / mask_file)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """C1 and C2 share a name; C2 has a negative."""
    root = tmp_path / "PolypGen"
    write(root / "C1", "images", "masks", "100H0050", "100H0050.png", 1)
    write(root / "C1", "images", "masks", "100S0001", "100S0001.png", 2)
    write(root / "C2", "images", "masks", "100H0050", "100H0050.png", 3)
    write(root / "C2", "images", "masks", "EndoCV2021_001002", "EndoCV2021_001002.png", 4, np.zeros_like(MASK))
    return root


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Six centres, the names as published, and what must not be read: sequences, all frames again, overlays."""
    root = tmp_path / "PolypGen2021_MultiCenterData_v3"
    for k in range(1, 7):
        write(root / f"data_C{k}", f"images_C{k}", f"masks_C{k}", f"C{k}_x1", f"C{k}_x1_mask.jpg", k)
        write(root / "imagesAll_positive", ".", "bbox", f"C{k}_x1", f"C{k}_x1_mask.jpg", k)
    write(root / "data_C3", "images_C3", "masks_C3", "C3_EndoCV2021_00489_", "C3_EndoCV2021_00489_mask.jpg", 9)
    shutil.copytree(root / "data_C1" / "images_C1", root / "data_C1" / "bbox_image_C1")
    write(root / "sequenceData/positive/seq1", "images_seq1", "masks_seq1", "1_endocv", "1_endocv_mask.jpg", 10)
    (root / "sequenceData/negativeOnly/seq1_neg").mkdir(parents=True)
    shutil.copy(root / "data_C1/images_C1/C1_x1.jpg", root / "sequenceData/negativeOnly/seq1_neg/n.jpg")
    return root


def run(source: Path, tmp_path: Path, **options):
    return convert_polypgen(source, tmp_path / "raw", tmp_path / "pre", 833, **options)


def test_centres_are_in_the_names_and_negatives_are_kept(copy: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["polypgen"] is convert_polypgen
    report = run(copy, tmp_path)
    assert report.train_cases == [
        "PolypGen_C1_100H0050",
        "PolypGen_C1_100S0001",
        "PolypGen_C2_100H0050",
        "PolypGen_C2_EndoCV2021_001002",
    ]
    nnunet_accepts(report.folder)
    read = lambda case: np.asarray(Image.open(report.folder / "labelsTr" / f"{case}.png"))  # noqa: E731
    assert np.array_equal(read("PolypGen_C1_100H0050"), MASK > 0) and not read("PolypGen_C2_EndoCV2021_001002").any()
    text = report.text()
    assert "negatives     1 cases without a polyp" in text and "centres       C1 (2 cases), C2 (2 cases)" in text
    assert "557 images are published, found 4" in text  # 256 + 301: centres that are not there are not asked for
    assert json.loads((report.folder / "dataset.json").read_text())["licence"] == "CC BY 4.0"


def test_verify_takes_a_negative_as_a_note(copy: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nnunet_kd.datasets.polypgen.CENTRES", {"C1": 2, "C2": 2})
    found = verify_dataset(run(copy, tmp_path, size=(32, 32)).folder)
    assert not found.problems
    assert found.notes == ["1 label(s) mark nothing: PolypGen_C2_EndoCV2021_001002"]


def test_a_negative_is_not_a_polyp_lost_by_resizing(copy: Path, tmp_path: Path):
    assert "too small" not in run(copy, tmp_path, size=(32, 32)).text()


def test_the_published_layout(published: Path, tmp_path: Path):
    report = run(published, tmp_path)
    assert report.train_cases == [
        "PolypGen_C1_C1_x1",
        "PolypGen_C2_C2_x1",
        "PolypGen_C3_C3_EndoCV2021_00489",
        "PolypGen_C3_C3_x1",
        *(f"PolypGen_C{k}_C{k}_x1" for k in (4, 5, 6)),
    ]
    assert "1537 images are published, found 7" in report.text()


def test_the_published_archive(published: Path, tmp_path: Path):
    archive = shutil.make_archive(str(tmp_path / "polypgen"), "zip", tmp_path, published.name)
    assert len(run(archive, tmp_path).train_cases) == 7


def lose_mask(root: Path) -> None:
    (root / "C1/masks/100S0001.png").unlink()


def masks_of_zero_and_one(root: Path) -> None:
    for file in root.glob("C*/masks/*"):
        Image.fromarray(MASK // 255).save(file)


def centre_elsewhere(root: Path) -> None:
    root.rename(root.with_name("away"))
    (root.with_name("away") / "C1").rename(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_mask, "lacks 1 masks, the first for 100S0001.jpg"),
        (masks_of_zero_and_one, "no mask in .* marks anything .*: masks must be 0 and 255"),
        (centre_elsewhere, "holds no images of PolypGen: expected folders C1 to C6"),
    ],
)
def test_a_wrong_source_is_one_line_and_leaves_nothing(copy: Path, tmp_path: Path, spoil, message):
    spoil(copy)
    with pytest.raises(KDError, match=message) as error:
        run(copy, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("raw/*"))
