"""Every command of `nnunet-kd` through its main function: what it prints and writes, and how mistakes end."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from skimage.io import imread, imsave

from nnunet_kd.cli.main import main
from nnunet_kd.config.run import read_config
from nnunet_kd.evaluation.domains import parse_domain
from nnunet_kd.evaluation.evaluate import EvaluationRequest, Model, evaluate
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.training import named as named_trainers
from nnunet_kd.training.scheduled import nnUNetTrainerScheduled
from nnunet_kd.utils.environment import trainers_path

ROOT = Path(__file__).parents[2]
FINAL = "fold_0/checkpoint_final.pth"


@pytest.fixture(autouse=True)
def no_external_trainers(monkeypatch):
    """The commands must find our trainers by themselves; what they set is undone."""
    monkeypatch.setenv("nnUNet_extTrainer", "")
    os.environ.pop("nnUNet_extTrainer")


def train(plans: str, trainer_name: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", str(trainers_path()))
        patch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
        trainer = get_trainer_from_args("950", "2d", 0, trainer_name, plans, device=torch.device("cpu"))
        trainer.run_training()
    return Path(trainer.output_folder_base)


@pytest.fixture(scope="module")
def gkd(tiny_dataset, tiny_teacher) -> Path:
    """Training folder of a GKD student, 10 epochs of 1 step."""
    planned = plan_student(StudentRequest(950, "2d", tiny_teacher, iterations=10, epochs=10, name="CLIgkd", overwrite=True))
    return train(planned.plans_name, "nnUNetTrainerGKD")


@pytest.fixture(scope="module")
def dark(tiny_dataset) -> Path:
    """A second, unseen domain with fields of view: Dataset948_Dark, four cases of another size and brightness."""
    folder = tiny_dataset.raw.parent / "Dataset948_Dark"
    for part in ("imagesTr", "labelsTr", "fovTr"):
        (folder / part).mkdir(parents=True)
    shutil.copy(tiny_dataset.raw / "dataset.json", folder)
    for case in tiny_dataset.cases[:4]:
        image = imread(tiny_dataset.raw / "imagesTr" / f"{case}_0000.png")[:40]
        fov = np.zeros_like(image)
        fov[4:36, 4:] = 255
        imsave(folder / "imagesTr" / f"{case}_0000.png", image // 2, check_contrast=False)
        imsave(
            folder / "labelsTr" / f"{case}.png",
            imread(tiny_dataset.raw / "labelsTr" / f"{case}.png")[:40],
            check_contrast=False,
        )
        imsave(folder / "fovTr" / f"{case}.png", fov, check_contrast=False)
    return folder


def run(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:  # argparse
        return end.code


@pytest.fixture
def fails(capsys):
    """`fails(*arguments, says=...)`: exit code 2, nothing but one line on stderr, which matches all of `says`."""

    def check(*arguments: object, says: str | tuple[str, ...]) -> None:
        capsys.readouterr()
        code = run(*arguments)
        out, err = capsys.readouterr()
        assert code == 2 and out == "", (code, out, err)
        assert err.startswith("nnunet-kd: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert "\r" not in err and "Traceback" not in err
        for text in (says,) if isinstance(says, str) else says:
            assert re.search(text, err), err

    return check


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def dice(prediction: Path, truth: Path, fov: Path | None) -> float:
    inside = imread(fov) > 0 if fov else np.ones(imread(truth).shape, bool)
    p, t = imread(prediction)[inside] == 1, imread(truth)[inside] == 1
    return 2 * (p & t).sum() / (p.sum() + t.sum())


def printed_trainings(out: str) -> list[tuple[str, str]]:
    """(plans, trainer) of every training command that `plan` prints."""
    return re.findall(r"nnUNetv2_train 950 2d 0 -p (\S+) -tr (\S+)", out)


# --- what works


def test_plan_for_a_student_prints_costs_and_the_commands_to_train(tiny_dataset, tiny_teacher, capsys):
    relative = tiny_teacher.relative_to(tiny_dataset.results.parent)
    arguments = ["plan", 950, "-c", "2d", "--teacher", relative, "--width", 0.25, "--iterations", 40, "--epochs", 4]
    assert run(*arguments, "--seed", 3, "--initial-lr", 0.002, "--name", "CLIplans") == 0
    out = capsys.readouterr().out
    file = tiny_dataset.preprocessed / "CLIplans_seed3.json"
    plans = json.loads(file.read_text())
    assert f"wrote {file}" in out and "schedule: 4 epochs x 10 iterations, seed 3" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("teacher", "student"))}
    count = {name: int(row[1].replace(",", "")) for name, row in rows.items()}
    assert count["teacher"] == plans["nnunet_kd"]["teacher"]["stages"]["parameters"]
    assert rows["teacher"][2] == "100.00%" and float(rows["student"][2][:-1]) == pytest.approx(
        100 * count["student"] / count["teacher"], abs=0.01
    )
    assert plans["nnunet_kd"]["teacher"]["folder"] == str(relative)
    assert plans["nnunet_kd"]["schedule"]["initial_lr"] == 0.002
    assert "export nnUNet_extTrainer=$(nnunet-kd trainers-path)" in out
    found = printed_trainings(out)
    assert found == [("CLIplans_seed3", "nnUNetTrainerGKD"), ("CLIplans_seed3", "nnUNetTrainerScheduled")]
    assert ("-tr nnUNetTrainerGKD -device cpu\n" in out) != torch.cuda.is_available()
    for _, trainer in found:  # what it tells the user to type works with these plans
        read_config(plans, getattr(named_trainers, trainer, nnUNetTrainerScheduled).preset, trainer)


def test_plan_with_a_preset_names_the_trainer_that_reads_it(tiny_dataset, tiny_teacher, capsys):
    arguments = ["plan", "Dataset950_Tiny", "-c", "2d", "--teacher", tiny_teacher, "--preset", "kd", "--teacher-fold", "all"]
    assert run(*arguments, "--teacher-checkpoint", "checkpoint_best.pth", "--features", 4, 8, "--name", "CLIpreset") == 0
    plans = json.loads((tiny_dataset.preprocessed / "CLIpreset.json").read_text())
    (name,) = re.findall(r"-p CLIpreset -tr (\S+)", capsys.readouterr().out)
    config = read_config(plans, getattr(named_trainers, name).preset, name)
    assert config.preset == "kd" and config.teacher.fold == "all" and config.teacher.checkpoint == "checkpoint_best.pth"
    assert plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8]


def test_plan_for_a_teacher(tiny_dataset, capsys):
    arguments = ["plan", 950, "-c", "2d", "--role", "teacher", "--patch-size", 16, 16, "--batch-size", 3, "--iterations", 30]
    assert run(*arguments, "--initial-lr", 0.003, "--name", "CLIteacher") == 0
    out = capsys.readouterr().out
    plans = json.loads((tiny_dataset.preprocessed / "CLIteacher.json").read_text())
    assert plans["configurations"]["2d"]["patch_size"] == [16, 16] and plans["configurations"]["2d"]["batch_size"] == 3
    assert plans["nnunet_kd"]["schedule"]["initial_lr"] == 0.003
    assert re.search(r"^teacher +[\d,]+ +100.00%", out, re.MULTILINE) and "student" not in out
    assert printed_trainings(out) == [("CLIteacher", "nnUNetTrainerScheduled")] and "control" not in out
    read_config(plans, nnUNetTrainerScheduled.preset, "nnUNetTrainerScheduled")


def test_trainers_path_is_where_nnunet_finds_the_trainers(capsys, monkeypatch):
    assert run("trainers-path") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1  # $(nnunet-kd trainers-path) takes all of it
    monkeypatch.setenv("nnUNet_extTrainer", out.strip())
    assert recursive_find_trainer_class_by_name("nnUNetTrainerGKD") is named_trainers.nnUNetTrainerGKD


def test_export_writes_a_model_and_says_how_to_predict(gkd, tiny_dataset, tmp_path, capsys):
    relative = gkd.relative_to(tiny_dataset.results.parent)
    assert run("export", relative, "-o", tmp_path / "MODEL", "--name", "Light") == 0
    out = capsys.readouterr().out
    assert f"nnUNetv2_predict_from_modelfolder -m {tmp_path / 'MODEL'} -f 0 " in out
    plans = json.loads((tmp_path / "MODEL" / "plans.json").read_text())
    assert plans["plans_name"] == "Light" and "nnunet_kd" not in plans
    assert (tmp_path / "MODEL" / FINAL).is_file()


def test_evaluate_measures_two_models_on_two_domains(gkd, tiny_teacher, tiny_dataset, dark, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", "--model", f"teacher={tiny_teacher}", "--model", f"gkd={gkd}", "--domain", "home=950:Tr"]
    options = ["--bootstrap", 10, "--auc", "--title", "Two & two"]
    assert run(*arguments, "--domain", "dark=948", "-o", out, *options) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    rows = list(csv.DictReader((out / "report.csv").open()))
    assert len(rows) == 2 * (6 + 4)

    assert [m["name"] for m in report["models"]] == ["teacher", "gkd"]
    assert [m["role"] for m in report["models"]] == ["teacher", "student"]
    assert report["models"][1]["parameters"] < report["models"][0]["parameters"]
    raw = {"home": tiny_dataset.raw, "dark": dark}
    for model in report["models"]:
        assert model["cpu_seconds_per_case"] > 0 and model["flops"] > 0
        for domain, folder in raw.items():
            cases = [p.name[: -len("_0000.png")] for p in sorted((folder / "imagesTr").iterdir())]
            own = {}
            for case in cases:
                fov = folder / "fovTr" / f"{case}.png"
                prediction = out / "predictions" / model["name"] / domain / f"{case}.png"
                own[case] = dice(prediction, folder / "labelsTr" / f"{case}.png", fov if fov.is_file() else None)
            found = model["domains"][domain]
            assert 0 <= found["summary"]["auc"] <= 1 and 0 <= found["pooled"]["auc"] <= 1
            assert not list((out / "predictions" / model["name"] / domain).glob("*.npz"))  # read and removed
            assert {c: v["dice"] for c, v in found["cases"].items()} == pytest.approx(own)
            assert found["dice"] == pytest.approx(np.mean(list(own.values()))) and found["unseen"] == (domain == "dark")
            table = {r["case"]: float(r["dice"]) for r in rows if (r["model"], r["domain"]) == (model["name"], domain)}
            assert table == pytest.approx(own)
            assert f"{found['dice']:.3f}" in printed
    # the predictions are worth measuring: not all the same
    assert len({round(float(r["dice"]), 6) for r in rows}) > 5

    assert {(r["network"], r["target"]) for r in report["fsd"] if r["comparison"] == "domains"} == {
        (n, t) for n in ("student", "teacher") for t in ("home (other half)", "dark")
    }
    assert report["note"] == "" and report["commands"] == [
        f"nnunet-kd evaluate --model teacher={tiny_teacher} --model gkd={gkd} --domain home=950:Tr --domain dark=948 "
        f"-o {out} --bootstrap 10 --auc --title 'Two & two'"
    ]
    assert set(report["models"][1]["curves"]) >= {"train_losses", "mean_fg_dice", "kd/kd", "kd/act_semantic_student"}
    page = (out / "report.html").read_text()
    assert "Two &amp; two" in page and page.count("data:image/png") >= 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched from anywhere
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"


def test_an_exported_student_is_a_student_and_its_time_is_measured(gkd, tiny_teacher, dark, tmp_path):
    """The demo's way: exported models, predicted beforehand."""
    run("export", gkd, "-o", tmp_path / "MODEL")
    domain = parse_domain("dark=948", dark.parent)
    models = [
        Model("teacher", tiny_teacher, None, {"dark": domain.labels}),
        Model("light", tmp_path / "MODEL", None, {"dark": domain.labels}),
        Model("trained", tmp_path / "MODEL", gkd, {"dark": domain.labels}, 1.5),
    ]
    report = evaluate(EvaluationRequest(models, [domain], tmp_path / "out", bootstrap=10))
    teacher, light, trained = report["models"]
    assert [m["role"] for m in report["models"]] == ["teacher", "student", "student"]
    assert light["domains"]["dark"]["dice"] == 1  # the labels themselves
    assert 0 < teacher["cpu_seconds_per_case"] < 60 and 0 < light["cpu_seconds_per_case"] < 60
    assert trained["cpu_seconds_per_case"] == 1.5
    assert "kd/kd" in trained["curves"] and light["curves"] == {} and trained["plans"] == "CLIgkd"
    assert {r["model"] for r in report["fsd"]} == {"trained"}
    assert not (tmp_path / "out" / "predictions").exists()


