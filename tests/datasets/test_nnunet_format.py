import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.datasets.nnunet_format import (
    dataset_folder,
    dataset_name,
    folds_by_group,
    new_dataset_folder,
    read_fold,
    write_case,
    write_dataset_json,
    write_splits,
)
from nnunet_kd.utils.errors import KDError


def test_dataset_name_has_three_digits():
    assert dataset_name(7, "A_b-1") == "Dataset007_A_b-1"


@pytest.mark.parametrize(("dataset_id", "name"), [(0, "A"), (1000, "A"), (5, "a b"), (5, ""), (5, "../x")])
def test_names_that_nnunet_cannot_use_are_refused(dataset_id, name):
    with pytest.raises(KDError):
        dataset_name(dataset_id, name)


def test_another_dataset_of_the_same_id_is_named(tmp_path: Path):
    (tmp_path / "Dataset801_Other").mkdir()
    (tmp_path / "Dataset802_CHASEDB1").mkdir()
    with pytest.raises(KDError, match="Dataset801_Other"):
        dataset_folder(tmp_path, 801, "CHASEDB1")
    assert dataset_folder(tmp_path, 802, "CHASEDB1") == tmp_path / "Dataset802_CHASEDB1"
    assert dataset_folder(tmp_path / "absent", 801, "CHASEDB1").name == "Dataset801_CHASEDB1"


def test_a_failed_block_leaves_the_earlier_dataset_and_nothing_else(tmp_path: Path):
    with new_dataset_folder(tmp_path, 5, "Set") as folder:
        (folder / "a").write_text("first")
    with pytest.raises(ZeroDivisionError), new_dataset_folder(tmp_path, 5, "Set", overwrite=True) as folder:
        (folder / "b").write_text("half")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset005_Set"]
    assert [p.read_text() for p in (tmp_path / "Dataset005_Set").iterdir()] == ["first"]


def test_overwriting_has_to_be_asked_for(tmp_path: Path):
    (tmp_path / "Dataset005_Set").mkdir()
    with new_dataset_folder(tmp_path, 5, "Set") as folder:  # an empty folder is no dataset
        (folder / "a").write_text("first")
    with pytest.raises(KDError, match="--overwrite"), new_dataset_folder(tmp_path, 5, "Set"):
        pass
    with new_dataset_folder(tmp_path, 5, "Set", overwrite=True) as folder:
        (folder / "b").write_text("second")
    assert [p.name for p in (tmp_path / "Dataset005_Set").iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset005_Set"]


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_cases_come_back_exactly(tmp_path: Path, shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape).astype(np.uint8)
    label, fov = rng.random((9, 7)) > 0.5, rng.random((9, 7)) > 0.5
    write_case(tmp_path, "c", image, label, fov, tag="Ts")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "imagesTs" / "c_0000.png")), image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labelsTs" / "c.png")), label.astype(np.uint8))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "fovTs" / "c.png")), fov * 255)
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["c.png", "c.png", "c_0000.png"]


def test_cases_that_do_not_fit_are_refused(tmp_path: Path):
    image = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="label is"):
        write_case(tmp_path, "c", image, np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="label values"):
        write_case(tmp_path, "c", image, np.full((4, 4), 255, np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        write_case(tmp_path, "c", image.astype(np.float32))
    assert not list(tmp_path.rglob("*.png"))


def test_nnunet_understands_the_dataset(tmp_path: Path):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        write_case(tmp_path, case, rng.integers(0, 256, (9, 7, 3)).astype(np.uint8), rng.random((9, 7)) > 0.5)
    write_dataset_json(tmp_path, ["red", "green", "blue"], ["vessel"], 2, name="Dataset001_X", licence="none", reference="here")
    content = json.loads((tmp_path / "dataset.json").read_text())
    files = get_filenames_of_train_images_and_targets(str(tmp_path), content)
    assert list(files) == ["a", "b"] and content["numTraining"] == 2
    assert determine_reader_writer_from_dataset_json(content, verbose=False) is NaturalImage2DIO
    image, _ = NaturalImage2DIO().read_images(files["a"]["images"])
    label, _ = NaturalImage2DIO().read_seg(files["a"]["label"])
    assert image.shape == (3, 1, 9, 7) and label.shape == (1, 1, 9, 7)
    assert LabelManager(content["labels"], None).all_labels == [0, 1]
    assert {get_normalization_scheme(c) for c in content["channel_names"].values()} == {ZScoreNormalization}


def test_folds_validate_every_case_once_and_part_no_group():
    groups = {f"{g:02d}": [f"{g:02d}L", f"{g:02d}R"] for g in range(1, 11)}
    folds = folds_by_group(groups, 5)
    assert len(folds) == 5
    assert sorted(c for f in folds for c in f["val"]) == sorted(c for g in groups.values() for c in g)
    for fold in folds:
        assert (len(fold["train"]), len(fold["val"])) == (16, 4)
        assert not {c[:2] for c in fold["train"]} & {c[:2] for c in fold["val"]}


def test_another_split_is_replaced_only_on_demand(tmp_path: Path):
    one = [{"train": ["a"], "val": ["b"]}]
    other = [{"train": ["b"], "val": ["a"]}]
    path = write_splits(tmp_path, "Dataset001_X", one)
    assert path == tmp_path / "Dataset001_X" / "splits_final.json"
    assert write_splits(tmp_path, "Dataset001_X", one) == path  # the same split again is no change
    with pytest.raises(KDError, match="--overwrite"):
        write_splits(tmp_path, "Dataset001_X", other)
    assert json.loads(path.read_text()) == one
    write_splits(tmp_path, "Dataset001_X", other, overwrite=True)
    assert json.loads(path.read_text()) == other
    assert [p.name for p in path.parent.iterdir()] == ["splits_final.json"]
    assert read_fold(path.parent, 0) == read_fold(path.parent, "0") == other[0]
    assert read_fold(path.parent, len(other)) is read_fold(path.parent, "all") is read_fold(tmp_path, 0) is None
    for damaged in ('[{"train": ["a"]}]', "[", '{"0": 1}'):
        path.write_text(damaged)
        with pytest.raises(KDError, match=r"splits_final.json is no list of folds"):
            read_fold(path.parent, 0)


@pytest.mark.parametrize("fold", [{"train": ["a"], "val": ["a"]}, {"train": ["a"], "val": []}])
def test_leaking_or_empty_folds_are_refused(tmp_path: Path, fold):
    with pytest.raises(ValueError, match="fold 0"):
        write_splits(tmp_path, "Dataset001_X", [fold])
