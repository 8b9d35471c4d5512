import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.cli.main import main
from nnunet_kd.datasets.fundus import chase_db1, drive
from nnunet_kd.datasets.fundus.corruptions import CORRUPTIONS, corrupt
from nnunet_kd.utils.errors import KDError


@pytest.fixture
def photograph(disc) -> tuple[np.ndarray, np.ndarray]:
    """A fundus-like picture with a gentle slope, fine texture and thin dark lines, and its field of view."""
    fov = disc(300, 320, 140)
    rows, columns = np.indices(fov.shape)
    texture = np.random.default_rng(0).integers(-8, 9, fov.shape)
    rgb = np.stack([150 + rows // 10 + texture, 60 + rows // 10 + texture, 15 + columns // 30], axis=-1)
    dark = np.arange(320) % 40 < 3
    rgb[:, dark] = rgb[:, dark] * 0.6
    return (rgb * fov[..., None]).astype(np.uint8), fov


def corrupt_kept(photograph, name: str, case: str = "CHASEDB1_01L") -> np.ndarray:
    """The photograph under a corruption; the original must stay as it was."""
    image, fov = photograph
    before = image.copy()
    done = corrupt(image, fov, name, case)
    assert np.array_equal(image, before)
    return done


def in_fov(image: np.ndarray, photograph) -> np.ndarray:
    return image[photograph[1]].astype(float)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_visible_repeatable_and_stays_inside(photograph, name):
    image, fov = photograph
    done = corrupt_kept(photograph, name)
    assert done.dtype == np.uint8 and done.shape == image.shape and not done[~fov].any()
    assert np.array_equal(done, corrupt_kept(photograph, name))
    assert np.abs(in_fov(done, photograph) - in_fov(image, photograph)).mean() > 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_z_scored_green_channel_sees_it_but_keeps_its_anatomy(photograph, name):
    """The models here read one z-scored channel: a corruption that is a gain on it would test nothing."""
    image, fov = photograph
    green = [i[..., 1].astype(float) for i in (image, corrupt_kept(photograph, name))]
    correlation = np.corrcoef(*(g[fov] for g in green))[0, 1]
    assert correlation == pytest.approx(-1) if name == "inversion" else correlation < 0.999
    line, beside = (fov & np.isin(np.arange(320) % 40, c)[None] for c in ((0, 1, 2), (6, 7, 8, 34, 35, 36)))
    before, after = (g[beside].mean() - g[line].mean() for g in green)
    assert before > 20 and (after < -20 if name == "inversion" else after > 0.4 * before)


def test_only_what_is_random_depends_on_the_case(photograph):
    differs = {n: not np.array_equal(corrupt_kept(photograph, n, "A"), corrupt_kept(photograph, n, "B")) for n in CORRUPTIONS}
    assert differs == {n: n == "vignetting" for n in CORRUPTIONS}


def test_white_balance_takes_the_warm_cast_away(photograph):
    """From a lamp's 2856 K to daylight: red falls, blue rises."""
    before, after = (
        in_fov(photograph[0], photograph).mean(0),
        in_fov(corrupt_kept(photograph, "white_balance"), photograph).mean(0),
    )
    assert after[0] < before[0] - 5 and after[2] > before[2] + 20


def test_hue_turns_red_towards_yellow_and_keeps_value_and_saturation(photograph):
    before, after = in_fov(photograph[0], photograph), in_fov(corrupt_kept(photograph, "hue"), photograph)
    assert np.abs(after.max(1) - before.max(1)).max() <= 1 and np.abs(after.min(1) - before.min(1)).max() <= 1
    # 0.08 of the circle is 0.48 of a sextant, in which green rises from the smallest channel to the largest
    share = lambda x: (x[:, 1] - x[:, 2]) / (x[:, 0] - x[:, 2])  # noqa: E731
    inside = share(before) < 0.45
    assert inside.mean() > 0.5 and np.abs(share(after) - share(before) - 0.48)[inside].max() < 0.02


def test_jpeg_draws_its_blocks(photograph):
    """Steps across the borders of 8 pixels become larger than steps elsewhere."""
    step = np.abs(np.diff(corrupt_kept(photograph, "jpeg")[100:200, 100:220, 2].astype(float), axis=0)).mean(1)
    at_border = (np.arange(100, 199) + 1) % 8 == 0
    assert step[at_border].mean() > 1.5 * step[~at_border].mean()


def test_vignetting_leaves_the_stated_light_at_one_radius_from_its_centre(disc):
    fov = disc(301, 301, 150)
    done = corrupt(np.full((301, 301, 3), 200, np.uint8), fov, "vignetting", "A")[..., 0]
    y, x = np.argwhere(done == done.max()).mean(0)
    assert done.max() == 200 and np.hypot(y - 150, x - 150) == pytest.approx(0.3 * 150, abs=3)
    rows, columns = np.indices(fov.shape)
    ring = fov & (np.abs(np.hypot(rows - y, columns - x) - 150) < 2)
    assert ring.any() and done[ring].mean() == pytest.approx(0.3 * 200, abs=2)


def test_resolution_removes_detail_and_keeps_the_light(disc):
    fov = disc(801, 801, 400)
    columns = np.arange(801)
    fine, coarse = (np.broadcast_to(np.where(columns // n % 2, 60, 140)[:, None], (801, 801, 3)) for n in (2, 40))
    done = [corrupt(i.astype(np.uint8), fov, "resolution", "A")[200:600, 200:600, 0].astype(float) for i in (fine, coarse)]
    assert done[0].std() < 2 and done[1].std() > 35  # stripes of 2 pixels vanish at a sensor's pixel of 4, of 40 stay
    assert done[0].mean() == pytest.approx(100, abs=2)


def test_resolution_leaves_a_smaller_photograph_alone(disc):
    image, fov = np.random.default_rng(0).integers(0, 255, (120, 120, 3), np.uint8), disc(120, 120, 55)
    assert np.array_equal(corrupt(image, fov, "resolution", "A"), image * fov[..., None])


def test_inversion_is_the_negative_inside(photograph):
    image, fov = photograph
    assert np.array_equal(corrupt_kept(photograph, "inversion"), (255 - image) * fov[..., None])


def test_chase_is_written_once_per_corruption(chase_tree: Path, tmp_path: Path):
    clean = chase_db1.convert(chase_tree, tmp_path / "raw", tmp_path / "pre", 801, fov_width=64)
    report = chase_db1.convert(chase_tree, tmp_path / "raw", tmp_path / "pre2", 803, fov_width=64, corruptions=True)
    folder = report.folder
    assert folder.name == "Dataset803_CHASEDB1corrupted" and report.folds == 0 and not (tmp_path / "pre2").exists()
    assert report.train_cases == sorted(f"{c}__{k}" for c in clean.train_cases for k in CORRUPTIONS)
    assert not report.test_cases and sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["fovTr", "imagesTr", "labelsTr"]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 120
    for case in report.train_cases:
        clean_case = case.split("__")[0]
        for part in ("labelsTr", "fovTr"):
            assert (folder / part / f"{case}.png").read_bytes() == (clean.folder / part / f"{clean_case}.png").read_bytes()
        image, before = (
            np.asarray(Image.open(f / "imagesTr" / f"{c}_0000.png")) for f, c in ((folder, case), (clean.folder, clean_case))
        )
        assert image.shape == before.shape
        # 0.39 of a field of view of 512 pixels: the tiny photographs have fewer pixels than that
        assert np.array_equal(image, before) == case.endswith("__resolution"), case
    log = json.loads((folder / "conversion.json").read_text())
    assert log["settings"]["corruptions"]["jpeg"] == {"quality": 15} and list(log["settings"]["corruptions"]) == list(
        CORRUPTIONS
    )
    assert log["cases"]["CHASEDB1_01L__hue"]["corruption"] == "hue"
    with Image.open(folder / "contact_sheet.jpg") as sheet:
        assert sheet.size == (400 * len(CORRUPTIONS), 800)


def test_a_corrupted_set_never_replaces_a_clean_one(chase_tree: Path, tmp_path: Path):
    chase_db1.convert(chase_tree, tmp_path / "raw", tmp_path / "pre", 801, fov_width=64)
    with pytest.raises(KDError, match="801 is already taken by Dataset801_CHASEDB1 "):
        chase_db1.convert(chase_tree, tmp_path / "raw", tmp_path / "pre", 801, corruptions=True, overwrite=True)


def test_drive_is_corrupted_in_its_training_half_only(drive_tree: Path, tmp_path: Path):
    report = drive.convert(drive_tree, tmp_path / "raw", tmp_path / "pre", 804, fov_width=40, corruptions=True)
    assert report.dataset == "Dataset804_DRIVEcorrupted"
    assert report.train_cases == sorted(f"DRIVE_training_{i}__{k}" for i in range(21, 41) for k in CORRUPTIONS)
    with pytest.raises(KDError, match="observer 2 in DRIVE's training half.*--observer 1"):
        drive.convert(drive_tree, tmp_path / "raw", tmp_path / "pre", 805, observer=2, corruptions=True)


def test_the_command_hands_its_options_on(chase_tree: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    options = ["--channels", "rgb", "--fov-width", "0", "--observer", "2", "--split", "last8train", "--corruptions"]
    assert main(["convert", "chase_db1", str(chase_tree), "--dataset-id", "803", *options]) == 0
    assert "Dataset803_CHASEDB1corrupted: 48 cases in imagesTr, 0 in imagesTs" in capsys.readouterr().out
    log = json.loads((tmp_path / "raw" / "Dataset803_CHASEDB1corrupted" / "conversion.json").read_text())
    wanted = {"channels": "rgb", "fov_width": None, "observer": 2, "split": "last8train"}
    assert log["settings"] | wanted == log["settings"]
