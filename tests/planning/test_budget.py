"""Students by budget: the front, the choice, the table, the picture, and what goes wrong."""

import json
import re

import pytest
import torch
from helpers import network
from skimage.io import imread
from torch.utils.flop_counter import FlopCounterMode

from nnunet_kd.cli.main import main
from nnunet_kd.networks.cost import count_flops, count_parameters
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network, read_model_folder
from nnunet_kd.planning import budget
from nnunet_kd.planning.budget import Budget, Candidate, Proposal, parse_count, parse_milliseconds, propose
from nnunet_kd.planning.latency import measure_in_turn, peak_memory
from nnunet_kd.planning.pareto import pareto_front
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.utils.errors import KDError


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch):
    """Only torch is timed: opening other backends takes seconds. Two widths are enough."""
    monkeypatch.setattr(budget, "installed_backends", lambda: ["torch"])
    monkeypatch.setattr(budget, "WIDTHS", [0.25, 0.5, 0.75])


def candidate(name: str, parameters: int, flops: int) -> Candidate:
    return Candidate(name, [4], None, parameters, flops, {})


def test_the_front_holds_whatever_no_other_beats():
    several = [
        candidate(n, p, f) for n, p, f in (("a", 10, 5), ("b", 20, 5), ("c", 30, 9), ("d", 25, 9), ("e", 5, 1), ("f", 4, 2))
    ]
    front = pareto_front(several, lambda c: c.parameters, lambda c: c.flops)
    assert [c.name for c in front] == ["e", "b", "c"]
    for one in several:  # by definition: what is left out is beaten, what is in is not
        beaten = any(o.parameters >= one.parameters and o.flops <= one.flops and o is not one for o in several)
        assert beaten == (one not in front)


def test_flops_of_a_convolution_by_hand():
    for device in ("cpu", "meta"):
        convolution = torch.nn.Conv2d(3, 4, 5, padding=2, bias=False, device=device)
        assert count_flops(convolution, (8, 16)) == 2 * (3 * 5 * 5) * 4 * (8 * 16)


def test_units():
    assert [parse_count(t, "-") for t in ("500k", "2G", "1.5M", "12", "1t")] == [5e5, 2e9, 1.5e6, 12, 1e12]
    assert [parse_milliseconds(t, "-") for t in ("200ms", "1.5s", "3 ms")] == [200, 1500, 3]
    for text in ("", "k", "5x", "-3", "0", "5 00k", "200ms"):
        with pytest.raises(KDError, match="--max-flops.*write 500k"):
            parse_count(text, "--max-flops")
    for text in ("200", "ms", "3min", "-1s", "0ms"):
        with pytest.raises(KDError, match="--max-latency.*write 200ms"):
            parse_milliseconds(text, "--max-latency")


def test_chosen_is_the_biggest_that_meets_the_budget(tiny_teacher):
    found = propose(StudentRequest(950, "2d", tiny_teacher), Budget(parameters=9000), threads=1)
    assert found.chosen.parameters <= 9000 and found.chosen in found.students
    bigger = [s for s in found.students if s.parameters > found.chosen.parameters]
    assert all(s.parameters > 9000 for s in bigger) and bigger  # the next bigger one is shown, to see what it would cost
    teacher = read_model_folder(tiny_teacher)
    assert found.teacher.parameters == count_parameters(build_network(teacher))
    assert all(s.measured["torch"] > 0 for s in [found.teacher, *found.students])
    # what was counted on tensors without memory is what the planned network has
    planned = plan_student(
        StudentRequest(950, "2d", tiny_teacher, features=found.chosen.features, convs=found.chosen.convs, name="PlansBudget")
    )
    student = build_network(ModelFolder(planned.file.parent, planned.plans, teacher.dataset_json, "2d")).eval()
    patch = planned.plans["configurations"]["2d"]["patch_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert student(torch.zeros(1, 1, *patch)).shape[2:] == torch.Size(patch)
    assert (count_parameters(student), counter.get_total_flops()) == (found.chosen.parameters, found.chosen.flops)


def test_latency_budgets_by_bisection():
    times = [1, 2, 4, 8, 16, 32]
    front = [candidate(str(t), t, t) for t in times]
    tried = []

    def measure(one: Candidate) -> None:
        tried.append(one.name)
        one.measured = {"torch": float(one.name)}

    fast = budget._fast_enough(front, Budget(milliseconds=9), "torch", measure)
    assert [c.name for c in fast] == ["1", "2", "4", "8"] and len(tried) <= 3
    with pytest.raises(KDError, match="no student here meets --max-latency 0.5ms: the cheapest, 1, takes 1 ms in torch"):
        budget._fast_enough(front, Budget(milliseconds=0.5), "torch", measure)


def test_the_table_decides_and_not_the_search(tiny_teacher, monkeypatch):
    def measured(networks, channels, patch, threads, backends=None, rounds=7):
        return {name: {"torch": 1.0 if len(networks) > 1 else 10.0 * (name[:2] != "4-")} for name in networks}

    monkeypatch.setattr(budget, "measure_in_turn", measured)  # alone, the bigger ones look too slow
    found = propose(StudentRequest(950, "2d", tiny_teacher), Budget(milliseconds=5), threads=1)
    assert found.chosen is found.students[-1] and found.chosen.features[0] > 4


@pytest.mark.slow
def test_a_budget_on_the_command_line(tiny_dataset, tiny_teacher, capsys):
    arguments = ["plan", "950", "-c", "2d", "--teacher", str(tiny_teacher), "--threads", "1"]
    before = set(tiny_dataset.preprocessed.iterdir())
    assert main([*arguments, "--list"]) == 0
    assert set(tiny_dataset.preprocessed.iterdir()) == before  # shown, not written
    assert "teacher 8-16-32" in capsys.readouterr().out
    assert main([*arguments, "--max-params", "9k", "--max-latency", "10s", "--convs", "1", "--name", "PlansFit"]) == 0
    out = capsys.readouterr().out
    assert "->" in out and "the most parameters that meet --max-params 9k --max-latency 10000ms" in out
    plans = json.loads((tiny_dataset.preprocessed / "PlansFit.json").read_text())
    assert set(plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_conv_per_stage"]) == {1}
    assert imread(tiny_dataset.preprocessed / "PlansFit_budget.png").std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--max-params", "10"],
            r"meets --max-params 10: the smallest has [\d.]+k? parameters, the cheapest .* FLOPs per patch",
        ),
        (["--max-flops", "2GB"], "2GB.*write 500k or 2G"),
        (["--max-params", "1M", "--features", "4", "8"], "--features and --max-params both choose"),
        (["--list", "--width", "0.5"], "--width and --list both choose"),
        (["--threads", "2"], "--threads is for budgets"),
        (["--max-params", "1M", "--threads", "0"], "--threads 0 must be at least 1"),
        (["--max-params", "1M", "--depth", "7"], "--depth 7 must lie in 2 to 3"),
        (["--depth", "1"], "--depth 1 must lie in 2 to 3"),
        (["--convs", "0"], "--convs 0 must be at least 1"),
        (["--depth", "2", "--features", "4", "8"], "--depth and --features both"),
    ],
)
def test_mistakes_are_one_line(tiny_teacher, capsys, options, message):
    assert main(["plan", "950", "-c", "2d", "--teacher", str(tiny_teacher), *options]) == 2
    error = capsys.readouterr().err.split("\r")[-1].strip().splitlines()[-1]
    assert error.startswith("nnunet-kd: error: ")
    assert re.search(message, error), error


