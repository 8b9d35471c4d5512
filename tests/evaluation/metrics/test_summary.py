"""nnU-Net's summary.json: the same values as nnU-Net's own evaluation, read by its own readers, with more keys."""

import json
import multiprocessing
import multiprocessing.dummy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing
from skimage.io import imsave

from nnunet_kd.cli.main import main
from nnunet_kd.evaluation.metrics.cases import in_order
from nnunet_kd.evaluation.metrics.summary import measure_folders, pair_files, read_labels, write_summary
from nnunet_kd.utils.errors import KDError

LABELS = {
    "labels": {"background": 0, "organ": 1, "tumour": 2},
    "ignore": {"background": 0, "organ": 1, "tumour": 2, "ignore": 3},
    "regions": {"background": 0, "organ": [1, 2], "tumour": 2, "ignore": 3},
}


def _volume(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing((0.8, 0.8, 2.5))
    SimpleITK.WriteImage(image, str(file))


def _dataset(root: Path, kind: str, cases: int = 3) -> tuple[Path, Path, Path]:
    """Predictions, references and dataset.json. The last case has no tumour; the second's was missed."""
    rng = np.random.default_rng(0)
    for i in range(cases):
        truth = np.zeros((6, 18, 20), int)
        truth[1:5, 3:12, 3 + i : 14] = 1
        truth[2:4, 5:9, 6:10] = 2 if i < cases - 1 else 1
        prediction = np.where(rng.random(truth.shape) < 0.03, 1, np.roll(truth, 1, 2))
        if i == 1:
            prediction[prediction == 2] = 1
        if kind != "labels":
            truth[:, :2] = 3
        _volume(root / "ref" / f"c{i}.nii.gz", truth)
        _volume(root / "pred" / f"c{i}.nii.gz", prediction)
    content = {"labels": LABELS[kind], "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, "numTraining": cases}
    if kind == "regions":
        content["regions_class_order"] = [1, 2]
    (root / "dataset.json").write_text(json.dumps(content))
    return root / "pred", root / "ref", root / "dataset.json"


@pytest.fixture
def no_pools(monkeypatch):
    """nnU-Net's own evaluation without starting processes."""
    real = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda m=None: multiprocessing.dummy if m == "spawn" else real(m))


@pytest.mark.parametrize("kind", LABELS)
def test_the_values_are_nnunets(tmp_path, kind, no_pools):
    predictions, references, dataset_json = _dataset(tmp_path, kind)
    labels, ignore, ending = read_labels(dataset_json)
    theirs = tmp_path / "theirs.json"
    compute_metrics_on_folder(str(references), str(predictions), str(theirs), SimpleITKIO(), ending, labels, ignore, 1)
    measured, content = measure_folders(predictions, references, dataset_json)
    write_summary(content, tmp_path / "ours.json")
    expected, found = load_summary_json(str(theirs)), load_summary_json(str(tmp_path / "ours.json"))
    assert found["mean"].keys() == expected["mean"].keys()
    for label, values in expected["mean"].items():
        assert {k: found["mean"][label][k] for k in values} == pytest.approx(values, nan_ok=True)
    assert {k: found["foreground_mean"][k] for k in expected["foreground_mean"]} == pytest.approx(expected["foreground_mean"])
    for ours, nnunets in zip(found["metric_per_case"], expected["metric_per_case"], strict=True):
        assert ours["reference_file"] == nnunets["reference_file"] and ours["prediction_file"] == nnunets["prediction_file"]
        for label, values in nnunets["metrics"].items():
            assert {k: ours["metrics"][label][k] for k in values} == pytest.approx(values, nan_ok=True)
    extra = content["nnunet_kd"]
    assert extra["distance_unit"] == "mm" and extra["definitions"]["HD95"].startswith("max of the two directed")
    tumour = str(labels[1])
    counts = extra["counts"][tumour]
    # 1 missed, and of the last case, without a tumour, nothing was found or a speck
    assert (counts["n"], counts["missed"]) == (3, 1) and counts["failures"] == counts["missed"] + counts["false_alarms"]
    assert content["mean"][tumour]["HD95"] > content["mean"][str(labels[0])]["HD95"]
    assert {"NSD", "ASSD", "Sensitivity", "Specificity", "Accuracy"} <= content["foreground_mean"].keys()


@pytest.mark.parametrize("kind", LABELS)
def test_nnunets_postprocessing_starts_from_our_file(tmp_path, kind, no_pools):
    """It is the part of find_best_configuration that reads a summary.json that somebody else wrote."""
    predictions, references, dataset_json = _dataset(tmp_path, kind)
    _, content = measure_folders(predictions, references, dataset_json)
    write_summary(content, predictions / "summary.json")
    before = (predictions / "summary.json").read_bytes()
    plans = {"image_reader_writer": "SimpleITKIO", "plans_name": "P", "dataset_name": "D", "configurations": {}}
    functions, _ = determine_postprocessing(str(predictions), str(references), plans, json.loads(dataset_json.read_text()), 1)
    assert (predictions / "summary.json").read_bytes() == before
    decided = json.loads((predictions / "postprocessing.json").read_text())
    baseline = content["foreground_mean"]["Dice"]
    assert decided["input_folder"]["foreground_mean"]["Dice"] == pytest.approx(baseline, nan_ok=True)
    assert isinstance(functions, list)


def _pictures(root: Path, fov: bool = True, probabilities: bool = True) -> list[str]:
    rng = np.random.default_rng(0)
    for name in ("pred", "ref", "fov"):
        (root / name).mkdir()
    for case in ("a", "b"):
        truth = np.zeros((30, 40), np.uint8)
        truth[10:20, 5:35] = 1
        p = np.clip(0.7 * truth + rng.uniform(0, 0.4, truth.shape), 0, 1).astype(np.float32)
        prediction = (p > 0.5).astype(np.uint8)
        prediction[:4] = 1  # outside the field of view
        imsave(root / "ref" / f"{case}.png", truth, check_contrast=False)
        imsave(root / "pred" / f"{case}.png", prediction, check_contrast=False)
        imsave(root / "fov" / f"{case}.png", np.pad(np.full((20, 40), 255, np.uint8), ((5, 5), (0, 0))), check_contrast=False)
        np.savez_compressed(root / "pred" / f"{case}.npz", probabilities=np.stack([1 - p, p])[:, None])
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "vessel": 1}, "file_ending": ".png"}))
    return [
        "metrics",
        *(f"{a}{b}" for a, b in ()),
        "-pred",
        str(root / "pred"),
        "-ref",
        str(root / "ref"),
        "-djfile",
        str(root / "dataset.json"),
    ]


