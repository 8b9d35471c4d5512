"""`nnunet-kd verify`: good datasets pass, and every kind of damage is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
from PIL import Image

from nnunet_kd.cli.main import main
from nnunet_kd.datasets.verify import verify_dataset
from nnunet_kd.nnunet_io.readers import reader_of
from nnunet_kd.utils.errors import KDError


def write_volume(path: Path, array: np.ndarray, spacing=(0.7, 0.7, 3.0), origin=(1.0, 2.0, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    SimpleITK.WriteImage(image, str(path))


def write_json(folder: Path, **changes) -> None:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content | changes))


def volume(k: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros((6, 10, 12), np.uint8)
    label[1:4, 3:8, 2:9] = 1
    return np.random.default_rng(k).normal(0, 100, label.shape).astype(np.float32), label


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Three training cases and an unlabelled test case."""
    folder = tmp_path / "raw" / "Dataset830_Small"
    for k in range(4):
        tag = "Tr" if k < 3 else "Ts"
        write_volume(folder / f"images{tag}" / f"case_{k}_0000.nii.gz", volume(k)[0])
        if k < 3:
            write_volume(folder / f"labels{tag}" / f"case_{k}.nii.gz", volume(k)[1])
    write_json(folder)
    return folder


def test_a_good_3d_dataset(volumes: Path):
    found = verify_dataset(volumes)
    assert not found.problems and not found.notes
    rows = dict(found.rows)
    assert rows["cases"] == "3 in imagesTr, 1 in imagesTs, 3 labelled"
    assert rows["written size"] == "12 x 10 x 6" and rows["spacing (mm)"] == "0.7 x 0.7 x 3"
    assert rows["label values"] == "0 (85.4%), 1 (14.6%)"
    assert found.text().startswith("Dataset830_Small: no problems\n")
    with Image.open(volumes / "verify.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (4 * 320, 3 * 320 + 16)
        outlined = np.asarray(sheet)[336:656, :320].reshape(-1, 3)
        assert (outlined == (255, 220, 0)).all(1).sum() > 50  # the label's outline in the second row
        assert not (np.asarray(sheet)[16:336, :320].reshape(-1, 3) == (255, 220, 0)).all(1).any()


def label_elsewhere(folder: Path) -> None:
    write_volume(folder / "labelsTr/case_1.nii.gz", volume(1)[1], origin=(1, 2, 4))


def label_spacing(folder: Path) -> None:
    write_volume(folder / "labelsTr/case_1.nii.gz", volume(1)[1], spacing=(0.7, 0.7, 1))


def label_size(folder: Path) -> None:
    write_volume(folder / "labelsTr/case_1.nii.gz", volume(1)[1][:5])


def label_value(folder: Path) -> None:
    write_volume(folder / "labelsTr/case_1.nii.gz", volume(1)[1] * 2)


def label_missing(folder: Path) -> None:
    (folder / "labelsTr/case_1.nii.gz").unlink()


def image_missing(folder: Path) -> None:
    (folder / "imagesTr/case_1_0000.nii.gz").unlink()


def image_twice(folder: Path) -> None:
    shutil.copy(folder / "imagesTr/case_1_0000.nii.gz", folder / "imagesTs/case_3_0000.nii.gz")


def image_constant(folder: Path) -> None:
    write_volume(folder / "imagesTr/case_1_0000.nii.gz", np.full((6, 10, 12), 5.0, np.float32))


def image_truncated(folder: Path) -> None:
    path = folder / "imagesTr/case_1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:900])


def other_count(folder: Path) -> None:
    write_json(folder, numTraining=4)


def channel_missing(folder: Path) -> None:
    write_json(folder, channel_names={"0": "T1", "1": "T2"})
    for k in (0, 2, 3):
        write_volume(folder / f"images{'Tr' if k < 3 else 'Ts'}" / f"case_{k}_0001.nii.gz", volume(9 + k)[0])


def fewer_than_published(folder: Path) -> None:
    (folder / "conversion.json").write_text(json.dumps({"published": {"cases": 131}, "cases": {}}))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (label_elsewhere, r"case_1.nii.gz lies elsewhere than its image (origin (1.0, 2.0, 4.0) against (1.0, 2.0, 3.0))"),
        (label_spacing, "case_1.nii.gz lies elsewhere than its image (spacing"),
        (label_size, "case_1.nii.gz is 12x10x5, its image 12x10x6"),
        (label_value, "label of case_1 (Tr) holds [2], dataset.json knows [0, 1]"),
        (label_missing, "imagesTr: images without a label: case_1"),
        (image_missing, "labelsTr: labels without an image: case_1"),
        (image_twice, "2 images are the same: case_1 (Tr), case_3 (Ts)"),
        (image_constant, "case_1_0000.nii.gz has the value 5.0 everywhere"),
        (image_truncated, "case_1_0000.nii.gz (Compressed file ended"),
        (other_count, "dataset.json says 4 training cases, imagesTr holds 3"),
        (channel_missing, "imagesTr: not exactly 2 channel(s): case_1"),
        (fewer_than_published, "131 cases are published, found 4"),
    ],
)
def test_damage_is_named_and_the_exit_code_is_not_0(volumes: Path, monkeypatch, capsys, spoil, problem):
    spoil(volumes)
    monkeypatch.setenv("nnUNet_raw", str(volumes.parent))
    assert main(["verify", "830"]) == 2
    said = capsys.readouterr()
    assert problem in said.out and "PROBLEM" in said.out
    assert "Dataset830_Small has" in said.err and said.err.count("\n") == said.err.count("error:") == 1


