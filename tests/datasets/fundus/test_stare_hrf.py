"""STARE and HRF: tiny trees of the published layouts, drawn here."""

import gzip
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.cli.main import main
from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.fundus import hrf, stare
from nnunet_kd.datasets.verify import verify_dataset
from nnunet_kd.utils.errors import KDError

STARE = [f"STARE_{n:04d}" for n in stare.NUMBERS]


@pytest.fixture
def stare_tree(tmp_path: Path, fundus) -> Path:
    """The three archives' content, compressed as published; vk saw the lines 7 pixels lower; photographs without labels."""
    root = tmp_path / "STARE"
    for part in ("stare-images", "labels-ah", "labels-vk"):
        (root / part).mkdir(parents=True)
    for n in (*stare.NUMBERS, 6, 7):
        rgb, label, _ = fundus(60, 70, 28, seed=n)
        write_ppm(root / "stare-images" / f"im{n:04d}.ppm.gz", rgb)
        for observer, shift in (("ah", 0), ("vk", 7)) if n in stare.NUMBERS else ():
            write_ppm(root / f"labels-{observer}" / f"im{n:04d}.{observer}.ppm.gz", np.roll(label, shift, 0) * np.uint8(255))
    return root


def write_ppm(path: Path, array: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(array).convert("RGB").save(file, "PPM")
    path.write_bytes(gzip.compress(file.getvalue(), 1))


def run_stare(source: Path, tmp_path: Path, **options):
    return stare.convert(source, tmp_path / "raw", tmp_path / "pre", 805, fov_width=40, **options)


def test_stare(stare_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["stare"] is stare.convert
    report = run_stare(stare_tree, tmp_path)
    assert report.train_cases == STARE and not report.test_cases and report.native_sizes == {(70, 60): 20}
    assert "700x605 pixels, found 70x60: a resized copy" in " ".join(report.warnings)
    nnunet_accepts(report.folder)
    fov = np.asarray(Image.open(report.folder / "fovTr" / "STARE_0324.png"))
    assert abs(np.flatnonzero(fov.any(axis=0)).size - 40) <= 1  # found, as none is published


def test_a_surround_that_is_not_black_is_no_field(stare_tree: Path, tmp_path: Path):
    image = stare_tree / "stare-images" / "im0044.ppm.gz"
    with gzip.open(image) as file:
        rgb = np.asarray(Image.open(file).convert("RGB"))
    write_ppm(image, np.maximum(rgb, 30))
    report = run_stare(stare_tree, tmp_path)
    entry = json.loads((report.folder / "conversion.json").read_text())["cases"]["STARE_0044"]
    assert entry["scale"] == pytest.approx(40 / 56, rel=0.05) and "doubtful" not in report.text()


def test_masks_beside_the_images_are_used_on_request_only(stare_tree: Path, tmp_path: Path):
    (stare_tree / "third-party-masks").mkdir()
    mask = np.zeros((60, 70), np.uint8)
    mask[10:50, 10:60] = 255
    for n in stare.NUMBERS:
        write_ppm(stare_tree / "third-party-masks" / f"im{n:04d}.ppm.gz", mask)
    found = run_stare(stare_tree, tmp_path).folder
    given = run_stare(stare_tree, tmp_path, overwrite=True, fov_masks=Path("third-party-masks")).folder
    assert given == found
    log = json.loads((given / "conversion.json").read_text())
    assert all(c["crop_box"] == [10, 10, 50, 60] and "field_of_view" not in c for c in log["cases"].values())
    assert log["cases"]["STARE_0001"]["source"]["fov"] == "third-party-masks/im0001.ppm.gz"
    with pytest.raises(KDError, match="labels-ah holds no masks|holds no masks named as the images are"):
        run_stare(stare_tree, tmp_path, overwrite=True, fov_masks=tmp_path / "nowhere")
    (stare_tree / "third-party-masks" / "im0005.ppm.gz").unlink()
    with pytest.raises(KDError, match="lacks 1 of the 20 field-of-view masks of STARE, the first of im0005"):
        run_stare(stare_tree, tmp_path, overwrite=True, fov_masks=Path("third-party-masks"))


def test_what_is_missing_is_left_out_on_request_and_named_everywhere(stare_tree: Path, tmp_path: Path, monkeypatch, capsys):
    (stare_tree / "stare-images" / "im0162.ppm.gz").unlink()
    (stare_tree / "labels-ah" / "im0003.ah.ppm.gz").unlink()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    command = ["convert", "stare", str(stare_tree), "--dataset-id", "805"]
    assert main(command) == 2
    assert "convert the rest with --allow-missing" in capsys.readouterr().err
    assert main([*command, "--allow-missing"]) == 0
    said = "warning: 2 missing in the source and left out: im0003, im0162"
    assert said in capsys.readouterr().out
    folder = tmp_path / "raw" / "Dataset805_STARE"
    assert json.loads((folder / "dataset.json").read_text())["missing_cases"] == ["im0003", "im0162"]
    assert said in (text := verify_dataset(folder).text()) and "are published, found" not in text


def test_stare_as_archives_is_the_same(stare_tree: Path, tmp_path: Path):
    folder = run_stare(stare_tree, tmp_path).folder
    archives = tmp_path / "archives"
    for part in ("stare-images", "labels-ah", "labels-vk"):
        shutil.make_archive(str(archives / part), "tar", stare_tree / part)
    before = {p.name: p.read_bytes() for p in folder.glob("*Tr/*")}
    after = run_stare(archives, tmp_path, overwrite=True).folder
    assert {p.name: p.read_bytes() for p in after.glob("*Tr/*")} == before
    source = json.loads((after / "conversion.json").read_text())["cases"]["STARE_0001"]["source"]
    assert source == {"image": "stare-images/im0001.ppm.gz", "label": "labels-ah/im0001.ah.ppm.gz"}


def test_stares_observers_are_never_mixed(stare_tree: Path, tmp_path: Path):
    for file in (stare_tree / "labels-vk").glob("im0[0-2]*"):
        file.unlink()
    with pytest.raises(KDError, match="lacks 18 of the 20 labels of observer vk of STARE, the first of im0001"):
        run_stare(stare_tree, tmp_path, observer="vk")
    report = run_stare(stare_tree, tmp_path, observer="ah")
    log = json.loads((report.folder / "conversion.json").read_text())
    assert log["settings"]["observer"] == "ah" and all(
        c["source"]["label"].endswith(".ah.ppm.gz") for c in log["cases"].values()
    )


def test_stares_second_observer(stare_tree: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    command = ["convert", "stare", str(stare_tree), "--dataset-id", "805", "--fov-width", "0"]
    assert main([*command, "--observer", "2"]) == 2
    assert "STARE has observers ah and vk, not 2: correct --observer" in capsys.readouterr().err
    assert main([*command, "--observer", "vk"]) == 0
    log = json.loads((tmp_path / "raw" / "Dataset805_STARE" / "conversion.json").read_text())
    assert all("labels-vk/" in c["source"]["label"] for c in log["cases"].values())
    label = np.asarray(Image.open(tmp_path / "raw" / "Dataset805_STARE" / "labelsTr" / "STARE_0001.png"))
    top, left, bottom, right = log["cases"]["STARE_0001"]["crop_box"]
    rows, columns = log["cases"]["STARE_0001"]["pad"]
    with gzip.open(stare_tree / "labels-vk" / "im0001.vk.ppm.gz") as file:
        native = np.asarray(Image.open(file).convert("L")) > 127
    fov = np.asarray(Image.open(tmp_path / "raw" / "Dataset805_STARE" / "fovTr" / "STARE_0001.png")) > 0
    inner = (slice(rows, rows + bottom - top), slice(columns, columns + right - left))
    assert np.array_equal(label[inner] > 0, native[top:bottom, left:right] & fov[inner]) and label.any()


def test_a_wrong_stare_is_one_line(stare_tree: Path, tmp_path: Path):
    image = stare_tree / "stare-images" / "im0162.ppm.gz"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(KDError, match="cannot read .*im0162.ppm.gz"):
        run_stare(stare_tree, tmp_path)
    image.unlink()
    with pytest.raises(KDError, match="lacks 1 of the 20 images of STARE, the first of im0162"):
        run_stare(stare_tree, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Image_01L.jpg").write_bytes(b"")
    with pytest.raises(KDError, match="lacks 20 of the 20 images of STARE.*expected the 20 images im0001.ppm"):
        run_stare(tmp_path / "other", tmp_path)
    assert not list(tmp_path.glob("raw/*"))


@pytest.fixture
def hrf_tree(tmp_path: Path, fundus) -> Path:
    """45 photographs of 72x48 pixels in the published layout, .JPG for diabetic retinopathy; masks smaller than what is lit."""
    root = tmp_path / "HRF"
    for part in ("images", "manual1", "mask"):
        (root / part).mkdir(parents=True)
    for k, c in enumerate(hrf.CLASSES):
        for n in range(1, 16):
            rgb, label, _ = fundus(48, 72, 22, seed=100 * k + n)
            Image.fromarray(rgb).save(root / "images" / f"{n:02d}_{c}.{'JPG' if c == 'dr' else 'jpg'}", quality=95)
            Image.fromarray(label.astype(np.uint8) * 255).save(root / "manual1" / f"{n:02d}_{c}.tif")
            mask = Image.fromarray((rgb.max(2) > 50).astype(np.uint8) * 255).convert("RGB")
            mask.save(root / "mask" / f"{n:02d}_{c}_mask.tif")
    return root


def run_hrf(source: Path, tmp_path: Path, **options):
    return hrf.convert(source, tmp_path / "raw", tmp_path / "pre", 806, fov_width=40, **options)


def test_hrf_trains_on_the_first_five_of_each_class(hrf_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["hrf"] is hrf.convert
    report = run_hrf(hrf_tree, tmp_path)
    assert report.train_cases == sorted(f"HRF_{c}_{n:02d}" for c in hrf.CLASSES for n in range(1, 6))
    assert len(report.test_cases) == 30
    nnunet_accepts(report.folder)
    folds = json.loads((tmp_path / "pre" / "Dataset806_HRF" / "splits_final.json").read_text())
    assert len(folds) == 5 and all({c[:-2] for c in f["val"]} == {"HRF_h_", "HRF_dr_", "HRF_g_"} for f in folds)
    log = json.loads((report.folder / "conversion.json").read_text())["cases"]
    for case, entry in log.items():
        number = re.fullmatch(r"HRF_(\w+)_(\d\d)", case)
        assert {Path(p).name.lower() for p in entry["source"].values()} == {
            f"{number[2]}_{number[1]}.jpg",
            f"{number[2]}_{number[1]}.tif",
            f"{number[2]}_{number[1]}_mask.tif",
        }


def test_hrf_as_an_unseen_domain_from_the_archives_of_its_classes(hrf_tree: Path, tmp_path: Path):
    archives = tmp_path / "archives"
    names = {"h": "healthy", "dr": "diabetic_retinopathy", "g": "glaucoma"}
    for c, name in names.items():
        for part, ending in (("images", ""), ("manual1", "_manualsegm"), ("mask", "_fovmask")):
            flat = tmp_path / "flat" / f"{name}{ending}"
            flat.mkdir(parents=True)
            for file in (hrf_tree / part).glob(f"??_{c}[._]*"):
                shutil.copy(file, flat)
            shutil.make_archive(str(archives / f"{name}{ending}"), "zip", flat)
    report = run_hrf(archives, tmp_path, split="all")
    assert len(report.train_cases) == 45 and not report.test_cases and report.folds == 0 and not (tmp_path / "pre").exists()


def test_a_wrong_hrf_is_one_line(hrf_tree: Path, tmp_path: Path):
    with pytest.raises(KDError, match="unknown split 'half' of HRF: use one of first5, all with --split"):
        run_hrf(hrf_tree, tmp_path, split="half")
    label = Image.open(hrf_tree / "manual1" / "09_g.tif")
    label.resize((36, 24)).save(hrf_tree / "manual1" / "09_g.tif")
    with pytest.raises(KDError, match="09_g.tif is 36x24 pixels, its image 09_g.jpg 72x48"):
        run_hrf(hrf_tree, tmp_path)
    (hrf_tree / "mask" / "15_dr_mask.tif").unlink()
    with pytest.raises(KDError, match="lacks 1 of the 45 field-of-view masks of HRF, the first of 15_dr") as error:
        run_hrf(hrf_tree / "images", tmp_path)  # one folder too low
    assert "\n" not in str(error.value) and not list(tmp_path.glob("raw/*"))


def test_a_missing_image_of_hrf_moves_no_other_one(hrf_tree: Path, tmp_path: Path, nnunet_accepts):
    for name in ("images/01_h.jpg", "manual1/03_dr.tif", "mask/12_g_mask.tif"):
        (hrf_tree / name).unlink()
    report = run_hrf(hrf_tree, tmp_path, allow_missing=True)
    assert sorted(report.missing_cases) == ["01_h", "03_dr", "12_g"]
    gone = {"HRF_h_01", "HRF_dr_03"}
    assert report.train_cases == sorted({f"HRF_{c}_{n:02d}" for c in hrf.CLASSES for n in range(1, 6)} - gone)
    assert len(report.test_cases) == 29
    folds = json.loads((tmp_path / "pre" / "Dataset806_HRF" / "splits_final.json").read_text())
    assert [sorted({c[-2:] for c in fold["val"]}) for fold in folds] == [[f"{n:02d}"] for n in range(1, 6)]
    assert not gone & {c for fold in folds for c in fold["train"] + fold["val"]}
    nnunet_accepts(report.folder)
