"""Real volumes through the real command lines, in the four label modes of nnU-Net's own integration tests. Minutes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from commands import succeeds, without_nnunet

from nnunet_kd.nnunet_io.checkpoints import load_checkpoint

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "Task04_Hippocampus"
TEACHER, STUDENT, TRAINER = "HippocampusTeacher", "HippocampusStudent", "nnUNetTrainerGKDCrossView"
# ids, labels and regions of nnunetv2/dataset_conversion/datasets_for_integration_tests
MODES = {
    999: {"labels": {"background": 0, "Anterior": 1, "Posterior": 2}},
    998: {"labels": {"background": 0, "Anterior": 1, "ignore": 2}},
    997: {"labels": {"background": 0, "hippocampus": [1, 2], "anterior": 1}, "regions_class_order": [2, 1]},
    996: {"labels": {"background": 0, "hippocampus": [1, 2], "anterior": 1, "ignore": 3}, "regions_class_order": [2, 1]},
}
EVALUATED = {999: {"1", "2"}, 998: {"1"}, 997: {"(1, 2)", "1"}, 996: {"(1, 2)", "1"}}
CASES = ("001", "003", "004", "006", "007")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE.is_dir(), reason=f"{SOURCE} (Medical Segmentation Decathlon, Task04) is not there"),
]


def write_raw(folder: Path, mode: dict) -> None:
    """A raw data set of five cases; the sparse mode keeps every sixth slice of every axis and ignores the rest."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in CASES:
        name = f"hippocampus_{number}"
        shutil.copyfile(SOURCE / "imagesTr" / f"{name}.nii.gz", folder / "imagesTr" / f"{name}_0000.nii.gz")
        image = SimpleITK.ReadImage(str(SOURCE / "labelsTr" / f"{name}.nii.gz"))
        labels = SimpleITK.GetArrayFromImage(image).astype(np.uint8)
        if mode["labels"].get("ignore") == 3:
            sparse = np.full_like(labels, 3)
            for axis in range(3):
                kept = (*[slice(None)] * axis, slice(3, None, 6))
                sparse[kept] = labels[kept]
            labels = sparse
        written = SimpleITK.GetImageFromArray(labels)
        written.CopyInformation(image)
        SimpleITK.WriteImage(written, str(folder / "labelsTr" / f"{name}.nii.gz"))
    content = {"channel_names": {"0": "MRI"}, "numTraining": len(CASES), "file_ending": ".nii.gz", **mode}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """A user's shell with the four data sets planned and preprocessed by nnU-Net."""
    root = tmp_path_factory.mktemp("hippocampus")
    environment = without_nnunet() | {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        environment[f"nnUNet_{name}"] = str(root / name)
    for number, mode in MODES.items():
        write_raw(root / "raw" / f"Dataset{number}_Hippocampus{number}", mode)
    command = ["nnUNetv2_plan_and_preprocess", "-d", *MODES, "-c", "3d_fullres", "-npfp", 1, "-np", 1]
    succeeds(command, environment, timeout=900)
    return environment | {
        "nnUNet_n_proc_DA": "0",  # 0 would break the planning
        "nnUNet_extTrainer": succeeds(["nnunet-kd", "trainers-path"], environment).strip(),
    }


@pytest.mark.parametrize("number", MODES)
def test_a_label_mode_from_planning_to_the_final_validation(environment, number):
    small = ["--patch-size", 16, 16, 16, "--batch-size", 2, "--features", 8, 16, 32, "--iterations", 2, "--epochs", 1]
    plan = ["nnunet-kd", "plan", number, "-c", "3d_fullres"]
    train = ["nnUNetv2_train", number, "3d_fullres", 0, "-device", "cpu"]
    succeeds([*plan, "--role", "teacher", "--name", TEACHER, *small], environment)
    succeeds([*train, "-p", TEACHER, "-tr", "nnUNetTrainerScheduled"], environment, timeout=600)
    teacher = f"Dataset{number}_Hippocampus{number}/nnUNetTrainerScheduled__{TEACHER}__3d_fullres"
    succeeds([*plan, "--teacher", teacher, "--width", 0.5, "--name", STUDENT], environment)
    said = succeeds([*train, "-p", STUDENT, "-tr", TRAINER], environment, timeout=600)
    assert re.search(r"kd \d+\.\d+, intra \d+\.\d+, inter \d+\.\d+, cross_ts \d+\.\d+, cross_st \d+\.\d+", said)
    assert "step skipped" not in said and "teacher weights after training: unchanged" in said

    fold = Path(environment["nnUNet_results"], teacher).with_name(f"{TRAINER}__{STUDENT}__3d_fullres") / "fold_0"
    logged = load_checkpoint(fold / "checkpoint_final.pth")["logging"]
    for key in ("train_losses", "val_losses", "kd/seg_loss", "kd/kd", "kd/intra", "kd/inter", "kd/cross_ts", "kd/cross_st"):
        assert len(logged[key]) == 1 and np.isfinite(logged[key]).all() and logged[key][0] != 0, key
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == EVALUATED[number] and len(summary["metric_per_case"]) == 1
