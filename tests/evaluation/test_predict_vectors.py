"""Predictions and semantic vectors of whole images: what the evaluation is computed on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from skimage.io import imread, imsave

from nnunet_kd.config.presets import settings_of
from nnunet_kd.evaluation.domains import Domain, evaluate_predictions, parse_domain
from nnunet_kd.evaluation.evaluate import EvaluationRequest, Model, evaluate
from nnunet_kd.evaluation.fsd.vectors import load_aligned_run, semantic_vectors
from nnunet_kd.evaluation.predict import load_predictor, predict_domain
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint, save_atomically
from nnunet_kd.nnunet_io.trained_fold import TrainedFold
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.utils.environment import trainers_path
from nnunet_kd.utils.errors import KDError

TRAINER = "nnUNetTrainerKDAdjustedMirrored"  # one MSAN, at the bottleneck
DIM = settings_of("default")["msan"]["dim"]
FINAL = "fold_0/checkpoint_final.pth"


@pytest.fixture(autouse=True)
def no_external_trainers(monkeypatch):
    """The functions must find our trainers by themselves; what they set is undone."""
    monkeypatch.setenv("nnUNet_extTrainer", "")
    os.environ.pop("nnUNet_extTrainer")


def train_gkd(dataset, teacher: Path) -> Path:
    """Training folder of a GKD student of half the teacher's width, 10 epochs of 1 step."""
    planned = plan_student(
        StudentRequest(dataset.id, dataset.configuration, teacher, width=0.5, iterations=10, epochs=10, name="Vectors")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", str(trainers_path()))
        patch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
        device = torch.device("cpu")
        trainer = get_trainer_from_args(str(dataset.id), dataset.configuration, 0, TRAINER, "Vectors", device=device)
        trainer.run_training()
    assert planned.plans_name == "Vectors"
    return Path(trainer.output_folder_base)


@pytest.fixture(scope="module")
def gkd(tiny_dataset, tiny_teacher) -> Path:
    return train_gkd(tiny_dataset, tiny_teacher)


@pytest.fixture(scope="module")
def home(tiny_dataset) -> Domain:
    return parse_domain("home=950:Tr", tiny_dataset.raw.parent)


@pytest.fixture(scope="module")
def volumes(make_dataset, train) -> tuple:
    """A 3-D set with overlapping regions, a teacher trained on it, and three of its cases."""
    dataset = make_dataset(961, "Vectors3d", dims=3, foreground=2, regions=True)
    domain = parse_domain("volumes=961:Tr", dataset.raw.parent)
    return dataset, train(dataset), replace(domain, cases=domain.cases[:3])


def own_prediction(model: Path, image_files: list[list[Path]], out: Path) -> None:
    """nnU-Net's predictor as its documentation uses it."""
    predictor = nnUNetPredictor(tile_step_size=0.5, use_gaussian=True, use_mirroring=True, device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,), checkpoint_name="checkpoint_final.pth")
    out.mkdir()
    names = [str(out / files[0].name.split("_0000")[0]) for files in image_files]
    predictor.predict_from_files_sequential([[str(f) for f in files] for files in image_files], names)


def test_predictions_are_stock_nnunets(tiny_teacher, home, tmp_path):
    predictor = load_predictor(tiny_teacher, ("0",), "checkpoint_final.pth")
    found = predict_domain(predictor, home, tmp_path / "deep" / "ours", "ours")
    assert found.folder == tmp_path / "deep" / "ours"
    assert list(found.cpu_seconds) == home.cases and all(s > 0 for s in found.cpu_seconds.values())
    own_prediction(tiny_teacher, [[home.images / f"{c}_0000.png"] for c in home.cases], tmp_path / "own")
    maps = [imread(tmp_path / "own" / f"{case}.png") for case in home.cases]
    assert any(len(np.unique(m)) == 2 for m in maps)  # something to compare
    for case, own in zip(home.cases, maps, strict=True):
        np.testing.assert_array_equal(imread(found.folder / f"{case}.png"), own)


def test_3d_regions_are_predicted_and_measured(volumes, tmp_path):
    _, model, domain = volumes
    domain = replace(domain, cases=domain.cases[:2])
    found = predict_domain(load_predictor(model, ("0",), "checkpoint_final.pth"), domain, tmp_path / "ours", "ours")
    own_prediction(model, [[domain.images / f"{c}_0000.nii.gz"] for c in domain.cases], tmp_path / "own")

    def read(file: Path) -> np.ndarray:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))

    cases = evaluate_predictions(domain, found.folder, [(1, 2), (2,)])
    for case in domain.cases:
        prediction, truth = read(found.folder / f"{case}.nii.gz"), read(domain.labels / f"{case}.nii.gz")
        np.testing.assert_array_equal(prediction, read(tmp_path / "own" / f"{case}.nii.gz"))
        for name, members in (("1+2", (1, 2)), ("2", (2,))):
            p, t = np.isin(prediction, members), np.isin(truth, members)
            assert cases[case]["labels"][name]["dice"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))


