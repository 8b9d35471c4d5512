"""scripts/bench_inference.py on networks that say nothing about speed: targets decide, tables are complete."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    for package in ("onnxruntime", "openvino", "onnxscript"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("bench_inference")
    monkeypatch.setattr(module, "CASES", {"tiny": ((8, 16), (16, 16))})
    monkeypatch.setattr(module, "SHARE", 10)
    return module


@pytest.mark.slow
def test_targets_decide_the_exit_code(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TARGETS", dict.fromkeys(bench.TARGETS, 1e-6))
    assert bench.quick(1, seconds=0.1) == 0
    out = capsys.readouterr().out
    assert "all targets met" in out and "student, OpenVINO f32" in out
    monkeypatch.setattr(bench, "TARGETS", dict.fromkeys(bench.TARGETS, 1e6))
    monkeypatch.setattr(bench, "SHARE", 1e-6)
    assert bench.quick(1, seconds=0.1) == 1
    missed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSED tiny: student, ")]
    assert any("ONNX Runtime is" in m for m in missed) and any("parameters" in m for m in missed)


@pytest.mark.slow
def test_a_volume_without_data(bench, monkeypatch, capsys):
    volume = importlib.import_module("bench.volume")
    for name, value in {"PATCH": (16, 16, 16), "SMALL": (16, 16, 16), "SIZE": (20, 60, 40)}.items():
        monkeypatch.setattr(volume, name, value)
    monkeypatch.setattr(bench, "FEATURES_3D", (8, 16))
    assert bench.main(["--volume", "--no-mirroring", "--rounds", "1", "--threads", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| student")]
    assert [row.split(" | ")[0] for row in rows][:3] == [
        "| student, nnU-Net",
        "| student, ONNX Runtime",
        "| student, OpenVINO f32",
    ]


def test_one_case_is_not_enough_and_options_are_asked_for(bench, tmp_path, capsys):
    assert bench.main([]) == 2 and "--teacher, --student and --images are needed" in capsys.readouterr().err
    (tmp_path / "A_0000.png").write_text("")
    (tmp_path / "model.json").write_text('{"networks": {}}')
    options = ["--teacher", "T", "--student", str(tmp_path), "--images", str(tmp_path)]
    (tmp_path / "model.json").rename(tmp_path / "model_0000.json")
    assert bench.main([*options, "--cases", "1"]) == 2 and "two are needed" in capsys.readouterr().err
    assert bench.main(options) == 2 and "export the student with `nnunet-kd export --openvino`" in capsys.readouterr().err


@pytest.mark.parametrize("dims", [2, 3])
def test_the_student_of_depthwise_convolutions_keeps_the_size(bench, dims):
    from bench.networks import mobile_unet

    network = mobile_unet(dims, (4, 8, 8))
    depthwise = [m for m in network.modules() if getattr(m, "groups", 1) > 1]
    assert len(depthwise) == 2 * 5 and all(m.groups == m.in_channels for m in depthwise)
    assert network(torch.zeros(1, 1, *[16] * dims)).shape == (1, 2, *[16] * dims)


def test_processes_are_timed_and_their_failure_is_told(bench):
    from bench.processes import run_process

    from nnunet_kd.utils.errors import KDError

    spent = run_process([sys.executable, "-c", "b = bytearray(60_000_000); sum(range(10**6))"], 1)
    assert spent.wall > 0 and spent.cpu > 0 and 60 < spent.peak < 100
    with pytest.raises(KDError, match="failed with exit code 3: no"):
        run_process([sys.executable, "-c", "print('no'); raise SystemExit(3)"], 1)