def test_command_with_field_of_view_and_auc(tmp_path, capsys):
    command = _pictures(tmp_path)
    assert main([*command, "--fov", str(tmp_path / "fov"), "--tolerance", "2", "-o", str(tmp_path / "deep" / "s.json")]) == 0
    content = json.loads((tmp_path / "deep" / "s.json").read_text())
    assert content["mean"]["1"]["Dice"] == 1 and content["mean"]["1"]["HD95"] == 0 and content["mean"]["1"]["AUC"] == 1
    assert content["nnunet_kd"]["pooled"]["auc"] == 1 and content["nnunet_kd"]["nsd_tolerance"] == 2
    assert content["nnunet_kd"]["distance_unit"] == "px" and content["mean"]["1"]["TN"] == 500
    assert "AUC 1.0000" in capsys.readouterr().out
    assert main(command) == 0  # without the field of view the strip above counts; default: beside the predictions
    assert 0.4 < load_summary_json(str(tmp_path / "pred" / "summary.json"))["mean"][1]["Dice"] < 0.9
    assert main(command) == 0  # a summary of before is no prediction


def test_mistakes_are_one_line(tmp_path, capsys):
    command = _pictures(tmp_path)

    def fails(*arguments: str, says: str) -> None:
        assert main([*arguments]) == 2
        text = capsys.readouterr().err
        assert says in text and text.count("\n") == 1, text

    (tmp_path / "fov" / "b.png").unlink()
    fails(*command, "--fov", str(tmp_path / "fov"), says="b.png has no field of view in")
    (tmp_path / "pred" / "a.png").rename(tmp_path / "pred" / "z.png")
    fails(*command, says="1 of 2 cases have no prediction in")
    fails(*command, "--chill", says="z.png has no reference in")
    (tmp_path / "pred" / "z.png").unlink()
    assert main([*command, "--chill"]) == 0
    np.savez_compressed(tmp_path / "pred" / "b.npz", probabilities=np.zeros((2, 1, 30, 41), np.float32))
    fails(*command, "--chill", says="b.npz holds probabilities of 2x30x41")
    (tmp_path / "pred" / "b.npz").write_bytes(b"no archive")
    fails(*command, "--chill", says="b.npz")
    fails(*command[:-1], str(tmp_path / "no.json"), says="no.json does not exist")
    (tmp_path / "dataset.json").write_text('{"labels": {"vessel": 1}, "file_ending": ".png"}')
    fails(*command, says="is no dataset.json of nnU-Net's")
    with pytest.raises(KDError, match="does not exist"):
        pair_files(tmp_path / "nowhere", tmp_path / "ref", ".png")


def test_regions_have_heads_of_their_own(tmp_path):
    """A sigmoid network writes one map per region, in the order of the regions; a softmax one the background first."""
    predictions, references, dataset_json = _dataset(tmp_path, "regions")
    for file in references.glob("*.nii.gz"):
        truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        heads = np.stack([0.9 * np.isin(truth, (1, 2)), 0.1 + 0.5 * (truth != 2)]).astype(np.float32)  # the second: all wrong
        heads[:, truth == 3] = 0.5  # not counted
        np.savez_compressed(predictions / f"{file.name[:-7]}.npz", probabilities=heads)
    _, content = measure_folders(predictions, references, dataset_json)
    assert content["mean"]["(1, 2)"]["AUC"] == 1 and content["mean"]["2"]["AUC"] == 0
    assert content["nnunet_kd"]["pooled"]["auc"] == pytest.approx(0.5)


def test_in_order_holds_few_results():
    seen = []

    def count(i):
        seen.append(i)
        return i

    results = in_order(count, range(5), 1)
    assert next(results) == 0 and seen == [0]  # lazily
    assert list(results) == [1, 2, 3, 4]
    assert list(in_order(abs, [-3, 2, -1, 0, 5, -6, 7], 2)) == [3, 2, 1, 0, 5, 6, 7]