def test_colour_pictures_are_read_like_one_file_per_channel(make_dataset, train, tmp_path):
    """nnU-Net takes a colour PNG as three channels; `convert --channels rgb` writes such files."""
    dataset = make_dataset(962, "VectorsColour", channels=3)
    predictor = load_predictor(train(dataset), ("0",), "checkpoint_final.pth")
    separate = parse_domain("separate=962:Tr", dataset.raw.parent)
    separate = replace(separate, cases=separate.cases[:3])
    (tmp_path / "images").mkdir()
    for case in separate.cases:
        channels = [imread(separate.images / f"{case}_{c:04d}.png") for c in range(3)]
        imsave(tmp_path / "images" / f"{case}_0000.png", np.stack(channels, -1), check_contrast=False)
    colour = replace(separate, name="colour", images=tmp_path / "images")
    folders = [predict_domain(predictor, d, tmp_path / d.name, "x").folder for d in (separate, colour)]
    for case in separate.cases:
        np.testing.assert_array_equal(*[imread(f / f"{case}.png") for f in folders])


def test_ignored_pixels_do_not_count(tiny_teacher, home, tmp_path):
    model = Path(shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name))
    content = json.loads((model / "dataset.json").read_text())
    labels, predictions = tmp_path / "labels", tmp_path / "predictions"
    for folder in (labels, predictions):
        folder.mkdir()
    for case in home.cases:
        truth = imread(home.labels / f"{case}.png")
        truth[:10] = 2
        imsave(labels / f"{case}.png", truth, check_contrast=False)
        imsave(predictions / f"{case}.png", truth.clip(0, 1), check_contrast=False)  # foreground all over the ignored part
    domain = replace(home, labels=labels)
    found = {}
    for ignore in ({}, {"ignore": 2}):
        (model / "dataset.json").write_text(json.dumps({**content, "labels": {**content["labels"], **ignore}}))
        m = Model("m", model, None, {"home": predictions}, 1.0)
        entry = evaluate(EvaluationRequest([m], [domain], tmp_path / "out"))["models"][0]
        found[bool(ignore)] = entry["domains"]["home"]["dice"]
    assert found[True] == 1 and found[False] < 0.9


def test_vectors_of_every_patch_of_every_case(gkd, home, tiny_teacher):
    run = load_aligned_run(TrainedFold.open(gkd))
    samples = semantic_vectors(run, home, ("student", "teacher"))
    vectors = {name: sample.vectors for name, sample in samples.items()}
    # 48x48 pixels, patches of 32x32 at half a patch's distance: two by two
    for sample in samples.values():
        assert sample.cases.tolist() == [case for case in home.cases for _ in range(4)]
    assert vectors["student"].shape == vectors["teacher"].shape == (24, DIM)
    for name, found in vectors.items():
        assert np.isfinite(found).all() and len(np.unique(found, axis=0)) == 24, name
    assert not np.allclose(vectors["student"], vectors["teacher"])

    # each vector belongs to its patch: the same for a case alone, and whatever the batch is
    alone = semantic_vectors(run, replace(home, cases=home.cases[2:3]), ("student",), batch_size=3)["student"]
    assert alone.cases.tolist() == [home.cases[2]] * 4
    np.testing.assert_allclose(alone.vectors, vectors["student"][8:12], rtol=1e-4, atol=1e-5)
    # a whole patch's distance leaves the same number of patches here, three quarters of a patch too; a quarter makes 3 x 3
    assert len(semantic_vectors(run, replace(home, cases=home.cases[:1]), step=0.25)["student"]) == 9

    # by hand: the first patch of the first case, normalised as nnU-Net does
    image = imread(home.images / f"{home.cases[0]}_0000.png").astype(np.float32)
    patch = torch.from_numpy(((image - image.mean()) / image.std())[:32, :32])[None, None]
    for name, network in (("student", run.student), ("teacher", run.teacher)):
        with torch.no_grad():
            feature = network.encoder(patch)[-1]
            (msan,) = [m for n, m in run.alignment.msans.items() if n.startswith(name)]
            np.testing.assert_allclose(msan.encode(feature)[0].numpy(), vectors[name][0], rtol=1e-3, atol=1e-4)


