"""scripts/dice_by_offset.py: a bias of the decision told apart from a better segmentation."""

import json
import sys
from functools import partial

import pytest
from helpers import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("dice_by_offset")


def peak(count: int, best: int, height: float) -> list[float]:
    """A curve over ``count`` offsets that falls by a hundredth per offset on both sides of its best."""
    return [height - 0.01 * abs(i - best) for i in range(count)]


def test_the_source_chooses_for_every_seed(script):
    middle, curve = len(script.OFFSETS) // 2, partial(peak, len(script.OFFSETS))
    models = {
        "a_seed0": {"S": {"x": curve(middle + 1, 0.8)}, "T": {"y": curve(middle + 2, 0.7)}},
        "a_seed1": {"S": {"x": curve(middle, 0.8)}, "T": {"y": curve(middle + 2, 0.7)}},
    }
    row = script.table(models, "S", ["T"]).splitlines()[-1]
    # 0: 0.68 and 0.68; chosen +0.25 and 0: 0.69 and 0.68; best 0.70
    assert row == "| a | 2 | +0.25, +0.00 | 0.6800 / 0.6850 / 0.7000 |"


def test_at_equal_dice_at_home_a_mere_offset_is_worth_nothing(script):
    curve = partial(peak, len(script.OFFSETS))

    def model(shift: int, gain: float) -> dict:
        return {"H": {"x": curve(8 - shift, 0.8)}, "T": {"y": curve(11 - shift, 0.7 + gain)}}

    models = {"plain_seed0": model(0, 0.0), "readier_seed0": model(2, 0.0), "better_seed0": model(1, 0.03)}
    lines = script.table_by_level(models, "H", ["T"], [0.79, 0.795, 0.9]).splitlines()
    # one offset off the best at home is one nearer to the other's best: 0.7 - 0.02; half of it: 0.7 - 0.025
    assert lines[2:] == [
        "| plain | 0.8000 | 0.6800 | 0.6750 | never |",
        "| readier | 0.8000 | 0.6800 | 0.6750 | never |",
        "| better | 0.8000 | 0.7100 | 0.7050 | never |",
    ]


def test_a_trained_model_from_the_command_line(script, tiny_dataset, tiny_teacher, tmp_path, monkeypatch, capsys):
    """At offset 0 as stock nnU-Net, and what was measured is kept."""
    from nnunet_kd.evaluation.domains import evaluate_predictions, parse_domain
    from nnunet_kd.evaluation.predict import load_predictor, predict_domain

    place, out = f"{tiny_dataset.id}:Tr", tmp_path / "offsets.json"
    # other tests train further folds of this teacher
    arguments = ["x", str(tiny_teacher), "--source", f"S={place}", "--domain", f"T={place}", "-f", "0", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    found = json.loads(out.read_text())["models"][tiny_teacher.name]["T"]
    domain = parse_domain(f"T={place}", tiny_dataset.raw.parent)
    predict_domain(load_predictor(tiny_teacher, ("0",), "checkpoint_final.pth"), domain, tmp_path / "out", "T")
    stock = evaluate_predictions(domain, tmp_path / "out", [1])
    middle = len(script.OFFSETS) // 2
    assert {c: v[middle] for c, v in found.items()} == pytest.approx({c: m["dice"] for c, m in stock.items()})
    assert len({round(v, 6) for v in next(iter(found.values()))}) > 1
    monkeypatch.setattr(script, "curves", None)  # it would fail if a model ran again
    script.main()
    assert capsys.readouterr().out.count(f"| {tiny_teacher.name} | 1 |") == 2
