"""Files that are legal for nnU-Net and rarely seen: older plans, "modality" in dataset.json, inherited configurations."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
from dataset_variants import as_before_2_5, change, modality
from small_runs import known_trainers

from nnunet_kd.cli.main import main
from nnunet_kd.deploy.export import export_model
from nnunet_kd.deploy.runner_export import model_json
from nnunet_kd.evaluation.domains import parse_domain, read_image, read_label
from nnunet_kd.evaluation.evaluate import EvaluationRequest, Model, evaluate
from nnunet_kd.evaluation.predict import check_images, check_readable, load_predictor
from nnunet_kd.evaluation.report.report import write_report
from nnunet_kd.nnunet_io.configurations import resolved_configuration
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.nnunet_io.trained_fold import TrainedFold
from nnunet_kd.planning.budget import Budget, propose
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.errors import KDError


@pytest.fixture
def folder(tiny_teacher, tmp_path) -> Path:
    """A copy of the teacher's model folder."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))


@pytest.fixture(scope="module")
def old_teachers(tiny_dataset, train):
    """Trainings with plans of the older format, of a plain and of a residual U-Net, by stock nnU-Net."""
    found = {}
    for name in ("PlainConvUNet", "ResidualEncoderUNet"):
        plans = json.loads(tiny_dataset.plans_file.read_text())
        kwargs = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
        if name == "ResidualEncoderUNet":
            kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
        plans = as_before_2_5(plans) | {"plans_name": f"Old{name}"}
        (tiny_dataset.preprocessed / f"Old{name}.json").write_text(json.dumps(plans))
        found[name] = train(tiny_dataset, plans=f"Old{name}")
    return found


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_teacher_with_plans_of_the_older_format_is_exported_and_its_card_names_the_network(old_teachers, name, tmp_path):
    out = export_model(old_teachers[name], tmp_path / "out")
    card = (out / "MODEL_CARD.md").read_text()
    assert f"| network | {name}" in card and "32 x 32" in card
    predictor = load_predictor(out, ("0",), "checkpoint_final.pth")
    assert type(predictor.network).__name__ == name


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_student_of_such_a_teacher_is_trained_exported_and_read_again(old_teachers, tiny_dataset, train, name, tmp_path):
    request = StudentRequest(tiny_dataset.id, "2d", old_teachers[name], features=[4, 8, 8], iterations=2, name=f"Of{name}")
    planned = plan_student(request)
    with pytest.MonkeyPatch.context() as patch:
        known_trainers(patch)
        trained = train(tiny_dataset, "nnUNetTrainerKD", planned.plans_name)
    out = export_model(trained, tmp_path / "out")
    network = load_predictor(out, ("0",), "checkpoint_final.pth").network
    assert type(network).__name__ == type(TrainedFold.open(trained).network()).__name__ == name


def test_students_of_such_a_teacher_by_budget(old_teachers):
    with pytest.raises(KDError, match="the smallest has .* parameters"):  # counted; measuring would take a minute
        propose(StudentRequest(950, "2d", old_teachers["PlainConvUNet"], depth=3, convs=1), Budget(parameters=1))


def test_the_intensities_of_older_plans_reach_the_runner(old_teachers):
    model = read_model_folder(old_teachers["PlainConvUNet"])
    content = model_json(model.plans, model.dataset_json, "2d", (0, 1), ["0"])
    theirs = model.plans["foreground_intensity_properties_by_modality"]["0"]
    assert content["normalization"][0]["intensity"] == theirs and theirs["mean"] > 0


def test_a_configuration_may_leave_its_keys_to_another(folder, tmp_path):
    """nnU-Net documents plans whose own configuration says nothing but a batch size."""

    def inherit(plans):
        plans["configurations"] = {"base": plans["configurations"]["2d"], "2d": {"inherits_from": "base", "batch_size": 1}}
        return plans

    change(folder / "plans.json", inherit)
    plans = read_model_folder(folder).plans
    assert resolved_configuration(plans, "2d")["batch_size"] == 1
    assert plans["configurations"]["2d"] == {"inherits_from": "base", "batch_size": 1}
    card = (export_model(folder, tmp_path / "out") / "MODEL_CARD.md").read_text()
    assert "PlainConvUNet" in card and "32 x 32" in card
    with pytest.raises(KDError, match="the smallest has .* parameters"):
        propose(StudentRequest(950, "2d", folder, depth=3, convs=1), Budget(parameters=1))


