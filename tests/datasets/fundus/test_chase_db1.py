import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.fundus.chase_db1 import convert
from nnunet_kd.datasets.nnunet_format import folds_of_cases
from nnunet_kd.datasets.verify import verify_dataset
from nnunet_kd.utils.errors import KDError


def run(source: Path, tmp_path: Path, **options):
    return convert(source, tmp_path / "raw", tmp_path / "pre", 801, fov_width=64, **options)


def stems(folder: Path) -> list[str]:
    return sorted(p.stem for p in folder.iterdir())


def test_default_conversion(chase_tree: Path, tmp_path: Path):
    assert CONVERTERS["chase_db1"] is convert
    report = run(chase_tree, tmp_path)
    folder = tmp_path / "raw" / "Dataset801_CHASEDB1"
    train = [f"CHASEDB1_{i:02d}{eye}" for i in range(1, 11) for eye in "LR"]
    test = [f"CHASEDB1_{i:02d}{eye}" for i in range(11, 15) for eye in "LR"]
    assert report.folder == folder and (report.train_cases, report.test_cases) == (train, test)
    for tag, cases in (("Tr", train), ("Ts", test)):
        assert stems(folder / f"labels{tag}") == stems(folder / f"fov{tag}") == cases
        assert stems(folder / f"images{tag}") == [f"{c}_0000" for c in cases]
    content = json.loads((folder / "dataset.json").read_text())
    assert content["numTraining"] == 20 and content["channel_names"] == {"0": "green"}
    assert report.native_sizes == {(104, 100): 28} and report.label_values == [0, 1]
    assert "999x960" in " ".join(report.warnings)  # the tiny tree is not of the published size
    assert "20 cases in imagesTr, 8 in imagesTs" in report.text() and "104x100" in report.text()
    with Image.open(folder / "contact_sheet.jpg") as sheet:
        assert sheet.size == (1600, 800)


def test_conversion_json_tells_how_to_go_back(chase_tree: Path, tmp_path: Path):
    """The first observer's native label, found again through crop box, scale and padding."""
    run(chase_tree, tmp_path)
    folder = tmp_path / "raw" / "Dataset801_CHASEDB1"
    log = json.loads((folder / "conversion.json").read_text())
    assert log["settings"] | {"observer": 1, "split": "first20", "fov_width": 64} == log["settings"]
    case = log["cases"]["CHASEDB1_13R"]
    assert case["part"] == "imagesTs" and Path(case["source"]["label"]).name == "Image_13R_1stHO.png"
    written = np.asarray(Image.open(folder / "labelsTs" / "CHASEDB1_13R.png"))
    assert list(written.shape) == case["canvas"]
    native = np.asarray(Image.open(chase_tree / "Image_13R_1stHO.png"))
    rows, columns = np.nonzero(written)
    back = [
        ((i - pad + 0.5) / case["scale"] + start).astype(int)
        for i, pad, start in zip((rows, columns), case["pad"], case["crop_box"][:2], strict=True)
    ]
    near = native | np.roll(native, 1, 0) | np.roll(native, -1, 0)
    assert len(rows) > 50 and near[tuple(back)].all()


@pytest.mark.parametrize(("split", "n_train", "n_folds"), [("first20", 20, 5), ("last8train", 8, 4)])
def test_no_fold_parts_a_child(chase_tree: Path, tmp_path: Path, split, n_train, n_folds):
    report = run(chase_tree, tmp_path, split=split)
    folds = json.loads((tmp_path / "pre" / "Dataset801_CHASEDB1" / "splits_final.json").read_text())
    assert len(folds) == report.folds == n_folds
    assert sorted(c for f in folds for c in f["val"]) == report.train_cases and len(report.train_cases) == n_train
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == report.train_cases
        assert not {c[:-1] for c in fold["train"]} & {c[:-1] for c in fold["val"]}
    assert any("nnU-Net would split" in w for w in report.warnings) == (n_folds == 4)
    children = {c[-3:-1] for c in report.train_cases}
    assert children == ({f"{i:02d}" for i in range(1, 11)} if split == "first20" else {"11", "12", "13", "14"})