def test_a_teacher_that_is_gone_costs_the_fsd_but_not_the_report(gkd, tiny_teacher, dark, tmp_path):
    folder = copied(gkd, tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    plans["nnunet_kd"]["teacher"]["folder"] = str(tmp_path / "gone")
    (folder / "plans.json").write_text(json.dumps(plans))
    domain = replace(parse_domain("dark=948", dark.parent), cases=["case_00"])
    report = evaluate(EvaluationRequest([Model("gkd", folder)], [domain], tmp_path / "out", bootstrap=10))
    assert report["fsd"] == [] and "source domain dark has 1 case: FSD needs at least two" in report["note"]
    domain = parse_domain("dark=948", dark.parent)
    report = evaluate(EvaluationRequest([Model("gkd", folder)], [domain], tmp_path / "out", bootstrap=10, note="Read this."))
    assert report["fsd"] == [] and re.fullmatch(
        r"Read this\. Without the FSD of gkd: model folder .*gone does not exist.*\.", report["note"]
    )
    assert 0 <= report["models"][0]["domains"]["dark"]["dice"] <= 1


def test_fsd_prints_and_writes_strict_json(gkd, dark, tmp_path, capsys):
    out = tmp_path / "deep" / "fsd.json"
    assert run("fsd", "--model", gkd, "--source", "home=950:Tr", "--target", "dark=948", "-o", out, "--bootstrap", 10) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^student  home -> dark: FSD [\d.]+, relative [\d.]+,$", printed, re.MULTILINE)

    def no_constants(text: str):
        pytest.fail(f"{text} is no JSON")

    last = json.loads(printed.splitlines()[-1], parse_constant=no_constants)
    assert last == json.loads(out.read_text(), parse_constant=no_constants)
    kinds = [r["comparison"] for r in last["fsd"]]
    # two networks and the annotation against two halves or domains each; on both domains teacher against student, and the
    # predictions of both against the annotation
    assert {k: kinds.count(k) for k in kinds} == {"domains": 4, "annotation": 2, "networks": 2, "prediction": 4}
    assert all(r["fsd"] >= 0 and r["model"] == gkd.name and r["msan"] == "training" for r in last["fsd"])


def test_fsd_needs_no_labels_and_no_teacher_for_the_student(gkd, dark, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(dark / "imagesTr", images)
    target = f"bare={images},{tmp_path / 'no_labels'}"
    folder = copied(gkd, tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    plans["nnunet_kd"]["teacher"]["folder"] = str(tmp_path / "gone")
    (folder / "plans.json").write_text(json.dumps(plans))
    arguments = ["fsd", "--model", folder, "--source", "home=950:Tr", "--target", target, "--bootstrap", 10]
    assert run(*arguments, "--networks", "student") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["fsd"]
    found = [r for r in found if r["comparison"] == "domains"]
    assert {r["network"] for r in found} == {"student"} and found[-1]["cases_b"] == 4


def test_the_fsd_script_is_the_same_command(gkd, dark, monkeypatch, capsys):
    arguments = ["--model", gkd, "--source", "home=950:Tr", "--target", "dark=948", "--quick", "--networks", "student"]
    monkeypatch.setattr(sys, "argv", ["evaluate_fsd.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / "evaluate_fsd.py"), run_name="__main__")
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["fsd"]
    assert [r["target"] for r in found if r["comparison"] == "domains"] == ["home (other half)", "dark"]


# --- mistakes


def test_mistakes_in_the_command_itself(fails):
    fails(says=("required: COMMAND", "nnunet-kd --help"))
    fails("plans", says="invalid choice: 'plans'.*nnunet-kd --help")
    fails("plan", 950, says="-c.*nnunet-kd plan --help")
    fails("plan", 950, "-c", "2d", "--width", "half", says="--width: invalid float value: 'half'")
    fails("fsd", "--model", "x", "--source", "a=1", "--target", "b=2", "--bootstrap", 0, says="at least 10")
    fails("evaluate", "--model", "a=b", "-o", "x", says="--domain")


def test_mistakes_in_convert(fails, tmp_path, monkeypatch):
    fails("convert", "nope", tmp_path, "--dataset-id", 801, says='unknown data set "nope": known are chase_db1, drive')
    fails(
        "convert",
        "drive",
        tmp_path,
        "--dataset-id",
        802,
        "--split",
        "first20",
        says="--split is for chase_db1, hrf, .* and cvc_clinicdb only, drive has none: leave it out",
    )
    fails("convert", "drive", tmp_path / "nowhere", "--dataset-id", 802, says="nowhere is not a folder")
    monkeypatch.delenv("nnUNet_raw")
    fails("convert", "drive", tmp_path, "--dataset-id", 802, says="nnUNet_raw is not set: export nnUNet_raw=")


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_plan_without_nnunets_variables(fails, tiny_teacher, monkeypatch, variable):
    monkeypatch.delenv(variable)
    fails("plan", 950, "-c", "2d", "--teacher", tiny_teacher, says=f"{variable} is not set: export {variable}=")


def test_mistakes_in_plan(fails, tiny_dataset, tiny_teacher, tmp_path):
    student = ["plan", 950, "-c", "2d"]
    fails(*student, says="--teacher FOLDER is missing")
    fails(*student, "--teacher", tmp_path / "nowhere", says="model folder .*nowhere does not exist")
    fails(*student, "--teacher", tmp_path, says="plans.json is missing")
    student += ["--teacher", tiny_teacher]
    for width in (0, -1, 1.5, "nan"):
        fails(*student, f"--width={width}", says=r"--width \S+ must lie in \(0, 1\]")
    fails(*student, "--width", 1, says="as heavy as the teacher.*smaller --width")
    fails(*student, "--width", 0.5, "--features", 4, 8, says="--width and --features")
    fails(*student, "--features", 4, says="give 2 to 3 positive numbers")
    fails(*student, "--preset", "nope", "--name", "CLIx", says="known presets are")
    fails(*student, "--teacher-fold", "first", "--name", "CLIx", says='is \'first\': use "same", "all", a fold number')
    fails(*student, "--iterations", 0, says="must be at least 1")
    fails(*student, "--seed", -1, "--name", "CLIx", says="seed.* is -1")
    fails("plan", 950, "-c", "3d_fullres", "--teacher", tiny_teacher, says="is a 2d model.*pass -c 2d")
    fails("plan", 949, "-c", "2d", "--teacher", tiny_teacher, says="dataset 949.*nnunet-kd convert")
    fails("plan", "Dataset949_Nope", "-c", "2d", "--teacher", tiny_teacher, says="Dataset949_Nope")
    teacher = ["plan", 950, "--role", "teacher"]
    fails(*teacher, "-c", "3d_fullres", says="configuration 3d_fullres is not in plans.*: use one of 2d")
    fails(*teacher, "-c", "2d", "--base-plans", "Nope", says=r"Nope\.json does not exist: run `nnUNetv2_plan_and_preprocess")
    fails(*teacher, "-c", "2d", "--patch-size", 16, says="--patch-size needs 2 numbers")
    fails(*teacher, "-c", "2d", "--batch-size", 0, says="--batch-size 0 must be at least 1")
    assert not (tiny_dataset.preprocessed / "CLIx.json").exists()


def test_flags_of_the_other_role(fails, tiny_teacher):
    student = {"--teacher": tiny_teacher, "--width": 0.5, "--preset": "kd", "--teacher-fold": 0, "--teacher-checkpoint": "a"}
    for flag, value in student.items():
        fails("plan", 950, "-c", "2d", "--role", "teacher", flag, value, says=f"{flag} is for --role student")
    for flag, value in {"--patch-size": 16, "--batch-size": 2}.items():
        fails("plan", 950, "-c", "2d", "--teacher", tiny_teacher, flag, value, says=f"{flag} is for --role teacher")


def test_a_teacher_of_another_dataset(fails, tiny_teacher, tmp_path):
    folder = copied(tiny_teacher, tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps({**plans, "dataset_name": "Dataset007_Other"}))
    fails("plan", 950, "-c", "2d", "--teacher", folder, says="was trained on Dataset007_Other, not on Dataset950_Tiny")


def test_damaged_models(fails, tiny_teacher, gkd, tmp_path):
    where = ["--domain", "home=950:Tr", "-o", tmp_path / "out"]
    fails("export", tmp_path / "nowhere", "-o", tmp_path / "M", says="model folder .*nowhere does not exist")
    fails("export", tiny_teacher, "-o", tmp_path / "M", "-f", 3, says="no checkpoint at .*fold_3")
    fails("evaluate", "--model", f"a={tiny_teacher}", *where, "--fold", "x", says="no checkpoint at .*fold_x")
    folder = copied(gkd, tmp_path)
    (folder / FINAL).write_bytes((folder / FINAL).read_bytes()[:5000])
    fails("export", folder, "-o", tmp_path / "M", says="truncated or damaged")
    fails("fsd", "--model", folder, "--source", "a=950:Tr", "--target", "b=950:Tr", says="truncated or damaged")
    shutil.copy(gkd / FINAL, folder / FINAL)
    plans = json.loads((folder / "plans.json").read_text())
    teacher = copied(tiny_teacher, tmp_path)
    (teacher / FINAL).write_bytes((teacher / FINAL).read_bytes()[:5000])
    plans["nnunet_kd"]["teacher"]["folder"] = str(teacher)
    (folder / "plans.json").write_text(json.dumps(plans))
    fails("fsd", "--model", folder, "--source", "a=950:Tr", "--target", "b=950:Tr", says=f"{teacher}.*truncated or damaged")
    (folder / FINAL).write_bytes((folder / FINAL).read_bytes()[:5000])
    # a bad second model is told before the first one predicts
    fails("evaluate", "--model", f"a={tiny_teacher}", "--model", f"b={folder}", *where, says="truncated or damaged")
    assert not (tmp_path / "out").exists() and not (tmp_path / "M").exists()


def test_a_trainer_that_nobody_knows(fails, tiny_teacher, tmp_path):
    from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically

    folder = copied(tiny_teacher, tmp_path)
    save_atomically({**load_checkpoint(folder / FINAL), "trainer_name": "nnUNetTrainerTheirs"}, folder / FINAL)
    fails(
        "evaluate",
        "--model",
        f"a={folder}",
        "--domain",
        "home=950:Tr",
        "-o",
        tmp_path / "out",
        says=("nnUNetTrainerTheirs", "set nnUNet_extTrainer to its folder"),
    )


def test_mistakes_in_evaluate(fails, tiny_teacher, tmp_path, monkeypatch):
    model, out = ["evaluate", "--model", f"t={tiny_teacher}"], ["-o", tmp_path / "out"]
    home = ["--domain", "home=950:Tr"]
    for text in ("teacher", "=folder", "teacher="):
        fails("evaluate", "--model", text, *home, *out, says=f'--model "{text}" must read NAME=FOLDER')
    fails("evaluate", "--model", "t=nowhere", *home, *out, says="model folder .*nowhere does not exist")
    fails(*model, "--model", f"t={tiny_teacher}", *home, *out, says="two models are called t")
    fails(*model, *home, *home, *out, says="two domains are called home")
    fails(*model, "--domain", "../home=950:Tr", *out, says='domain name "../home" cannot be a folder')
    for text in ("950", "=950", "home=", "home=x", "home=a,b,c,d"):
        fails(*model, "--domain", text, *out, says="must read NAME=ID")
    fails(*model, "--domain", "home=947", *out, says="no Dataset947_")
    fails(*model, "--domain", "home=950:Ts", *out, says="imagesTs does not exist")
    fails(*model, "--domain", "home=950:Tr:nope*", *out, says=r"match nope\*")
    (tmp_path / "file").touch()
    fails(*model, *home, "-o", tmp_path / "file", says="file.*: choose another path")
    monkeypatch.delenv("nnUNet_raw")
    fails(*model, *home, *out, says="no Dataset950_.* set nnUNet_raw")
    assert not (tmp_path / "out").exists()


def test_a_domain_that_the_model_cannot_read(fails, tiny_teacher, dark, tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    shutil.copytree(dark / "imagesTr", images)
    shutil.copytree(dark / "labelsTr", labels)
    arguments = ["evaluate", "--model", f"t={tiny_teacher}", "--domain", f"d={images},{labels}", "-o", tmp_path / "out"]
    for file in sorted(images.iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("_0000", "_0001")))
    fails(*arguments, says="case_00 has 2 channel.*the model reads 1: convert the domain")
    (images / "case_00_0001.png").unlink()
    fails(*arguments, says=r"case_01 has 2 image file\(s\) in .*, case_00 has 1")
    for file in images.glob("*_0001.png"):
        file.unlink()
    for file in images.iterdir():
        imsave(file, np.stack([imread(file)] * 3, -1), check_contrast=False)
    fails(*arguments, says="case_00 has 3 channel.*the model reads 1")
    for folder in (images, labels):
        for file in folder.iterdir():
            file.rename(file.with_suffix(".tif"))
    fails(*arguments, says="domain d has .tif files, the model reads .png")


def test_fsd_of_runs_without_semantic_vectors(fails, gkd, tiny_teacher, dark, tmp_path, capsys):
    assert run("export", gkd, "-o", tmp_path / "MODEL") == 0
    domains = ["--source", "home=950:Tr", "--target", "dark=948"]
    controls = plan_student(StudentRequest(950, "2d", tiny_teacher, iterations=1, name="CLIcontrols")).plans_name
    trained = [train(controls, name) for name in ("nnUNetTrainerScheduled", "nnUNetTrainerKD")]
    for folder in (tmp_path / "MODEL", tiny_teacher, *trained):  # an export, a stock model, two controls
        fails("fsd", "--msan", "own", "--model", folder, *domains, says="holds no MSAN.*trained with nnUNetTrainerGKD")
    one = ["--source", "home=950:Tr:case_00", "--target", "dark=948"]
    fails("fsd", "--model", gkd, *one, says="has 1 case: FSD needs at least two")
    fails("fsd", "--model", gkd, "--source", "a=950:Tr", "--target", "a=948", says="two domains are called a")


def test_fsd_of_black_images(fails, gkd, tmp_path):
    (tmp_path / "images").mkdir()
    for case in ("a", "b"):
        imsave(tmp_path / "images" / f"{case}_0000.png", np.zeros((40, 40), np.uint8), check_contrast=False)
    black = f"black={tmp_path / 'images'},{tmp_path / 'none'}"
    arguments = ["fsd", "--model", gkd, "--networks", "student", "--source", "home=950:Tr", "--target", black]
    fails(*arguments, says="domain black: its 2 image.* zero everywhere")


def test_the_demo_spares_folders_of_others(fails, tmp_path):
    (tmp_path / "thesis.tex").touch()
    fails("demo", "-o", tmp_path, says="is not a demo's folder")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_kd.utils.environment.trainers_path", interrupted)
    assert run("trainers-path") == 130 and capsys.readouterr().err == "nnunet-kd: stopped\n"