def test_a_run_is_loaded_with_its_own_weights(gkd, tiny_teacher):
    run = load_aligned_run(TrainedFold.open(gkd))
    content = load_checkpoint(gkd / FINAL)
    saved = content["nnunet_kd"]["distiller"]["alignment"]
    assert saved.keys() == run.alignment.state_dict().keys()
    assert all(torch.equal(v, saved[k]) for k, v in run.alignment.state_dict().items())
    assert all(torch.equal(v, content["network_weights"][k]) for k, v in run.student.state_dict().items())
    teacher = load_checkpoint(tiny_teacher / FINAL)["network_weights"]
    assert all(torch.equal(v, teacher[k]) for k, v in run.teacher.state_dict().items())
    assert not run.student.training and not run.teacher.training and not run.alignment.training
    assert load_aligned_run(TrainedFold.open(gkd), with_teacher=False).teacher is None
    assert TrainedFold.open(gkd).msans is not None and TrainedFold.open(tiny_teacher).msans is None


def test_a_trainer_of_the_users_own_is_found(gkd, home, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nnUNetTrainerMine.py").write_text(
        f"from nnunet_kd.training.named import {TRAINER}\nclass nnUNetTrainerMine({TRAINER}):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    folder = Path(shutil.copytree(gkd, tmp_path / gkd.name))
    save_atomically({**load_checkpoint(folder / FINAL), "trainer_name": "nnUNetTrainerMine"}, folder / FINAL)
    home = replace(home, cases=home.cases[:1])
    expected, theirs = (semantic_vectors(load_aligned_run(TrainedFold.open(f)), home)["student"].vectors for f in (gkd, folder))
    np.testing.assert_array_equal(theirs, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on the mean of a black image
def test_patches_outside_the_field_of_view_have_no_vector(gkd, home, tmp_path):
    run = load_aligned_run(TrainedFold.open(gkd), with_teacher=False)
    run.model.plans["configurations"]["2d"]["use_mask_for_norm"] = [True]  # the outside stays 0
    image = np.zeros((64, 64), np.uint8)
    image[:, :8], image[56:] = 90, 120
    image[::3] //= 2
    imsave(tmp_path / "a_0000.png", image, check_contrast=False)
    domain = Domain("view", tmp_path, tmp_path, None, ["a"], ".png")
    sample = semantic_vectors(run, domain)["student"]
    # corners 0, 16, 32 along either axis: only those at the left edge or at the bottom see anything
    assert sample.cases.tolist() == ["a"] * 5 and sample.vectors.shape == (5, DIM)

    imsave(tmp_path / "a_0000.png", np.zeros((64, 64), np.uint8), check_contrast=False)
    with pytest.raises(KDError, match="domain view: its 1 image.* zero everywhere"):
        semantic_vectors(run, domain)


def test_images_smaller_than_a_patch_are_padded(gkd, tmp_path):
    run = load_aligned_run(TrainedFold.open(gkd), with_teacher=False)
    noise = np.random.default_rng(0).integers(0, 255, (20, 40)).astype(np.uint8)
    imsave(tmp_path / "a_0000.png", noise, check_contrast=False)
    sample = semantic_vectors(run, Domain("small", tmp_path, tmp_path, None, ["a"], ".png"))["student"]
    assert sample.cases.tolist() == ["a"] * 2 and np.isfinite(sample.vectors).all()


def test_3d_vectors(volumes):
    dataset, teacher, domain = volumes
    gkd = train_gkd(dataset, teacher)
    samples = semantic_vectors(load_aligned_run(TrainedFold.open(gkd)), domain, ("student", "teacher"))
    # 24^3 voxels, patches of 16^3 at half a patch's distance: two along every axis
    for sample in samples.values():
        assert sample.cases.tolist() == [case for case in domain.cases for _ in range(8)]
        found = sample.vectors
        assert found.shape == (24, DIM) and np.isfinite(found).all() and len(np.unique(found, axis=0)) == 24


def test_a_run_whose_settings_do_not_fit_its_checkpoint(gkd, tmp_path):
    folder = Path(shutil.copytree(gkd, tmp_path / gkd.name))
    plans = json.loads((folder / "plans.json").read_text())
    plans["nnunet_kd"]["msan"] = {"dim": 2 * DIM}  # the checkpoint's recipe is read, not this
    (folder / "plans.json").write_text(json.dumps(plans))
    assert (
        load_aligned_run(TrainedFold.open(folder)).alignment.msans.state_dict().keys()
        == load_aligned_run(TrainedFold.open(gkd)).alignment.msans.state_dict().keys()
    )
    plans["nnunet_kd"]["teacher"]["stages"]["channels"][-1] *= 2
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(KDError, match=r"checkpoint_final\.pth holds MSANs that do not fit .*plans\.json"):
        load_aligned_run(TrainedFold.open(folder))
