"""LiTS17 and the Decathlon's liver task: tiny trees of the published layouts, drawn here."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.volumetric.liver_ct import convert_lits17, convert_msd_liver
from nnunet_kd.utils.errors import KDError

SPACING, ORIGIN, DIRECTION = (0.7, 0.8, 2.5), (-10.0, 5.0, 7.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)
PLACE = dict(spacing=SPACING, origin=ORIGIN, direction=DIRECTION)


def write(path: Path, array: np.ndarray, spacing=(1.0,) * 3, origin=(0.0,) * 3, direction=None) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction or np.eye(3).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def scan(i: int) -> tuple[np.ndarray, np.ndarray]:
    """CT-like values and a label with liver and, in even cases, a tumour."""
    image = np.random.default_rng(i).integers(-1000, 300, (5, 6, 7)).astype(np.int16)
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:4, 2:5, 2:6] = 1
    label[2, 3, 3 : 5 - i % 2 * 2] = 2
    return image, label


@pytest.fixture
def lits_tree(tmp_path: Path) -> Path:
    """Two batches; case 28 with an identity affine, case 2's label with one; a float label; the unlabelled test batch."""
    root = tmp_path / "LiTS"
    for i, batch in ((0, 1), (2, 1), (10, 1), (28, 2)):
        image, label = scan(i)
        place = {} if i == 28 else PLACE
        write(root / f"Training Batch {batch}" / f"volume-{i}.nii", image, **place)
        label = label.astype(np.float32) if i == 10 else label
        write(root / f"Training Batch {batch}" / f"segmentation-{i}.nii", label, **({} if i == 2 else place))
    write(root / "Test" / "test-volume-0.nii", scan(0)[0])
    return root


def run(source: Path, tmp_path: Path, **options):
    return convert_lits17(source, tmp_path / "raw", tmp_path / "pre", 807, **options)


def read(path: Path) -> SimpleITK.Image:
    return SimpleITK.ReadImage(str(path))


def test_lits_tumours_are_liver_and_geometry_is_the_images(lits_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["lits17"] is convert_lits17
    report = run(lits_tree, tmp_path)
    assert report.train_cases == ["LiTS_000", "LiTS_002", "LiTS_010", "LiTS_028"] and not report.test_cases
    nnunet_accepts(report.folder)
    for case in report.train_cases:
        image, label = read(report.folder / f"imagesTr/{case}_0000.nii.gz"), read(report.folder / f"labelsTr/{case}.nii.gz")
        values, marks = scan(int(case[-3:]))
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), values)
        assert np.array_equal(SimpleITK.GetArrayFromImage(label), marks > 0) and label.GetPixelID() == SimpleITK.sitkUInt8
        assert label.GetOrigin() == image.GetOrigin() and label.GetDirection() == image.GetDirection()
        assert image.GetSpacing() == label.GetSpacing() == pytest.approx((1, 1, 1) if case == "LiTS_028" else SPACING)
    warnings = " ".join(report.warnings)
    assert "131 labelled volumes are published, found 4" in warnings
    assert "headers of 1 labels (first LiTS_002) differ" in warnings
    assert "1 images (LiTS_028 to LiTS_028) have 1 mm spacing" in warnings
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1} and content["channel_names"] == {"0": "CT"}


def test_lits_with_its_tumours_and_z_scores_from_compressed_files(lits_tree: Path, tmp_path: Path):
    for file in list(lits_tree.rglob("*.nii")):
        file.with_name(file.name.replace("volume", "Volume") + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    report = run(lits_tree, tmp_path, labels="all", normalisation="zscore")
    label = SimpleITK.GetArrayFromImage(read(report.folder / "labelsTr/LiTS_010.nii.gz"))
    assert np.array_equal(label, scan(10)[1]) and report.label_values == [0, 1, 2]
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert content["channel_names"] == {"0": "intensity"}  # a name nnU-Net does not know: z-scores


def spoil_missing(root: Path) -> None:
    (root / "Training Batch 1" / "segmentation-10.nii").unlink()


def spoil_size(root: Path) -> None:
    write(root / "Training Batch 1" / "segmentation-10.nii", scan(10)[1][:4], **PLACE)


def spoil_values(root: Path) -> None:
    write(root / "Training Batch 1" / "segmentation-10.nii", scan(10)[1] * 3, **PLACE)


def spoil_empty(root: Path) -> None:
    write(root / "Training Batch 1" / "segmentation-10.nii", scan(10)[1] * 0, **PLACE)


def spoil_truncated(root: Path) -> None:
    path = root / "Training Batch 1" / "volume-10.nii"
    path.write_bytes(path.read_bytes()[:500])


def spoil_all(root: Path) -> None:
    shutil.rmtree(root)
    write(root / "imagesTr" / "hippocampus_001.nii.gz", scan(0)[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, r"lacks 1 labels, the first for volume-10.nii: expected volume-0.nii with segmentation-0.nii"),
        (spoil_size, r"segmentation-10.nii is 7x6x4 voxels, its image 7x6x5: a resized copy; download"),
        (spoil_values, r"segmentation-10.nii holds the values \[3, 6\], expected \[0, 1, 2\]: download"),
        (spoil_empty, r"segmentation-10.nii holds no liver: download"),
        (spoil_truncated, r"cannot read .*volume-10.nii \(file ends after 500 of \d+ bytes\): download"),
        (spoil_all, r"holds no volumes of LiTS: expected volume-0.nii"),
    ],
)
def test_a_wrong_lits_is_one_line_and_leaves_nothing(lits_tree: Path, tmp_path: Path, spoil, message):
    spoil(lits_tree)
    with pytest.raises(KDError, match=message) as error:
        run(lits_tree, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("raw/*"))


