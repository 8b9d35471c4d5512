"""The polyp sets: tiny trees of the published layouts, drawn here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.cli.main import main
from nnunet_kd.datasets import CONVERTERS, endoscopy
from nnunet_kd.datasets.endoscopy import (
    SEQUENCE_STARTS,
    convert_cvc_clinicdb,
    convert_etis,
    convert_kvasir_seg,
    resize,
    sequences,
)
from nnunet_kd.utils.errors import KDError


def draw(root: Path, images: str, masks: str, name: str, ending: str, seed: int, mask: str | None = None, **options) -> None:
    """An image of 12x10 pixels and a mask of its own."""
    rng = np.random.default_rng(seed)
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (10, 12, 3), np.uint8)).save(root / images / f"{name}.{ending}", **options)
    Image.fromarray(mask_of(seed)).save(root / masks / f"{mask or name}.{ending}", **options)


def mask_of(seed: int) -> np.ndarray:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:6, 1 + seed % 6 : 6 + seed % 6] = 255
    return mask


@pytest.fixture
def kvasir_tree(tmp_path: Path) -> Path:
    """JPEG masks, whose edges are not 0 and 255 any more."""
    root = tmp_path / "Kvasir-SEG"
    for k in range(6):
        draw(root, "images", "masks", f"cju{k}abc", "jpg", k, quality=60)
    (root / "kavsir_bboxes.json").write_text("{}")
    return root


@pytest.fixture
def clinic_tree(tmp_path: Path) -> Path:
    """Two frames of each sequence."""
    root = tmp_path / "CVC-ClinicDB"
    for start in SEQUENCE_STARTS:
        for frame in (start, start + 1):
            draw(root, "Original", "Ground Truth", str(frame), "tif", frame)
    return root


def run(convert, source: Path, tmp_path: Path, **options):
    return convert(source, tmp_path / "raw", tmp_path / "pre", 820, **options)


def test_kvasir_masks_are_thresholded(kvasir_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["kvasir_seg"] is convert_kvasir_seg
    report = run(convert_kvasir_seg, kvasir_tree, tmp_path)
    assert report.train_cases == [f"Kvasir_cju{k}abc" for k in range(6)]
    nnunet_accepts(report.folder)
    published = np.asarray(Image.open(kvasir_tree / "masks" / "cju0abc.jpg"))
    assert len(np.unique(published)) > 2
    for k in range(6):
        label = np.asarray(Image.open(report.folder / "labelsTr" / f"Kvasir_cju{k}abc.png"))
        assert np.array_equal(label, mask_of(k) > 0)
    image = np.asarray(Image.open(report.folder / "imagesTr" / "Kvasir_cju0abc_0000.png"))
    assert np.array_equal(image, np.asarray(Image.open(kvasir_tree / "images" / "cju0abc.jpg")))
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "polyp": 1} and list(content["channel_names"].values()) == [
        "red",
        "green",
        "blue",
    ]
    assert "1000 images are published, found 6" in report.text()


def test_kvasirs_test_part(kvasir_tree: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(KDError, match="holds 6 images, of which the last 200 are for testing: use --split all"):
        run(convert_kvasir_seg, kvasir_tree, tmp_path, split="last200")
    monkeypatch.setattr("nnunet_kd.datasets.endoscopy.KVASIR_SPLITS", {"all": 0, "last200": 2})
    report = run(convert_kvasir_seg, kvasir_tree, tmp_path, split="last200")
    assert report.test_cases == ["Kvasir_cju4abc", "Kvasir_cju5abc"] and len(report.train_cases) == 4


def test_clinicdb_never_parts_a_sequence(clinic_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["cvc_clinicdb"] is convert_cvc_clinicdb
    report = run(convert_cvc_clinicdb, clinic_tree, tmp_path, split="last6sequences")
    nnunet_accepts(report.folder)
    groups = [{c[:12] for c in cases} for cases in (report.train_cases, report.test_cases)]
    assert groups[1] == {f"ClinicDB_s{s}" for s in range(24, 30)} and not groups[0] & groups[1] and len(groups[0]) == 23
    folds = json.loads((tmp_path / "pre" / "Dataset820_CVCClinicDB" / "splits_final.json").read_text())
    assert len(folds) == 5 and sorted(c for f in folds for c in f["val"]) == report.train_cases
    for fold in folds:
        assert not {c[:12] for c in fold["train"]} & {c[:12] for c in fold["val"]}
    label = np.asarray(Image.open(report.folder / "labelsTr" / "ClinicDB_s02_026.png"))
    assert np.array_equal(label, mask_of(26) > 0)
    assert "images are published with 384x288 pixels, found 12x10: a resized copy" in report.text()


def test_the_sequences_of_clinicdb(clinic_tree: Path):
    known = sequences(clinic_tree)
    assert sorted(known) == list(range(1, 613)) and sorted(set(known.values())) == list(range(1, 30))
    assert [known[f] for f in (25, 26, 205, 206, 612)] == [1, 2, 10, 11, 29]
    (clinic_tree / "metadata.csv").write_text("frame_id,sequence_id,png_image_path\n1,7,x\n2,7,y\n")
    assert sequences(clinic_tree) == {1: 7, 2: 7}


def test_frames_without_a_sequence(clinic_tree: Path, tmp_path: Path):
    draw(clinic_tree, "Original", "Ground Truth", "613", "tif", 1)
    with pytest.raises(KDError, match="frame 613 of CVC-ClinicDB .* belongs to no known sequence"):
        run(convert_cvc_clinicdb, clinic_tree, tmp_path)
    (clinic_tree / "metadata.csv").write_text("frame,sequence\n1,7\n")
    with pytest.raises(KDError, match="metadata.csv lacks numbers in frame_id or sequence_id"):
        run(convert_cvc_clinicdb, clinic_tree, tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "prefix", "ending"),
    [("images", "masks", "", "png"), ("ETIS-LaribPolypDB", "Ground Truth", "p", "tif"), ("Images", "GT", "p", "bmp")],
)
def test_etis_in_several_layouts(tmp_path: Path, nnunet_accepts, images, masks, prefix, ending):
    assert CONVERTERS["etis"] is convert_etis
    for k in (1, 2, 10):
        draw(tmp_path / "ETIS", images, masks, str(k), ending, k, mask=f"{prefix}{k}")
    report = run(convert_etis, tmp_path / "ETIS" / images, tmp_path)
    assert report.train_cases == ["ETIS_001", "ETIS_002", "ETIS_010"]
    nnunet_accepts(report.folder)
    assert np.array_equal(np.asarray(Image.open(report.folder / "labelsTr" / "ETIS_010.png")), mask_of(10) > 0)


def test_polyps_as_an_archive(kvasir_tree: Path, tmp_path: Path):
    archive = shutil.make_archive(str(tmp_path / "kvasir-seg"), "zip", tmp_path, "Kvasir-SEG")
    assert len(run(convert_kvasir_seg, archive, tmp_path).train_cases) == 6


def spoil_mask(root: Path) -> None:
    (root / "masks" / "cju3abc.jpg").unlink()


def spoil_image(root: Path) -> None:
    (root / "images" / "cju3abc.jpg").unlink()


def spoil_size(root: Path) -> None:
    Image.fromarray(mask_of(3)).resize((6, 5)).save(root / "masks" / "cju3abc.jpg")


def spoil_zero_one(root: Path) -> None:
    Image.fromarray(mask_of(3) // 255).save(root / "masks" / "cju3abc.jpg")


def spoil_truncated(root: Path) -> None:
    path = root / "images" / "cju3abc.jpg"
    path.write_bytes(path.read_bytes()[:200])


def spoil_folder(root: Path) -> None:
    shutil.rmtree(root / "images")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_mask, "lacks 1 masks, the first for cju3abc.jpg"),
        (spoil_image, "lacks 1 images, the first for cju3abc.jpg"),
        (spoil_size, "cju3abc.jpg is 6x5 pixels, its image cju3abc.jpg 12x10: a resized copy"),
        (spoil_zero_one, "cju3abc.jpg is empty"),
        (spoil_truncated, "cannot read .*images/cju3abc.jpg"),
        (spoil_folder, "holds no images of Kvasir-SEG: expected a folder of images and a folder of masks"),
    ],
)
def test_a_wrong_source_is_one_line_and_leaves_nothing(kvasir_tree: Path, tmp_path: Path, spoil, message):
    spoil(kvasir_tree)
    with pytest.raises(KDError, match=message) as error:
        run(convert_kvasir_seg, kvasir_tree, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("raw/*")) and not list(tmp_path.glob("pre/*"))


def test_an_id_taken_and_unknown_splits(kvasir_tree: Path, clinic_tree: Path, tmp_path: Path):
    for convert, source in ((convert_kvasir_seg, kvasir_tree), (convert_cvc_clinicdb, clinic_tree)):
        with pytest.raises(KDError, match="unknown split 'x' of .* with --split"):
            run(convert, source, tmp_path, split="x")
    run(convert_kvasir_seg, kvasir_tree, tmp_path)
    with pytest.raises(KDError, match="820 is already taken by Dataset820_KvasirSEG"):
        run(convert_cvc_clinicdb, clinic_tree, tmp_path)
    with pytest.raises(KDError, match="add --overwrite"):
        run(convert_kvasir_seg, kvasir_tree, tmp_path)


def test_resizing_averages_areas():
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 200
    label = np.zeros((64, 96), bool)
    label[:32, :48] = label[32:, 10] = True
    label[32:36, 60:63] = True  # covers 3/4 of a new pixel's width, then nothing
    image, small = resize(stripes, label, (24, 16))
    assert image.shape == (16, 24, 3) and image.dtype == np.uint8 and np.abs(image[:, 1:-1].astype(int) - 100).max() <= 2
    wanted = np.zeros((16, 24), bool)
    wanted[:8, :12] = wanted[8, 15] = True  # the line of one pixel covers a quarter: gone
    assert np.array_equal(small, wanted)


def test_resizing_may_enlarge_and_stretch():
    image, label = resize(np.full((10, 12, 3), 70, np.uint8), np.eye(10, 12) > 0, (24, 40))
    assert (
        image.shape == (40, 24, 3) and (image == 70).all() and np.array_equal(label, np.eye(10, 12).repeat(4, 0).repeat(2, 1))
    )


@pytest.mark.parametrize("name", ["kvasir_seg", "cvc_clinicdb"])
def test_one_size_for_all(kvasir_tree: Path, clinic_tree: Path, tmp_path: Path, monkeypatch, capsys, nnunet_accepts, name):
    for part in ("raw", "pre"):
        (tmp_path / part).mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    source = {"kvasir_seg": kvasir_tree, "cvc_clinicdb": clinic_tree}[name]
    assert main(["convert", name, str(source), "--dataset-id", "820", "--size", "48", "32"]) == 0
    text = capsys.readouterr().out
    n = 6 if name == "kvasir_seg" else 58
    assert f"native size   12x10 ({n} cases)" in text and f"written size  48x32 ({n} cases)" in text
    (folder,) = (tmp_path / "raw").iterdir()
    nnunet_accepts(folder)
    for file in (*folder.glob("imagesTr/*.png"), *folder.glob("labelsTr/*.png")):
        assert Image.open(file).size == (48, 32)
    log = json.loads((folder / "conversion.json").read_text())
    assert log["settings"]["size"] == [48, 32]
    for case in log["cases"].values():
        assert case["native_size"] == [10, 12] and case["written_size"] == [32, 48]


def test_without_a_size_nothing_is_said_of_it(kvasir_tree: Path, tmp_path: Path):
    report = run(convert_kvasir_seg, kvasir_tree, tmp_path)
    log = json.loads((report.folder / "conversion.json").read_text())
    assert "size" not in log["settings"] and not any("written_size" in case for case in log["cases"].values())
    assert report.canvas_sizes == report.native_sizes == {(12, 10): 6}


def test_polyps_lost_by_resizing_are_named(tmp_path: Path):
    for k in range(2):
        draw(tmp_path / "Kvasir-SEG", "images", "masks", f"big{k}", "png", k)
    speck = np.zeros((640, 640), np.uint8)
    speck[3, 3] = 255
    Image.fromarray(np.zeros((640, 640, 3), np.uint8)).save(tmp_path / "Kvasir-SEG/images/small.png")
    Image.fromarray(speck).save(tmp_path / "Kvasir-SEG/masks/small.png")
    report = run(convert_kvasir_seg, tmp_path / "Kvasir-SEG", tmp_path, size=(64, 64))
    assert "1 polyp(s) are too small to be seen at this --size, the first Kvasir_small" in report.text()


@pytest.mark.parametrize("size", [(31, 64), (64, 4097), (0, 0)])
def test_impossible_sizes(kvasir_tree: Path, tmp_path: Path, size):
    with pytest.raises(KDError, match=f"--size {size[0]} {size[1]} .* is not between 32 and 4096 pixels"):
        run(convert_kvasir_seg, kvasir_tree, tmp_path, size=size)
    assert not list(tmp_path.glob("raw/*"))


def test_a_size_is_for_polyps_only(tmp_path: Path, capsys):
    assert main(["convert", "drive", str(tmp_path), "--dataset-id", "820", "--size", "64", "64"]) == 2
    assert "--size is for kvasir_seg, cvc_clinicdb, etis and polypgen only, drive has none" in capsys.readouterr().err


def test_an_image_without_its_mask_is_left_out_on_request_and_moves_no_other_one(
    kvasir_tree: Path, clinic_tree: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setitem(endoscopy.KVASIR_SPLITS, "last200", 2)
    (kvasir_tree / "masks" / "cju5abc.jpg").unlink()
    with pytest.raises(KDError, match="lacks 1 masks, the first for cju5abc.jpg.*--allow-missing"):
        run(convert_kvasir_seg, kvasir_tree, tmp_path)
    report = run(convert_kvasir_seg, kvasir_tree, tmp_path, split="last200", allow_missing=True)
    assert report.train_cases == [f"Kvasir_cju{k}abc" for k in range(4)] and report.test_cases == ["Kvasir_cju4abc"]
    assert json.loads((report.folder / "dataset.json").read_text())["missing_cases"] == ["cju5abc"]
    report = convert_cvc_clinicdb(clinic_tree, tmp_path / "raw2", tmp_path / "pre", 821, allow_missing=True)
    assert len(report.missing_cases) == 612 - 58 and report.missing_cases[0] == "003"