def test_observer_is_never_mixed(chase_tree: Path, tmp_path: Path):
    first = run(chase_tree, tmp_path)
    labels = [np.asarray(Image.open(p)) for p in sorted((first.folder / "labelsTr").iterdir())]
    second = run(chase_tree, tmp_path, observer=2, overwrite=True)
    log = json.loads((second.folder / "conversion.json").read_text())
    assert all(c["source"]["label"].endswith("_2ndHO.png") for c in log["cases"].values())
    others = [np.asarray(Image.open(p)) for p in sorted((second.folder / "labelsTr").iterdir())]
    assert all(not np.array_equal(a, b) for a, b in zip(labels, others, strict=True))


def test_rgb(chase_tree: Path, tmp_path: Path):
    report = run(chase_tree, tmp_path, channels="rgb")
    content = json.loads((report.folder / "dataset.json").read_text())
    assert list(content["channel_names"].values()) == ["red", "green", "blue"]
    image = np.asarray(Image.open(report.folder / "imagesTr" / "CHASEDB1_01L_0000.png"))
    assert image.ndim == 3 and image[..., 0].mean() > image[..., 1].mean() > image[..., 2].mean()


def test_file_names_in_any_case(chase_tree: Path, tmp_path: Path):
    for path in list(chase_tree.iterdir()):
        path.rename(path.with_name(path.name.upper()))
    assert len(run(chase_tree, tmp_path).train_cases) == 20


def test_one_folder_too_high_and_as_an_archive(chase_tree: Path, tmp_path: Path):
    first = run(chase_tree.parent, tmp_path)
    source = json.loads((first.folder / "conversion.json").read_text())["cases"]["CHASEDB1_01L"]["source"]
    assert source == {"image": "Image_01L.jpg", "label": "Image_01L_1stHO.png"}
    labels = {p.name: p.read_bytes() for p in (first.folder / "labelsTr").iterdir()}
    archive = shutil.make_archive(str(tmp_path / "CHASEDB1"), "zip", chase_tree)
    second = run(Path(archive), tmp_path, overwrite=True)
    assert {p.name: p.read_bytes() for p in (second.folder / "labelsTr").iterdir()} == labels


def spoil_missing_label(root: Path) -> None:
    (root / "Image_07R_1stHO.png").unlink()


def spoil_missing_image(root: Path) -> None:
    (root / "Image_07R.jpg").unlink()


def spoil_extra_image(root: Path) -> None:
    Image.open(root / "Image_07R.jpg").save(root / "Image_15L.jpg")


def spoil_label_size(root: Path) -> None:
    Image.fromarray(np.ones((100, 103), bool)).save(root / "Image_14R_1stHO.png")


def spoil_empty_label(root: Path) -> None:
    Image.fromarray(np.zeros((100, 104), bool)).save(root / "Image_07R_1stHO.png")


def spoil_truncated_image(root: Path) -> None:
    path = root / "Image_07R.jpg"
    path.write_bytes(path.read_bytes()[:300])


def spoil_black_image(root: Path) -> None:
    Image.fromarray(np.zeros((100, 104, 3), np.uint8)).save(root / "Image_07R.jpg")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing_label, r"lacks 1 of the 28 labels of observer 1 of CHASE_DB1, the first of Image_07R.*--allow-missing"),
        (spoil_missing_image, r"lacks 1 of the 28 images of CHASE_DB1, the first of Image_07R"),
        (spoil_extra_image, r"holds 29 images of CHASE_DB1 \(unexpected \['15l'\]\)"),
        (spoil_label_size, r"Image_14R_1stHO.png is 103x100 pixels, its image Image_14R.jpg 104x100"),
        (spoil_empty_label, r"Image_07R_1stHO.png is empty"),
        (spoil_truncated_image, r"cannot read .*Image_07R.jpg"),
        (spoil_black_image, r"Image_07R.jpg: no field of view"),
    ],
)
def test_a_wrong_source_is_one_line_and_leaves_nothing(chase_tree: Path, tmp_path: Path, spoil, message):
    spoil(chase_tree)
    with pytest.raises(KDError, match=message) as error:
        run(chase_tree, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("raw/*")) and not list(tmp_path.glob("pre/*"))


