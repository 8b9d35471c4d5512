import json
import shutil

import pytest

from nnunet_kd.config.run import Schedule
from nnunet_kd.networks.cost import count_parameters
from nnunet_kd.nnunet_io.model_folder import ModelFolder, read_model_folder
from nnunet_kd.planning.drafts import draft_student, draft_teacher, make_schedule, student_base
from nnunet_kd.planning.plans import plan_student, plan_teacher
from nnunet_kd.planning.requests import StudentRequest, TeacherRequest
from nnunet_kd.utils.errors import KDError


def architecture(plans: dict) -> dict:
    return plans["configurations"]["2d"]["architecture"]["arch_kwargs"]


def test_a_patch_that_is_thin_along_one_axis_is_planned_as_nnunet_plans_one(tiny_dataset):
    planned = plan_teacher(TeacherRequest(950, "2d", patch_size=[4, 32], iterations=1, name="PlansThin"))
    config = planned.plans["configurations"]["2d"]
    assert config["patch_size"] == [4, 32]
    assert config["architecture"]["arch_kwargs"]["strides"] == [[1, 1], [1, 2], [1, 2]]


def test_student_plans_are_lighter_and_share_the_preprocessed_data(tiny_dataset, tiny_teacher):
    planned = plan_student(StudentRequest(950, "2d", tiny_teacher, width=0.25, min_features=2, name="PlansA"))
    teacher = read_model_folder(tiny_teacher).plans
    assert architecture(planned.plans)["features_per_stage"] == [2, 4, 8]
    assert architecture(teacher)["features_per_stage"] == [8, 16, 32]
    assert planned.plans["configurations"]["2d"]["data_identifier"] == teacher["configurations"]["2d"]["data_identifier"]
    section = planned.plans["nnunet_kd"]["teacher"]
    assert not section["folder"].startswith("/")  # relative to nnUNet_results
    assert section["stages"]["channels"] == [8, 16, 32] and section["stages"]["strides"] == [[1, 1], [2, 2], [4, 4]]
    assert planned.costs["student"].parameters < 0.2 * planned.costs["teacher"].parameters
    assert json.loads(planned.file.read_text()) == planned.plans


def test_a_seed_becomes_part_of_the_plans_name(tiny_teacher):
    assert plan_student(StudentRequest(950, "2d", tiny_teacher, name="PlansB")).plans_name == "PlansB"
    planned = plan_student(StudentRequest(950, "2d", tiny_teacher, seed=7, name="PlansB"))
    assert planned.plans_name == "PlansB_seed7" and planned.plans["nnunet_kd"]["seed"] == 7


def test_teacher_plans_carry_schedule_seed_and_a_topology_that_fits_the_patch(tiny_dataset):
    planned = plan_teacher(TeacherRequest(950, "2d", patch_size=[16, 16], batch_size=3, iterations=120, seed=2, name="PlansT"))
    config = planned.plans["configurations"]["2d"]
    assert config["patch_size"] == [16, 16] and config["batch_size"] == 3
    # nnU-Net's rule: halve while 4 pixels remain
    assert architecture(planned.plans)["strides"] == [[1, 1], [2, 2], [2, 2]]
    assert planned.plans["nnunet_kd"] == {
        "role": "teacher",
        "seed": 2,
        "schedule": {
            "epochs": 2,
            "iterations_per_epoch": 60,
            "val_iterations_per_epoch": 12,
            "initial_lr": 0.01,
            "save_every": 5,
            "cpu_precision": "float32",
        },
    }
    assert architecture(plan_teacher(TeacherRequest(950, "2d", features=[4, 8], name="PlansU")).plans)["n_stages"] == 2


@pytest.mark.parametrize(("iterations", "epochs", "total"), [(1, None, 1), (1000, None, 1000), (250, 5, 250), (7, 3, 9)])
def test_schedules(iterations, epochs, total):
    schedule = make_schedule(iterations, epochs)
    assert schedule.epochs * schedule.iterations_per_epoch == total


def test_the_learning_rate_reaches_the_schedule_and_a_student_takes_its_teachers(tiny_dataset, tiny_teacher):
    def rate(planned):
        return planned.plans["nnunet_kd"]["schedule"]["initial_lr"]

    assert rate(plan_teacher(TeacherRequest(950, "2d", name="PlansR"))) == 0.01
    assert (
        rate(plan_teacher(TeacherRequest(950, "2d", iterations=10, initial_lr=0.003, name="PlansR", overwrite=True))) == 0.003
    )
    assert rate(plan_student(StudentRequest(950, "2d", tiny_teacher, initial_lr=0.002, name="PlansS"))) == 0.002
    assert make_schedule(10, None, Schedule(initial_lr=0.004)).initial_lr == 0.004
    assert make_schedule(10, None, Schedule(initial_lr=0.004), None, 0.001).initial_lr == 0.001
    with pytest.raises(KDError, match="initial_lr"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, initial_lr=0.0, name="PlansS0"))
    with pytest.raises(KDError, match="initial_lr"):
        plan_teacher(TeacherRequest(950, "2d", initial_lr=-1.0, name="PlansR0"))