def test_depth_and_convs_of_both_families(tiny_teacher):
    planned = plan_student(StudentRequest(950, "2d", tiny_teacher, width=0.5, depth=2, convs=1, name="PlansDepth"))
    kwargs = planned.plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [4, 8] and kwargs["n_conv_per_stage"] == [1, 1] and kwargs["n_stages"] == 2
    assert kwargs["n_conv_per_stage_decoder"] == [1]
    residual = {
        "architecture": {
            "arch_kwargs": {
                "features_per_stage": [4, 8, 16],
                "n_stages": 3,
                "n_blocks_per_stage": [1, 3, 4],
                "n_conv_per_stage_decoder": [1, 1],
            }
        }
    }
    budget.set_convs(residual, 2)
    assert residual["architecture"]["arch_kwargs"]["n_blocks_per_stage"] == [2, 2, 2]
    assert residual["architecture"]["arch_kwargs"]["n_conv_per_stage_decoder"] == [1, 1]


def test_bigger_networks_measure_slower_and_larger():
    small, big = network(features=(4, 8)), network(features=(32, 64), convs=2)
    found = measure_in_turn({"small": small, "big": big}, 1, (256, 256), 1, ["torch"], rounds=3)
    assert found["big"]["torch"] > 2 * found["small"]["torch"]
    if "memory" in found["big"]:
        assert found["big"]["memory"] > found["small"]["memory"]
        assert 60 < peak_memory(lambda: torch.ones(20, 1024, 1024))[0] < 160  # 80 MB


def test_a_slow_network_is_measured_in_torch_alone(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("nnunet_kd.planning.latency._SLOW", 0)
    found = measure_in_turn({"slow": network()}, 1, (16, 16), 1, ["torch", "onnxruntime"], rounds=1)
    assert found["slow"].keys() - {"memory"} == {"torch"}
    slow = candidate("slow", 1, 1)
    slow.measured = found["slow"]
    assert budget._time(slow, "onnxruntime") == found["slow"]["torch"] > 0
    slow.measured = {"onnxruntime": 3.0}  # what a budget in time measures first
    assert budget._time(slow, "onnxruntime") == 3


def test_the_table_does_without_peak_memory():
    from nnunet_kd.planning.budget_report import proposal_table

    teacher = Candidate("teacher", [8, 16], None, 1000, 10**6, {}, {"torch": 4.0})
    student = Candidate("width 0.5", [4, 8], None, 250, 10**5, {}, {"torch": 1.0})
    text = proposal_table(Proposal(teacher, [student], None, ["torch"], "torch", 1, Budget()))
    assert "peak MB" not in text and "25.00%" in text
    for one in (teacher, student):
        one.measured["memory"] = 12.0
    assert "peak MB" in proposal_table(Proposal(teacher, [student], None, ["torch"], "torch", 1, Budget()))