def test_what_is_unusual_but_not_wrong_is_a_note(volumes: Path):
    write_volume(volumes / "labelsTr/case_1.nii.gz", volume(1)[1] * 0)
    for part in ("imagesTr/case_2_0000", "labelsTr/case_2"):
        write_volume(volumes / f"{part}.nii.gz", volume(2)["labels" in part], spacing=(1, 1, 1))
    found = verify_dataset(volumes)
    assert not found.problems
    assert found.notes == [
        "1 label(s) mark nothing: case_1",
        "1 case(s) have 1 mm spacing along all axes, others not: case_2",
    ]


def test_no_dataset(volumes: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(volumes.parent))
    assert main(["verify", "831"]) == 2
    assert "holds no dataset of id 831: correct the id or nnUNet_raw" in capsys.readouterr().err
    write_json(volumes, file_ending=".tif")
    with pytest.raises(KDError, match="holds .tif files: only .png, .nii.gz and .nii"):
        verify_dataset(volumes)
    (volumes / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(KDError, match="lacks 'file_ending' of nnU-Net's format"):
        verify_dataset(volumes)
    with pytest.raises(KDError, match="dataset.json cannot be read"):
        verify_dataset(tmp_path)


def test_convert_verifies_and_finds_a_resized_copy(drive_tree: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    command = ["convert", "drive", str(drive_tree), "--dataset-id", "802", "--fov-width", "40", "--verify"]
    assert main(command) == 2  # the tiny tree is not of the published size
    said = capsys.readouterr()
    assert "40 in imagesTr, 0 in imagesTs, 40 labelled" in said.out and "native size    56 x 58" in said.out
    assert "PROBLEM: 40 image(s) were not 565x584 pixels, as published" in said.out and "1 problem(s)" in said.err
    log = tmp_path / "raw" / "Dataset802_DRIVE" / "conversion.json"
    log.write_text(log.read_text().replace("584,\n      565", "58,\n      56"))
    assert main(["verify", "802"]) == 0
    assert (log.parent / "verify.png").is_file()


def test_colours_of_a_png_file_are_channels(tmp_path: Path):
    for k in range(3):
        rng = np.random.default_rng(k)
        for part, array in (("images", rng.integers(0, 255, (8, 9, 3), np.uint8)), ("labels", np.eye(8, 9, dtype=np.uint8))):
            (tmp_path / f"{part}Tr").mkdir(exist_ok=True)
            suffix = "_0000" if part == "images" else ""
            Image.fromarray(array).save(tmp_path / f"{part}Tr" / f"case_{k}{suffix}.png")
    write_json(tmp_path, channel_names={"0": "red", "1": "green", "2": "blue"}, file_ending=".png")
    assert not verify_dataset(tmp_path).problems
    Image.fromarray(np.eye(8, 9, dtype=np.uint8)).save(tmp_path / "imagesTr" / "case_1_0000.png")
    assert verify_dataset(tmp_path).problems == ["imagesTr: not exactly 3 channel(s): case_1"]


@pytest.mark.parametrize("colours", [3, 4])
def test_pictures_with_all_colours_in_one_file_are_as_nnunet_counts_them(tmp_path: Path, colours: int):
    folder = tmp_path / "Dataset832_Colour"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for k in range(3):
        picture = numbers.integers(0, 256, (10, 12, colours)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"imagesTr/case_{k}_0000.png")
        Image.fromarray((picture[..., 0] > 99).astype(np.uint8)).save(folder / f"labelsTr/case_{k}.png")
    names = {str(i): "RGBA"[i] for i in range(colours)}
    write_json(folder, channel_names=names, file_ending=".png")
    found = verify_dataset(folder)
    assert not found.problems and dict(found.rows)["written size"] == "12 x 10"
    nnunets_own_check(folder)
    write_json(folder, modality=names, channel_names={"0": "gray"}, file_ending=".png")
    assert "imagesTr: not exactly 1 channel(s): case_0, case_1, case_2" in verify_dataset(folder).problems
    Image.fromarray(picture).save(folder / "labelsTr/case_1.png")
    write_json(folder, channel_names=names, file_ending=".png")
    (problem,) = verify_dataset(folder).problems
    assert problem.endswith(f"case_1.png holds {colours} channels: a label map has one, of label values")


def nnunets_own_check(folder: Path) -> None:
    """Raises where nnU-Net's verify_dataset_integrity finds something."""
    content = json.loads((folder / "dataset.json").read_text())
    for case in range(content["numTraining"]):
        images = sorted((folder / "imagesTr").glob(f"case_{case}_*"))
        label = folder / "labelsTr" / images[0].name.replace("_0000", "")
        reader = reader_of(content, images[0])
        assert check_cases([str(i) for i in images], str(label), len(content["channel_names"]), reader)


@pytest.mark.parametrize("shape", [(10, 12), (2, 6, 10, 12), (1, 10, 12), (6, 1, 12)])
def test_nifti_of_two_and_four_dimensions_is_verified_and_drawn(tmp_path: Path, shape: tuple[int, ...]):
    folder, size = tmp_path / "Dataset833_Nifti", shape[-3:]
    for k in range(3):
        image, label = tmp_path / f"case_{k}_0000.nii.gz", tmp_path / f"case_{k}.nii.gz"
        for file, array in ((image, np.random.default_rng(k).normal(size=shape)), (label, np.ones(size))):
            kind = np.float32 if file == image else np.uint8
            target = folder / ("imagesTr" if file == image else "labelsTr") / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.astype(kind), isVector=False), str(target))
    channels = shape[0] if len(shape) == 4 else 1
    write_json(folder, channel_names={str(i): "T1" for i in range(channels)})
    found = verify_dataset(folder)
    assert not found.problems and not any("contact sheet" in note for note in found.notes)
    assert dict(found.rows)["written size"] == " x ".join(map(str, size[::-1]))
    with Image.open(folder / "verify.png") as sheet:
        assert sheet.width == 3 * 320 and sheet.height == (2 if len(shape) == 2 else 3) * 320 + 16
    if len(shape) != 4:  # nnU-Net's own check compares an origin of four numbers with one of three, and fails
        nnunets_own_check(folder)


def test_a_contact_sheet_that_cannot_be_drawn_is_a_note(volumes: Path, monkeypatch):
    def broken(_cases):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("nnunet_kd.datasets.verify.contact_sheet", broken)
    found = verify_dataset(volumes)
    assert found.notes == ["no contact sheet: no fonts"] and dict(found.rows)["written size"] == "12 x 10 x 6"
