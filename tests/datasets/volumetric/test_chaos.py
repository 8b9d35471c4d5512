"""CHAOS: tiny studies of the published layout, drawn here as DICOM slices and PNG labels."""

import json
import locale
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.volumetric.chaos import convert_ct, convert_mr
from nnunet_kd.utils.errors import KDError

GAP, PIXEL, CORNER = 3.0, 0.75, (-100.0, -80.0, -500.0)
GRAYS = {1: 63, 2: 126, 3: 189, 4: 252}


def study(patient: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and organ numbers, (6, 12, 10), z ascending: lung above, liver in slices 1 and 2 only."""
    rng = np.random.default_rng(patient)
    image = rng.normal(40, 5, (6, 12, 10)).round().astype(np.int16)
    image[4:] = rng.normal(-800, 5, (2, 12, 10)).round()
    organs = np.zeros((6, 12, 10), np.uint8)
    organs[1:3, 2:7, 1:6] = 1
    for number in (2, 3, 4):
        organs[1:3, 8:10, 3 * number - 6 : 3 * number - 4] = number
    image[organs == 1] = rng.normal(110, 5, (organs == 1).sum()).round()
    return image, organs


def write_slices(folder: Path, array: np.ndarray, name: Callable[[int], str], number: Callable[[int], int]) -> None:
    """One DICOM file per slice, each with a series UID of its own, as in CHAOS. name and number: of slice z."""
    folder.mkdir(parents=True)
    before = locale.setlocale(locale.LC_ALL)
    for z, part in enumerate(array):
        image = SimpleITK.GetImageFromArray(part[None])
        image.SetSpacing((PIXEL, PIXEL, GAP))
        position = (*CORNER[:2], CORNER[2] + z * GAP)
        tags = {
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number(z)),
            "0008|0060": "CT",
            "0018|0050": str(GAP),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        SimpleITK.WriteImage(image, str(folder / name(z)))
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer leaves the C locale behind: text would be read as ASCII


def write_labels(folder: Path, organs: np.ndarray, name: Callable[[int], str], grays: dict[int, int]) -> None:
    folder.mkdir(parents=True)
    table = np.zeros(5, np.uint8)
    for organ, gray in grays.items():
        table[organ] = gray
    for z, part in enumerate(organs):
        Image.fromarray(table[part]).save(folder / name(z))


@pytest.fixture
def ct_tree(tmp_path: Path) -> Path:
    """Patients 1, 2, 10. The upmost slice is InstanceNumber 1 and liver_GT_000; file names do not follow the order."""
    root = tmp_path / "CHAOS"
    for patient in (1, 2, 10):
        image, organs = study(patient)
        folder = root / "Train_Sets" / "CT" / str(patient)
        write_slices(folder / "DICOM_anon", image, lambda z: f"i{(z * 5) % 6:04d},0000b.dcm", lambda z: 6 - z)
        write_labels(folder / "Ground", organs, lambda z: f"liver_GT_{5 - z:03d}.png", {1: 255})
    unlabelled = root / "Test_Sets" / "CT" / "3" / "DICOM_anon"
    shutil.copytree(root / "Train_Sets" / "CT" / "1" / "DICOM_anon", unlabelled)
    return root


@pytest.fixture
def mr_tree(tmp_path: Path) -> Path:
    """Patients 1 and 20 with both sequences; in-phase slices are those with even numbers, and labels have their names."""
    root = tmp_path / "CHAOS_Train_Sets"
    for patient in (1, 20):
        image, organs = study(patient)
        folder = root / "Train_Sets" / "MR" / str(patient)
        dicom = folder / "T1DUAL" / "DICOM_anon"
        write_slices(dicom / "InPhase", image + 1000, lambda z: f"IMG-0004-{2 * z + 2:05d}.dcm", lambda z: 2 * z + 2)
        write_slices(dicom / "OutPhase", image + 2000, lambda z: f"IMG-0004-{2 * z + 1:05d}.dcm", lambda z: 2 * z + 1)
        write_labels(folder / "T1DUAL" / "Ground", organs, lambda z: f"IMG-0004-{2 * z + 2:05d}.png", GRAYS)
        # T2 runs the other way
        write_slices(folder / "T2SPIR" / "DICOM_anon", image + 3000, lambda z: f"IMG-0002-{6 - z:05d}.dcm", lambda z: 6 - z)
        write_labels(folder / "T2SPIR" / "Ground", organs, lambda z: f"IMG-0002-{6 - z:05d}.png", GRAYS)
    return root


def run_ct(source: Path, tmp_path: Path, **options):
    return convert_ct(source, tmp_path / "raw", tmp_path / "pre", 810, **options)


def run_mr(source: Path, tmp_path: Path, **options):
    return convert_mr(source, tmp_path / "raw", tmp_path / "pre", 811, **options)


def arrays(folder: Path, case: str, tag: str = "Tr") -> tuple[SimpleITK.Image, np.ndarray, np.ndarray]:
    image, label = (
        SimpleITK.ReadImage(str(folder / f)) for f in (f"images{tag}/{case}_0000.nii.gz", f"labels{tag}/{case}.nii.gz")
    )
    assert image.GetSpacing() == label.GetSpacing() and image.GetOrigin() == label.GetOrigin()
    return image, SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(label)


def test_ct_slices_and_labels_meet_where_they_belong(ct_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["chaos_ct"] is convert_ct
    report = run_ct(ct_tree, tmp_path)
    assert report.train_cases == ["CHAOS_CT_01", "CHAOS_CT_02", "CHAOS_CT_10"]
    nnunet_accepts(report.folder)
    for patient in (1, 2, 10):
        image, values, marks = arrays(report.folder, f"CHAOS_CT_{patient:02d}")
        assert np.array_equal(values, study(patient)[0]) and np.array_equal(marks, study(patient)[1] == 1)
        assert image.GetSpacing() == pytest.approx((PIXEL, PIXEL, GAP)) and image.GetOrigin() == pytest.approx(CORNER)
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1) and image.GetPixelID() == SimpleITK.sitkInt16
    assert "20 labelled volumes are published, found 3" in report.text()


def test_ct_has_the_dataset_json_of_lits(ct_tree: Path, tmp_path: Path):
    content = json.loads((run_ct(ct_tree, tmp_path).folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1} and content["channel_names"] == {"0": "CT"}
    assert content["file_ending"] == ".nii.gz"


@pytest.mark.parametrize("below", ["Train_Sets", "Train_Sets/CT"])
def test_one_folder_too_low_and_as_an_archive(ct_tree: Path, tmp_path: Path, below):
    assert len(run_ct(ct_tree / below, tmp_path).train_cases) == 3
    archive = shutil.make_archive(str(tmp_path / "CHAOS_Train_Sets"), "zip", ct_tree / below)
    assert len(run_ct(archive, tmp_path, overwrite=True).train_cases) == 3
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset810_CHAOSCT"]


def renumber(root: Path) -> None:
    """A copy whose labels were renumbered from below."""
    for z in range(3):
        a, b = (root / "Train_Sets/CT/2/Ground" / f"liver_GT_{k:03d}.png" for k in (z, 5 - z))
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)


def missing_label(root: Path) -> None:
    (root / "Train_Sets/CT/2/Ground/liver_GT_003.png").unlink()


def missing_slice_and_label(root: Path) -> None:
    (root / "Train_Sets/CT/2/Ground/liver_GT_003.png").unlink()
    next((root / "Train_Sets/CT/2/DICOM_anon").glob("i0004*")).unlink()


def resized_label(root: Path) -> None:
    for path in (root / "Train_Sets/CT/2/Ground").iterdir():
        Image.open(path).resize((20, 24), Image.Resampling.NEAREST).save(path)


def smoothed_label(root: Path) -> None:
    path = root / "Train_Sets/CT/2/Ground/liver_GT_003.png"
    Image.open(path).resize((5, 6)).resize((10, 12), Image.Resampling.BILINEAR).save(path)


def no_liver(root: Path) -> None:
    for path in (root / "Train_Sets/CT/2/Ground").iterdir():
        Image.fromarray(np.zeros((12, 10), np.uint8)).save(path)


def no_dicom(root: Path) -> None:
    next((root / "Train_Sets/CT/2/DICOM_anon").glob("i0003*")).write_bytes(b"nothing")


def no_studies(root: Path) -> None:
    shutil.rmtree(root / "Train_Sets")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renumber, r"CHAOS_CT_02: the labels fit better upside down .*renumbered"),
        (missing_label, r"patient 2 of CHAOS CT in .* has 6 slices and 5 labels"),
        (missing_slice_and_label, r"CHAOS_CT_02: the slices make no regular stack, see .*dcm"),
        (resized_label, r"CHAOS_CT_02: labels are 20x24 pixels, slices 10x12: a resized copy"),
        (smoothed_label, r"liver_GT_003.png holds gray values \[.*\], which stand for no organ: a resized or recoloured copy"),
        (no_liver, r"CHAOS_CT_02: the labels in .*Ground hold no liver"),
        (no_dicom, r"i0003,0000b.dcm is no DICOM slice"),
        (no_studies, r"holds no studies of CHAOS CT: expected Train_Sets of CHAOS with CT/<patient>"),
    ],
)
def test_a_wrong_study_is_one_line_and_leaves_nothing(ct_tree: Path, tmp_path: Path, spoil, message):
    spoil(ct_tree)
    with pytest.raises(KDError, match=message) as error:
        run_ct(ct_tree, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("raw/*"))


def test_mr_in_phase_labels_by_name(mr_tree: Path, tmp_path: Path, nnunet_accepts):
    assert CONVERTERS["chaos_mr"] is convert_mr
    report = run_mr(mr_tree, tmp_path)
    assert report.dataset == "Dataset811_CHAOST1" and report.train_cases == ["CHAOS_T1_01", "CHAOS_T1_20"]
    nnunet_accepts(report.folder)
    _, values, marks = arrays(report.folder, "CHAOS_T1_20")
    assert np.array_equal(values, study(20)[0] + 1000) and np.array_equal(marks, study(20)[1] == 1)


def test_mr_t2_with_all_organs(mr_tree: Path, tmp_path: Path):
    report = run_mr(mr_tree, tmp_path, sequence="t2spir", labels="all")
    _, values, marks = arrays(report.folder, "CHAOS_T2SPIR_01")
    assert np.array_equal(values, study(1)[0] + 3000) and np.array_equal(marks, study(1)[1])
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    assert content["channel_names"] == {"0": "MRI"}


@pytest.mark.parametrize(
    ("gray", "organ"), [(55, None), (56, 1), (70, 1), (71, None), (110, 2), (135, 2), (174, None), (240, 4)]
)
def test_the_gray_ranges_of_the_organs(mr_tree: Path, tmp_path: Path, gray, organ):
    ground = mr_tree / "Train_Sets" / "MR" / "1" / "T1DUAL" / "Ground"
    path = ground / "IMG-0004-00002.png"  # slice 0, empty so far
    picture = np.zeros((12, 10), np.uint8)
    picture[0, 0] = gray
    Image.fromarray(picture).save(path)
    if organ is None:
        with pytest.raises(KDError, match=rf"IMG-0004-00002.png holds gray values \[{gray}\]"):
            run_mr(mr_tree, tmp_path, labels="all")
    else:
        assert arrays(run_mr(mr_tree, tmp_path, labels="all").folder, "CHAOS_T1_01")[2][0, 0, 0] == organ


def test_patients_are_split_and_wrong_choices_named(mr_tree: Path, ct_tree: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nnunet_kd.datasets.volumetric.chaos.SPLITS", {"all": 0, "last5test": 1})
    for sequence, number in (("t1", 812), ("t2spir", 813)):
        report = convert_mr(mr_tree, tmp_path / "raw", tmp_path / "pre", number, split="last5test", sequence=sequence)
        assert [c[-2:] for c in report.train_cases] == ["01"] and [c[-2:] for c in report.test_cases] == ["20"]
        arrays(report.folder, report.test_cases[0], "Ts")
    monkeypatch.undo()
    with pytest.raises(KDError, match="holds 3 studies, of which the last 5 are for testing: use --split all"):
        run_ct(ct_tree, tmp_path, split="last5test")
    with pytest.raises(KDError, match="unknown split 'x' of CHAOS: use one of all, last5test"):
        run_ct(ct_tree, tmp_path, split="x")
    with pytest.raises(KDError, match="nothing but the liver in CT: use --labels liver"):
        run_ct(ct_tree, tmp_path, labels="all")
    with pytest.raises(KDError, match="unknown sequence 't3'"):
        run_mr(mr_tree, tmp_path, sequence="t3")
    with pytest.raises(KDError, match="unknown labels 'spleen'"):
        run_mr(mr_tree, tmp_path, labels="spleen")


def test_a_missing_patient_moves_no_other_one_to_the_test_part(ct_tree: Path, tmp_path: Path):
    folder = ct_tree / "Train_Sets" / "CT"
    next((folder / "2" / "Ground").glob("*.png")).unlink()
    shutil.copytree(folder / "10", folder / "26")
    report = convert_ct(ct_tree, tmp_path / "raw", tmp_path / "pre", 810, split="last5test", allow_missing=True)
    assert report.train_cases == ["CHAOS_CT_01", "CHAOS_CT_10"] and report.test_cases == ["CHAOS_CT_26"]
    assert len(report.missing_cases) == 17 and "CHAOS_CT_02" in report.missing_cases