def test_channel_names_come_in_the_order_of_the_files_in_either_spelling():
    names = {str(i): f"T{i}" for i in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}
    assert channel_names({"channel_names": names}) == channel_names({"modality": names}) == [f"T{i}" for i in range(11)]
    assert channel_names({"channel_names": {"0": "CT"}, "modality": {"0": "MR"}}) == ["CT"]
    for content in ({}, {"channel_names": "CT"}, {"channel_names": ["CT"]}):
        with pytest.raises(KeyError):
            channel_names(content)


def test_a_model_with_modality_is_exported_and_the_runner_knows_its_channels(folder, tmp_path):
    change(folder / "dataset.json", modality)
    out = export_model(folder, tmp_path / "out")
    assert "0 intensity" in (out / "MODEL_CARD.md").read_text()
    model = read_model_folder(out)
    assert model_json(model.plans, model.dataset_json, "2d", (0, 1), ["0"])["channel_names"] == ["intensity"]


@pytest.mark.parametrize("who", ["teacher", "data"])
def test_both_spellings_are_equal_when_they_say_the_same(folder, tiny_dataset, who):
    file = (folder if who == "teacher" else tiny_dataset.preprocessed) / "dataset.json"
    before = file.read_text()
    try:
        change(file, modality)
        planned = plan_student(StudentRequest(950, "2d", folder, features=[4, 8, 8], name=f"Modality{who}"))
        assert planned.plans["nnunet_kd"]["teacher"]["stages"]["input_channels"] == 1
    finally:
        file.write_text(before)


@pytest.fixture(scope="module")
def tif_volumes(make_dataset, train):
    """A 3-D set of .tif files with a training of it. Its labels say a spacing of their own beside them, as nnU-Net's do."""
    dataset = make_dataset(964, "TifVolumes", dims=3, ending=".tif", cases=5)
    for case in dataset.cases:
        (dataset.raw / "labelsTr" / f"{case}.json").write_text('{"spacing": [3, 1, 1]}')
    return dataset, train(dataset)


def test_volumes_in_tif_files_are_evaluated_as_nnunet_reads_them(tif_volumes, tmp_path):
    dataset, trained = tif_volumes
    assert json.loads(dataset.plans_file.read_text())["image_reader_writer"] == "Tiff3DIO"
    domain = replace(parse_domain("tif=964:Tr", dataset.raw.parent), cases=list(dataset.cases[:2]))
    assert domain.reader == "Tiff3DIO"
    report = evaluate(EvaluationRequest([Model("teacher", trained)], [domain], tmp_path, distances="none"))
    case = report["models"][0]["domains"]["tif"]["cases"][dataset.cases[0]]
    assert case["hd95_unit"] == "mm" and 0 <= case["dice"] <= 1
    write_report(report, tmp_path, domains=[domain])
    assert (tmp_path / "report.csv").is_file()


@pytest.mark.parametrize("shape", [(3, 9, 11), (9, 11, 3), (9, 11)])
def test_three_slices_are_no_colours_where_the_first_volume_says_so(tmp_path, shape):
    """What nnU-Net's choice is made by: the reader that can read the first file."""
    for part, ending in (("imagesTr", "_0000.tif"), ("labelsTr", ".tif")):
        (tmp_path / part).mkdir()
        tifffile.imwrite(
            tmp_path / part / f"a{ending}", np.zeros((5, 9, 11)[-len(shape) :], np.uint8), photometric="minisblack"
        )
        tifffile.imwrite(tmp_path / part / f"b{ending}", np.ones(shape, np.uint8), photometric="minisblack")
    domain = parse_domain(f"d={tmp_path / 'imagesTr'},{tmp_path / 'labelsTr'}", tmp_path)
    assert domain.reader == ("Tiff3DIO" if len(shape) == 3 else "NaturalImage2DIO")
    check_readable(domain)
    assert read_image(domain, "b").shape == read_label(domain, "b").shape == shape
    check_images(domain, {"file_ending": ".tif", "channel_names": {"0": "gray"}})


def test_colours_in_tif_files_are_channels(tmp_path):
    for part, ending, colours in (("imagesTr", "_0000.tif", (3,)), ("labelsTr", ".tif", ())):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / f"a{ending}", np.zeros((9, 11, *colours), np.uint8))
    domain = parse_domain(f"d={tmp_path / 'imagesTr'},{tmp_path / 'labelsTr'}", tmp_path)
    check_readable(domain)
    check_images(domain, {"file_ending": ".tif", "channel_names": {"0": "R", "1": "G", "2": "B"}})
    with pytest.raises(KDError, match="a has 3 channel"):
        check_images(domain, {"file_ending": ".tif", "modality": {"0": "gray"}})