def test_wrong_options_and_a_taken_id(lits_tree: Path, tmp_path: Path):
    with pytest.raises(KDError, match="unknown labels 'tumour': use one of liver, all with --labels"):
        run(lits_tree, tmp_path, labels="tumour")
    with pytest.raises(KDError, match="unknown normalisation 'minmax'.*--normalisation"):
        run(lits_tree, tmp_path, normalisation="minmax")
    (tmp_path / "raw" / "Dataset807_Other").mkdir(parents=True)
    with pytest.raises(KDError, match="807 is already taken by Dataset807_Other"):
        run(lits_tree, tmp_path)


def msd_tree(root: Path, nnunet: bool) -> Path:
    """As published, or as nnU-Net's converter leaves it."""
    for i in (0, 2, 10):
        image, label = scan(i)
        write(root / "imagesTr" / f"liver_{i}{'_0000' if nnunet else ''}.nii.gz", image, **PLACE)
        write(root / "labelsTr" / f"liver_{i}.nii.gz", label, **PLACE)
    write(root / "imagesTs" / "liver_132.nii.gz", scan(1)[0], **PLACE)
    (root / "imagesTr" / "._liver_0.nii.gz").write_bytes(b"\0\5")
    names = {"background": 0, "liver": 1, "cancer": 2}
    labels = names if nnunet else {str(v): k for k, v in names.items()}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "numTraining": 3}))
    return root


@pytest.mark.parametrize("nnunet", [False, True])
def test_msd_liver_before_and_after_nnunets_converter(tmp_path: Path, nnunet_accepts, nnunet):
    root = msd_tree(tmp_path / ("Dataset003_Liver" if nnunet else "Task03_Liver"), nnunet)
    report = convert_msd_liver(tmp_path, tmp_path / "raw", tmp_path / "pre", 808)  # one folder too high
    assert report.train_cases == ["MSDLiver_000", "MSDLiver_002", "MSDLiver_010"]
    nnunet_accepts(report.folder)
    for i in (0, 10):
        label = SimpleITK.GetArrayFromImage(read(report.folder / f"labelsTr/MSDLiver_{i:03d}.nii.gz"))
        assert np.array_equal(label, scan(i)[1] > 0)
    image = root / "imagesTr" / f"liver_2{'_0000' if nnunet else ''}.nii.gz"
    assert (report.folder / "imagesTr" / "MSDLiver_002_0000.nii.gz").read_bytes() == image.read_bytes()


def test_another_task_of_the_decathlon_is_refused(tmp_path: Path):
    root = msd_tree(tmp_path / "Task03_Liver", nnunet=False)
    run_msd = lambda: convert_msd_liver(root, tmp_path / "raw", tmp_path / "pre", 808)  # noqa: E731
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "pancreas", "2": "cancer"}}))
    with pytest.raises(KDError, match=r"another task \(labels background, pancreas, cancer\): expected Task03_Liver"):
        run_msd()
    (root / "dataset.json").write_text("{")
    with pytest.raises(KDError, match="dataset.json is not a dataset.json"):
        run_msd()
    (root / "dataset.json").unlink()
    with pytest.raises(KDError, match="holds no dataset.json of the Decathlon's Task03"):
        run_msd()


def test_a_scan_without_a_label_is_left_out_on_request(lits_tree: Path, tmp_path: Path):
    spoil_missing(lits_tree)
    report = run(lits_tree, tmp_path, allow_missing=True)
    assert report.train_cases == ["LiTS_000", "LiTS_002", "LiTS_028"] and len(report.missing_cases) == 128
    assert "LiTS_010" in report.missing_cases and "are published, found" not in report.text()
