"""The Decathlon's Hippocampus: tiny trees of the published layout, drawn here, and the published set where it is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_kd.cli.main import main
from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.volumetric.hippocampus import convert
from nnunet_kd.utils.errors import KDError

# by number 1000..1002 are the last, by name the first; with gaps, as published
IDS = [*range(930, 960), *range(965, 1003)]
NAMES = [f"hippocampus_{i:03d}" for i in IDS]
SPACING, ORIGIN, DIRECTION = (1.0, 1.5, 2.0), (3.0, -4.0, 5.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """68 volumes of 6x7x8 voxels; images float, labels uint8, with what macOS leaves in archives beside them."""
    root = tmp_path / "Task04_Hippocampus"
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir(parents=True)
        (root / part / f"._{NAMES[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
        (root / part / ".DS_Store").write_bytes(b"")
    (root / "._dataset.json").write_bytes(b"\0\5\x16\7")
    for i, name in zip(IDS, NAMES, strict=True):
        rng = np.random.default_rng(i)
        write(root / "imagesTr" / f"{name}.nii.gz", rng.normal(100, 20, (8, 7, 6)).astype(np.float32))
        write(root / "labelsTr" / f"{name}.nii.gz", label_of(i))
    write(root / "imagesTs" / "hippocampus_002.nii.gz", np.ones((8, 7, 6), np.float32))
    content = {
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in reversed(NAMES)],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def label_of(i: int) -> np.ndarray:
    label = np.zeros((8, 7, 6), np.uint8)
    label[2:4, 2:5, 1 + i % 3], label[4:6, 2:5, 1 + i % 3] = 1, 2
    return label


def write(path: Path, array: np.ndarray, spacing=SPACING, origin=ORIGIN, direction=DIRECTION) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path))


def run(source: Path, tmp_path: Path, **options):
    return convert(source, tmp_path / "raw", tmp_path / "pre", 804, **options)


def stems(folder: Path) -> list[str]:
    return sorted(p.name.removesuffix(".nii.gz") for p in folder.iterdir())


def test_the_last_sixty_numbers_are_the_test_part(tree: Path, tmp_path: Path):
    assert CONVERTERS["hippocampus"] is convert
    report = run(tree, tmp_path)
    folder = tmp_path / "raw" / "Dataset804_Hippocampus"
    assert report.folder == folder and (report.train_cases, report.test_cases) == (NAMES[:8], NAMES[8:])
    for tag, cases in (("Tr", NAMES[:8]), ("Ts", NAMES[8:])):
        assert stems(folder / f"labels{tag}") == sorted(cases)
        assert stems(folder / f"images{tag}") == sorted(f"{c}_0000" for c in cases)
    assert {p.name for p in folder.iterdir()} == {
        "imagesTr",
        "labelsTr",
        "imagesTs",
        "labelsTs",
        "dataset.json",
        "conversion.json",
    }
    assert not (tmp_path / "pre").exists()  # folds are nnU-Net's


def test_dataset_json_and_report(tree: Path, tmp_path: Path):
    report = run(tree, tmp_path)
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert content["channel_names"] == {"0": "MRI"} and content["numTraining"] == 8
    assert content["file_ending"] == ".nii.gz" and "overwrite_image_reader_writer" not in content
    assert report.label_values == [0, 1, 2] and report.label_fraction == pytest.approx(12 / 336)
    assert "6x7x8 (68 cases)" in report.text() and "3.6% of the volume" in report.text()
    assert "260 labelled volumes are published" in report.text()
    case = json.loads((report.folder / "conversion.json").read_text())["cases"]["hippocampus_1002"]
    assert case["part"] == "imagesTs" and case["size"] == [6, 7, 8] and case["spacing"] == list(SPACING)


def test_images_stay_as_they_are_and_labels_keep_their_voxels(tree: Path, tmp_path: Path):
    write(tree / "labelsTr" / f"{NAMES[3]}.nii.gz", label_of(IDS[3]).astype(np.float32))  # two of the published are float
    folder = run(tree, tmp_path).folder
    for i, name in list(zip(IDS, NAMES, strict=True))[:8]:
        written = folder / "imagesTr" / f"{name}_0000.nii.gz"
        assert written.read_bytes() == (tree / "imagesTr" / f"{name}.nii.gz").read_bytes()
        label = SimpleITK.ReadImage(str(folder / "labelsTr" / f"{name}.nii.gz"))
        assert label.GetPixelID() == SimpleITK.sitkUInt8
        assert np.array_equal(SimpleITK.GetArrayFromImage(label), label_of(i))
        assert label.GetSpacing() == SPACING and label.GetOrigin() == ORIGIN and label.GetDirection() == DIRECTION


def test_geometry_comes_from_the_image(tree: Path, tmp_path: Path):
    write(tree / "labelsTr" / f"{NAMES[0]}.nii.gz", label_of(IDS[0]), origin=(3.0005, -4.0, 5.0))
    folder = run(tree, tmp_path).folder
    label, image = (
        SimpleITK.ReadImage(str(folder / f)) for f in (f"labelsTr/{NAMES[0]}.nii.gz", f"imagesTr/{NAMES[0]}_0000.nii.gz")
    )
    assert label.GetOrigin() == image.GetOrigin() == ORIGIN


def spoil_missing_label(root: Path) -> None:
    (root / "labelsTr" / "hippocampus_940.nii.gz").unlink()


def spoil_missing_images(root: Path) -> None:
    for path in (root / "imagesTr").glob("hippocampus_9[4-9]*"):
        path.unlink()


def spoil_unlisted(root: Path) -> None:
    write(root / "labelsTr" / "hippocampus_961.nii.gz", label_of(1))


def spoil_no_dataset_json(root: Path) -> None:
    (root / "dataset.json").unlink()


def spoil_half_a_dataset_json(root: Path) -> None:
    path = root / "dataset.json"
    path.write_text(path.read_text()[:200])


def spoil_other_task(root: Path) -> None:
    path = root / "dataset.json"
    path.write_text(path.read_text().replace("Anterior", "liver"))


def spoil_swapped_labels(root: Path) -> None:
    path = root / "dataset.json"
    path.write_text(path.read_text().replace("Anterior", "x").replace("Posterior", "Anterior").replace('"x"', '"Posterior"'))


def spoil_few(root: Path) -> None:
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    content["training"] = content["training"][:60]
    path.write_text(json.dumps(content))
    for i in IDS[:8]:
        for part in ("imagesTr", "labelsTr"):
            (root / part / f"hippocampus_{i:03d}.nii.gz").unlink()


def spoil_file(part: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / part / "hippocampus_1001.nii.gz"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def spoil_label(array: np.ndarray, **geometry) -> Callable[[Path], None]:
    return lambda root: write(root / "labelsTr" / "hippocampus_1001.nii.gz", array, **geometry)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing_label, r"labelsTr lacks hippocampus_940.nii.gz, against .*\(67 of 68 files\)"),
        (spoil_missing_images, r"imagesTr lacks hippocampus_940.nii.gz, against .*\(13 of 68 files\)"),
        (spoil_unlisted, r"labelsTr has hippocampus_961.nii.gz, against"),
        (spoil_no_dataset_json, r"dataset.json is missing"),
        (spoil_half_a_dataset_json, r"dataset.json is not the Decathlon's"),
        (spoil_other_task, r"another task \(labels background, liver, posterior\)"),
        (spoil_swapped_labels, r"another task \(labels background, posterior, anterior\)"),
        (spoil_few, r"holds 60 labelled volumes, of which the last 60 are for testing"),
        (
            spoil_file("imagesTr", lambda b: b[: len(b) // 2]),
            r"cannot read .*imagesTr/hippocampus_1001.nii.gz \(Compressed file",
        ),
        (spoil_file("labelsTr", lambda b: b[:60] + b"xyz" + b[63:]), r"cannot read .*labelsTr/hippocampus_1001.nii.gz"),
        (spoil_file("imagesTr", lambda b: b""), r"cannot read .*imagesTr/hippocampus_1001.nii.gz"),
        (spoil_file("imagesTr", lambda b: b"no gzip"), r"cannot read .*imagesTr/hippocampus_1001.nii.gz \(Not a gzipped"),
        (spoil_label(label_of(1)[:7]), r"labelsTr/hippocampus_1001.nii.gz is 6x7x7 voxels, its image 6x7x8"),
        (spoil_label(label_of(1), origin=(3, -4, 6)), r"1001.nii.gz lies elsewhere than its image \(origin"),
        (spoil_label(label_of(1), spacing=(1, 1.5, 2.1)), r"1001.nii.gz lies elsewhere than its image \(spacing"),
        (spoil_label(label_of(1), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)), r"lies elsewhere than its image \(direction"),
        (spoil_label(label_of(1) * 2), r"1001.nii.gz holds the values \[0, 2, 4\], expected 0, 1 and 2"),
        (spoil_label(label_of(1) * np.float32(0.5)), r"1001.nii.gz holds the values \[0.0, 0.5, 1.0\]"),
        (spoil_label(label_of(1) * 0), r"1001.nii.gz holds the values \[0\]"),
    ],
)
def test_a_wrong_source_is_one_line_with_the_fix_and_leaves_nothing(tree: Path, tmp_path: Path, spoil, message):
    spoil(tree)
    with pytest.raises(KDError, match=message) as error:
        run(tree, tmp_path)
    assert "\n" not in str(error.value) and "Task04_Hippocampus" in str(error.value)
    assert not list(tmp_path.glob("raw/*")) and not list(tmp_path.glob("pre/*"))


def test_a_missing_volume_is_left_out_on_request_and_moves_no_other_one(tree: Path, tmp_path: Path):
    whole = run(tree, tmp_path)
    gone = [whole.train_cases[0], whole.test_cases[-1]]
    (tree / "imagesTr" / f"{gone[0]}.nii.gz").unlink()
    (tree / "labelsTr" / f"{gone[1]}.nii.gz").unlink()
    report = run(tree, tmp_path, overwrite=True, allow_missing=True)
    assert report.missing_cases == gone
    assert report.train_cases == whole.train_cases[1:] and report.test_cases == whole.test_cases[:-1]


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(KDError, match="nowhere is not a folder or an archive"):
        run(tmp_path / "nowhere", tmp_path)


def test_an_earlier_conversion_is_respected(tree: Path, tmp_path: Path):
    run(tree, tmp_path)
    with pytest.raises(KDError, match="--overwrite"):
        run(tree, tmp_path)
    planned = tmp_path / "pre" / "Dataset804_Hippocampus" / "dataset_fingerprint.json"
    planned.parent.mkdir(parents=True)
    planned.write_text("{}")
    assert any("--clean" in w for w in run(tree, tmp_path, overwrite=True).warnings)


def test_the_command(tree: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    command = ["convert", "hippocampus", str(tree), "--dataset-id", "804"]
    for option in (["--channels", "green"], ["--fov-width", "0"], ["--observer", "1"], ["--corruptions"]):
        assert main([*command, *option]) == 2
        said = capsys.readouterr().err
        assert f"{option[0]} is for chase_db1" in said and "only, hippocampus has none: leave it out" in said
    assert main(command) == 0
    assert "Dataset804_Hippocampus: 8 cases in imagesTr, 60 in imagesTs" in capsys.readouterr().out


@pytest.mark.slow
def test_the_published_set(real_data: Path, tmp_path: Path):
    report = run(real_data / "Task04_Hippocampus", tmp_path)
    assert (len(report.train_cases), len(report.test_cases)) == (200, 60) and not report.warnings
    assert report.train_cases[0] == "hippocampus_001" and report.test_cases[-1] == "hippocampus_394"
    assert report.label_values == [0, 1, 2] and 0.04 < report.label_fraction < 0.07
    assert all(24 <= axis <= 60 for size in report.native_sizes for axis in size)