def test_channels_in_one_file_of_four_dimensions_are_counted_and_read(tmp_path):
    """nnU-Net's SimpleITKIO takes the first of four axes for the channels."""
    for part, ending, shape in (("imagesTr", "_0000.nii.gz", (2, 5, 6, 7)), ("labelsTr", ".nii.gz", (5, 6, 7))):
        (tmp_path / part).mkdir()
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(np.zeros(shape, np.uint8), isVector=False), str(tmp_path / part / f"a{ending}")
        )
    domain = parse_domain(f"d={tmp_path / 'imagesTr'},{tmp_path / 'labelsTr'}", tmp_path)
    check_readable(domain)
    check_images(domain, {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}})


SLOW_SHAPES = [pytest.param(s, marks=pytest.mark.slow) for s in [(24, 20, 1), (1, 24, 20), (2, 2, 2)]]


@pytest.mark.parametrize("shape", [(24, 1, 20), (1, 1, 20), *SLOW_SHAPES])
def test_volumes_of_one_slice_along_any_axis_are_evaluated_to_the_report(tif_volumes, tmp_path, capsys, shape):
    _, trained = tif_volumes
    for part, ending in (("images", "_0000.tif"), ("labels", ".tif")):
        (tmp_path / part).mkdir()
        for case in "ab":
            volume = np.indices(shape).sum(0).astype(np.uint8)
            volume = volume > volume.mean() if part == "labels" else 5 * volume
            tifffile.imwrite(tmp_path / part / f"{case}{ending}", volume.astype(np.uint8), photometric="minisblack")
    out = tmp_path / "out"
    domain = f"thin={tmp_path / 'images'},{tmp_path / 'labels'}"
    assert main(["evaluate", "--model", f"t={trained}", "--domain", domain, "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert (out / "report.html").is_file() and len((out / "report.csv").read_text().splitlines()) == 3
    drawn = shape != (1, 1, 20)
    assert (out / "outlines_thin.png").is_file() == drawn
    assert ('picture "thin" is left out' in said and "is a line of 1x1x20" in said) != drawn


def test_plans_with_brackets_in_a_name_are_not_replaced_after_a_student_was_trained_with_them(
    tiny_dataset, folder, monkeypatch
):
    """nnU-Net takes any name after DatasetXXX_; to a glob, [1] is not the text [1]."""
    name = "Dataset968_Our [1] set"
    preprocessed = tiny_dataset.preprocessed.with_name(name)
    shutil.copytree(tiny_dataset.preprocessed, preprocessed)
    tiny_dataset.raw.with_name(name).mkdir()
    change(folder / "plans.json", lambda plans: plans | {"dataset_name": name})
    request = StudentRequest(968, "2d", folder, features=[4, 8, 8], name="Low [2]")
    plan_student(request)
    before = (preprocessed / "Low [2].json").read_text()
    trained = tiny_dataset.results.parent / name / "nnUNetTrainerKD__Low [2]__2d"
    trained.mkdir(parents=True)
    with pytest.raises(KDError, match=r"exists with other settings and nnUNetTrainerKD__Low \[2\]__2d was trained with it"):
        plan_student(replace(request, features=[4, 4, 8]))
    assert (preprocessed / "Low [2].json").read_text() == before


def test_checkpoints_with_brackets_in_their_name_are_found(folder):
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint[1].pth")
    assert read_model_folder(folder).trained_folds("checkpoint[1].pth") == ["0"]


@pytest.mark.parametrize("command", ["export", "evaluate", "fsd", "plan"])
def test_a_relative_model_folder_that_is_not_there_says_where_it_was_looked_for(command, tmp_path, monkeypatch, capsys):
    name, out = "Dataset950_Tiny/nnUNetTrainer__Nowhere__2d", str(tmp_path / "out")
    command = {
        "export": ["export", name, "-o", out],
        "evaluate": ["evaluate", "--model", f"m={name}", "--domain", "home=950:Tr", "-o", out],
        "fsd": ["fsd", "--model", name, "--source", "home=950:Tr", "--target", "home2=950:Tr"],
        "plan": ["plan", "950", "-c", "2d", "--teacher", name],
    }[command]
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    results = os.environ["nnUNet_results"]
    said = (
        f"model folder {name} does not exist: neither in nnUNet_results ({results}) nor in the current directory ({tmp_path})"
    )
    assert said in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_results")
    assert main(command) == 2
    assert "nnUNet_results" in (said := capsys.readouterr().err) and "is not set: export" in said