def test_wrong_options(chase_tree: Path, tmp_path: Path):
    with pytest.raises(KDError, match="--split"):
        run(chase_tree, tmp_path, split="half")
    with pytest.raises(KDError, match="--observer"):
        run(chase_tree, tmp_path, observer=3)
    with pytest.raises(KDError, match="--channels"):
        run(chase_tree, tmp_path, channels="red")
    with pytest.raises(KDError, match="is not a folder"):
        run(tmp_path / "nowhere", tmp_path)


def test_ids_and_earlier_conversions_are_respected(chase_tree: Path, tmp_path: Path):
    (tmp_path / "pre" / "Dataset801_Other").mkdir(parents=True)
    with pytest.raises(KDError, match="Dataset801_Other"):
        run(chase_tree, tmp_path)
    (tmp_path / "pre" / "Dataset801_Other").rmdir()
    run(chase_tree, tmp_path)
    with pytest.raises(KDError, match="--overwrite"):
        run(chase_tree, tmp_path)
    (tmp_path / "pre" / "Dataset801_CHASEDB1" / "dataset_fingerprint.json").write_text("{}")
    report = run(chase_tree, tmp_path, split="last8train", overwrite=True)
    assert any("--clean" in w for w in report.warnings)
    assert len(stems(report.folder / "imagesTr")) == 8
    folds = json.loads((tmp_path / "pre" / "Dataset801_CHASEDB1" / "splits_final.json").read_text())
    assert len(folds) == 4


def test_a_split_that_models_may_know_stops_the_conversion(chase_tree: Path, tmp_path: Path):
    splits = tmp_path / "pre" / "Dataset801_CHASEDB1" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text('[{"train": ["x"], "val": ["y"]}]')
    with pytest.raises(KDError, match="splits_final.json holds another split"):
        run(chase_tree, tmp_path)
    assert not list((tmp_path / "raw").iterdir()) and "x" in splits.read_text()


@pytest.mark.slow
def test_the_published_set(real_data: Path, tmp_path: Path):
    report = convert(real_data / "CHASEDB1", tmp_path / "raw", tmp_path / "pre", 801)
    assert (len(report.train_cases), len(report.test_cases)) == (20, 8)
    assert report.native_sizes == {(999, 960): 28} and not report.warnings
    assert 0.08 < report.label_fraction < 0.13
    assert {w for w, _ in report.canvas_sizes} == {616}  # 512 and 10% of it, rounded up, on either side
    found = verify_dataset(report.folder)
    assert not found.problems and dict(found.rows)["native size"] == "999 x 960"


def test_a_missing_child_changes_no_other_ones_part_or_fold(chase_tree: Path, tmp_path: Path):
    for name in ("Image_03L.jpg", "Image_03R.jpg", "Image_12L_1stHO.png"):
        (chase_tree / name).unlink()
    whole = folds_of_cases([f"CHASEDB1_{i:02d}{e}" for i in range(1, 11) for e in "LR"], lambda case: case[-3:-1], 5)
    report = convert(chase_tree, tmp_path / "raw", tmp_path / "pre", 801, fov_width=64, allow_missing=True)
    assert len(report.train_cases) == 18 and len(report.test_cases) == 7
    assert report.missing_cases == ["Image_03L", "Image_03R", "Image_12L"]
    folds = json.loads((tmp_path / "pre" / report.dataset / "splits_final.json").read_text())
    assert [f["val"] for f in folds] == [[c for c in f["val"] if "_03" not in c] for f in whole]
