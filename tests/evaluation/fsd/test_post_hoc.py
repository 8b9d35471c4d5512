"""MSANs fitted to models that have none, and the comparisons made with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import known_trainers, make, student

from nnunet_kd.cli.main import main
from nnunet_kd.config.presets import settings_of
from nnunet_kd.config.terms import ACT, MSAN, Views
from nnunet_kd.evaluation import evaluate
from nnunet_kd.evaluation.domains import parse_domain
from nnunet_kd.evaluation.fsd import compare as semantics
from nnunet_kd.evaluation.fsd import distance as fsd
from nnunet_kd.evaluation.fsd.compare import RunsRequest, compare_models, prepare_runs
from nnunet_kd.evaluation.fsd.post_hoc import Fit, fit_of, fitted_run, training_cases
from nnunet_kd.evaluation.fsd.vector_files import read_vectors
from nnunet_kd.evaluation.fsd.vectors import onehot_maps, semantic_vectors
from nnunet_kd.evaluation.report.report import write_report
from nnunet_kd.nnunet_io.model_folder import read_model_folder
from nnunet_kd.nnunet_io.trained_fold import TrainedFold
from nnunet_kd.utils.errors import KDError

SMALL = Fit(MSAN("spatial", dim=16), ACT(consistency=0, decoded=0), Views("light", 1, "anchor"), steps=12)


@pytest.fixture(scope="module")
def home(tiny_dataset):
    return parse_domain("home=950:Tr", tiny_dataset.raw.parent)


def _state(run) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in run.alignment.state_dict().items()}


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_fit_is_reproducible_cached_and_leaves_everything_as_it_was(tiny_teacher, tmp_path):
    before = {f: f.stat().st_mtime_ns for f in tiny_teacher.rglob("*") if f.is_file()}
    torch.manual_seed(5)
    random_number = torch.rand(1)
    torch.manual_seed(5)
    first = fitted_run(TrainedFold.open(tiny_teacher), SMALL, cache=tmp_path, name="t")
    assert torch.rand(1) == random_number  # the global generators are put back
    assert {f: f.stat().st_mtime_ns for f in tiny_teacher.rglob("*") if f.is_file()} == before
    (file,) = tmp_path.iterdir()
    again = fitted_run(TrainedFold.open(tiny_teacher), SMALL)
    assert _same(_state(first), _state(again)) and first.quality == again.quality
    assert first.origin == "post hoc" and first.networks == ("student",) and 0 < first.quality["reconstruction"] < 5
    assert not any(p.requires_grad for p in first.alignment.parameters())

    # the cache is read: what is in it is what comes back
    content = torch.load(file, weights_only=True)
    content["alignment"] = {k: v + 1 for k, v in content["alignment"].items()}
    torch.save(content, file)
    cached = fitted_run(TrainedFold.open(tiny_teacher), SMALL, cache=tmp_path, name="t")
    assert torch.equal(_state(cached)["autoencoder.mean"], _state(first)["autoencoder.mean"] + 1)
    file.write_bytes(b"damaged")
    assert _same(_state(fitted_run(TrainedFold.open(tiny_teacher), SMALL, cache=tmp_path, name="t")), _state(first))
    # and another seed, length or setting is another fit
    for other in (replace(SMALL, seed=1), replace(SMALL, steps=13), replace(SMALL, act=ACT(decoded=0.0))):
        assert not _same(_state(fitted_run(TrainedFold.open(tiny_teacher), other, cache=tmp_path, name="t")), _state(first))
    assert len(list(tmp_path.iterdir())) == 4


def test_longer_fits_reconstruct_better(tiny_teacher):
    short, long = (fitted_run(TrainedFold.open(tiny_teacher), replace(SMALL, steps=n)) for n in (5, 150))
    assert long.quality["reconstruction"] < 0.8 * short.quality["reconstruction"]


def test_every_part_of_act_and_decoder_stages_can_be_fitted(tiny_teacher, home):
    fit = Fit(MSAN("vector", stages=["bottleneck", "decoder0"], dim=8), ACT(), Views("light", 2, "anchor"), steps=6)
    run = fitted_run(TrainedFold.open(tiny_teacher), fit)
    assert {"reconstruction", "semantic", "consistency", "decoded", "agreement"} <= set(run.quality)
    samples = semantic_vectors(run, replace(home, cases=home.cases[:1]), maps=True)
    shapes = {kind: sample.vectors.shape for kind, sample in samples.items()}
    assert shapes == {"student": (4, 16), "annotation": (4, 8), "student prediction": (4, 8)}


def test_models_of_one_data_set_share_the_autoencoder(tiny_dataset, tiny_teacher, monkeypatch):
    known_trainers(monkeypatch)
    trainer = make("nnUNetTrainerScheduled", student(tiny_teacher, "PostHoc", epochs=1, iterations=1))
    trainer.run_training()
    runs = prepare_runs(
        {"t": TrainedFold.open(tiny_teacher), "s": TrainedFold.open(trainer.output_folder_base)}, RunsRequest(steps=10)
    )
    states = [_state(r) for r in runs.values()]
    of_autoencoder = [{k: v for k, v in s.items() if k.startswith("autoencoder.")} for s in states]
    assert _same(*of_autoencoder) and of_autoencoder[0]
    assert {k.split(".")[0] for s in states for k in s} == {"msans", "autoencoder"}


def test_fitting_needs_the_training_data(tiny_dataset, tiny_teacher, monkeypatch, tmp_path):
    folder, cases = training_cases(read_model_folder(tiny_teacher), 0)
    splits = json.loads((tiny_dataset.preprocessed / "splits_final.json").read_text(encoding="utf-8"))
    assert folder.name == "nnUNetPlans_2d" and cases == sorted(splits[0]["train"])
    assert training_cases(read_model_folder(tiny_teacher), "all")[1] == list(tiny_dataset.cases)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    with pytest.raises(
        KDError, match="is missing: MSANs of .* are fitted on its preprocessed training cases; run nnUNetv2_pre"
    ):
        fitted_run(TrainedFold.open(tiny_teacher), SMALL)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(KDError, match="nnUNet_preprocessed is not set"):
        fitted_run(TrainedFold.open(tiny_teacher), SMALL)
    with pytest.raises(KDError, match='preset "kd" has no MSANs to fit: use one of .*intra, inter'):
        fit_of("kd")
    assert fit_of("default").msan.dim == settings_of("default")["msan"]["dim"]


def test_a_perfect_prediction_has_no_distance_from_the_annotation(tiny_teacher, home):
    run = fitted_run(TrainedFold.open(tiny_teacher), SMALL)
    truth = torch.randint(0, 2, (3, 32, 32))
    run._read = lambda network, batch, logits: (torch.zeros(3, 1), torch.stack([-truth, truth], 1).float())
    maps = run.vectors_and_maps("student", None)[1]
    assert torch.equal(maps, onehot_maps(truth, run.labels)) and torch.equal(maps.argmax(1), truth)
    z = run.semantics(maps).numpy()
    assert fsd.frechet_distance(z, z) == pytest.approx(0, abs=1e-6)


def test_onehot_maps_of_regions_and_ignored_pixels():
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = torch.tensor([[[0, 1, 2, 3, -1]]])
    plain = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
    assert onehot_maps(labels, plain)[0, :, 0].T.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    regions = LabelManager({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
    assert onehot_maps(labels, regions)[0, :, 0].T.tolist() == [[0, 0], [1, 0], [1, 1], [0, 0], [0, 0]]


def test_comparisons_of_fitted_models(tiny_teacher, home):
    target = replace(home, name="target", cases=home.cases[3:])
    runs = {n: fitted_run(TrainedFold.open(tiny_teacher), replace(SMALL, seed=i)) for i, n in enumerate("ab")}
    found = compare_models(runs, home, [target], bootstrap=10, teacher="a")
    rows = [(r["comparison"], r["model"], r["source"], r["target"]) for r in found.rows]
    per_model = [("home", "home (other half)"), ("home", "target")]
    annotation = [("annotation", "a", s, t) for s, t in per_model]
    assert [r for r in rows if r[0] == "domains"] == [("domains", m, s, t) for m in "ab" for s, t in per_model]
    assert [r for r in rows if r[0] == "annotation"] == annotation  # once: a fitted P-SAE is everybody's
    assert sum(r[0] == "prediction" for r in rows) == 4
    assert [r[1:] for r in rows if r[0] == "networks"] == [("b", f"a on {d}", f"b on {d}") for d in ("home", "target")]
    a = found.samples["a"]["student"]
    row = next(r for r in found.rows if r["comparison"] == "networks")
    assert row["fsd"] == pytest.approx(fsd.frechet_distance(a["home"].vectors, found.samples["b"]["student"]["home"].vectors))
    predicted = next(
        r for r in found.rows if (r["comparison"], r["model"], r["target"]) == ("prediction", "b", "prediction on target")
    )
    both = [found.samples["b"][kind]["target"].vectors for kind in ("annotation", "student prediction")]
    assert predicted["fsd"] == pytest.approx(fsd.frechet_distance(*both)) and predicted["fsd"] > 0
    assert row["n_a"] == 24 and len(np.unique(a["target"].cases)) == 3
    with pytest.raises(KDError, match="--teacher c must name one of the models"):
        compare_models(runs, home, [target], teacher="c")


def test_command_compares_stock_models(tiny_teacher, tmp_path, capsys, monkeypatch):
    other = Path(shutil.copytree(tiny_teacher, tmp_path / "other" / tiny_teacher.name))
    out = tmp_path / "deep" / "fsd.json"
    command = [
        "fsd",
        "--model",
        f"stock={tiny_teacher}",
        "--model",
        f"copy={other}",
        "--source",
        "home=950:Tr",
        "--target",
        "part=950:Tr:case_0[0-3]",
        "--fit-steps",
        "10",
        "--bootstrap",
        "10",
        "-o",
        str(out),
    ]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(out.read_text(encoding="utf-8")) and {r["model"] for r in printed["fsd"]} == {"stock", "copy"}
    # two copies of one model: the same fit, vectors and distances
    values = {
        m: [r["fsd"] for r in printed["fsd"] if r["model"] == m and r["comparison"] == "domains"] for m in ("stock", "copy")
    }
    assert values["stock"] == values["copy"] and len(values["copy"]) == 2
    assert sorted(p.name for p in out.parent.iterdir()) == ["fsd.json", "fsd.png", "fsd_msan", "fsd_vectors", "fsd_vectors.png"]
    samples = read_vectors(out.parent / "fsd_vectors" / "copy.npz")
    assert set(samples) == {"student", "student prediction", "annotation"} and set(samples["student"]) == {"home", "part"}

    monkeypatch.setattr(semantics, "fitted_run", lambda *a, **k: pytest.fail("fitted"))
    assert main([*command, "--msan", "own"]) == 2 and "holds no MSAN" in capsys.readouterr().err
    assert main([*command, "--model", f"stock={other}"]) == 2 and "each name once" in capsys.readouterr().err


def test_the_report_of_stock_models_shows_their_distances(tiny_teacher, home, tmp_path):
    part = replace(home, name="part", cases=home.cases[2:])
    models = [evaluate.Model(n, tiny_teacher, None, {d.name: d.labels for d in (home, part)}, 1.0) for n in "ab"]
    request = evaluate.EvaluationRequest(models, [home, part], tmp_path, bootstrap=10, distances="fit", fit_steps=5)
    report = evaluate.evaluate(request)
    assert {r["model"] for r in report["fsd"]} == {"a", "b"} and report["note"] == ""
    assert len(list((tmp_path / "fsd" / "msan").iterdir())) == 2 and set(report["fsd_vectors"]) == {"a", "b"}
    page = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "Prediction against annotation" in page and "annotation of part, prediction on part" in page
    assert (tmp_path / "vectors.png").is_file() and "Teacher against student" not in page
    assert evaluate.evaluate(replace(request, distances="none"))["fsd"] == []