def test_errors_name_the_fix(tiny_dataset, tiny_teacher, tmp_path, monkeypatch):
    with pytest.raises(KDError, match="as heavy as the teacher.*smaller --width"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, width=1.0))
    with pytest.raises(KDError, match=r"--width 0 must lie in \(0, 1\]"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, width=0))
    with pytest.raises(KDError, match="is a 2d model.*pass -c 2d"):
        plan_student(StudentRequest(950, "3d_fullres", tiny_teacher))
    with pytest.raises(KDError, match="does not exist"):
        plan_student(StudentRequest(950, "2d", tmp_path / "nowhere"))
    with pytest.raises(KDError, match="known presets"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, preset="nope", name="PlansC"))
    with pytest.raises(KDError, match="dataset 949.*nnunet-kd convert"):
        plan_student(StudentRequest(949, "2d", tiny_teacher))
    for small in ([4, 8], [7, 7], [0, 32]):
        with pytest.raises(KDError, match=r"--patch-size \[\d, \d+\] is too small"):
            plan_teacher(TeacherRequest(950, "2d", patch_size=small))
    with pytest.raises(KDError, match="--patch-size needs 2 numbers"):
        plan_teacher(TeacherRequest(950, "2d", patch_size=[16, 16, 16]))
    with pytest.raises(KDError, match="configuration 3d_fullres is not in plans"):
        plan_teacher(TeacherRequest(950, "3d_fullres"))
    foreign = tmp_path / "T__P__2d"
    shutil.copytree(tiny_teacher, foreign)
    content = json.loads((foreign / "plans.json").read_text())
    (foreign / "plans.json").write_text(json.dumps({**content, "dataset_name": "Dataset001_Other"}))
    with pytest.raises(KDError, match="was trained on Dataset001_Other, not on Dataset950_Tiny"):
        plan_student(StudentRequest(950, "2d", foreign))
    (foreign / "plans.json").write_text("{")
    with pytest.raises(KDError, match="not valid JSON"):
        plan_student(StudentRequest(950, "2d", foreign))
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(KDError, match="nnUNet_preprocessed is not set: export"):
        plan_student(StudentRequest(950, "2d", tiny_teacher))


def test_plans_that_something_was_trained_with_are_not_replaced_silently(tiny_dataset, tiny_teacher):
    first = plan_student(StudentRequest(950, "2d", tiny_teacher, name="PlansD"))
    trained = tiny_dataset.results / "nnUNetTrainerGKD__PlansD__2d"
    trained.mkdir(parents=True)
    assert plan_student(StudentRequest(950, "2d", tiny_teacher, name="PlansD")).plans == first.plans  # the same again is fine
    with pytest.raises(KDError, match="--name to keep both, or --overwrite"):
        plan_student(StudentRequest(950, "2d", tiny_teacher, name="PlansD", iterations=10))
    assert (
        plan_student(StudentRequest(950, "2d", tiny_teacher, name="PlansD", iterations=10, overwrite=True)).plans != first.plans
    )


def test_plans_are_drafted_from_a_teacher_that_is_not_on_disk(tiny_dataset, tiny_teacher, tmp_path, monkeypatch):
    """What `compare` does before anything is trained: the same plans as from the trained folder, and no file."""
    written = plan_student(StudentRequest(950, "2d", tiny_teacher, width=0.25, iterations=20, name="PlansDraft")).plans
    teacher = read_model_folder(tiny_teacher)
    nowhere = ModelFolder(tiny_dataset.results / tiny_teacher.name, teacher.plans, teacher.dataset_json, "2d")
    shutil.move(tiny_teacher, tmp_path / "away")
    try:
        before = sorted(tiny_dataset.preprocessed.iterdir())
        request = StudentRequest(950, "2d", nowhere.path, width=0.25, iterations=20, name="PlansDraft")
        draft = draft_student(request, student_base(nowhere, "2d", teacher.dataset_json))
        assert sorted(tiny_dataset.preprocessed.iterdir()) == before
    finally:
        shutil.move(tmp_path / "away", tiny_teacher)
    assert json.loads(json.dumps(draft.plans)) == written
    assert [count_parameters(n) for n in draft.networks.values()] == sorted(map(count_parameters, draft.networks.values()))[
        ::-1
    ]


def test_a_draft_leaves_what_it_starts_from_as_it_was(tiny_dataset):
    base = json.loads(tiny_dataset.plans_file.read_text())
    before = json.dumps(base)
    request = TeacherRequest(950, "2d", patch_size=[16, 16], features=[4, 8], batch_size=3)
    draft = draft_teacher(request, base, json.loads((tiny_dataset.preprocessed / "dataset.json").read_text()))
    assert draft.plans["configurations"]["2d"]["batch_size"] == 3 and json.dumps(base) == before
