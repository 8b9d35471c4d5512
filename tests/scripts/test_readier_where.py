"""scripts/readier_where.py: on which images one model says "foreground" more readily than another."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import load_script

from nnunet_kd.augmentation.views import VIEW_PRESETS, Views


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))  # as Python does for a script
    return load_script("readier_where")


def test_the_offset_is_what_the_reference_needs(script):
    reference = np.array([-3.0, -2.0, -1.0, 1.0])
    # two of four marked: anything between 1 and 2 does it
    assert script.offset_between(reference, np.array([-1.0, 5.0, 0.1, -9.0])) == pytest.approx(1.5)
    assert script.offset_between(reference, np.array([-1.0, 5.0, -2.0, -9.0])) == pytest.approx(0.0)
    assert np.isnan(script.offset_between(reference, -np.ones(4))) and np.isnan(script.offset_between(reference, np.ones(4)))


def test_every_operation_is_applied_alone_to_every_patch(script):
    patches, before = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), dict(VIEW_PRESETS)
    sets = script.view_sets(patches, "light", [False], seed=3)
    assert list(sets) == ["light", "gamma", "contrast", "brightness", "noise"] and before == VIEW_PRESETS
    assert torch.equal(sets["light"], Views("light")(patches, torch.Generator().manual_seed(3)))
    shifted = (sets["brightness"] - patches).flatten(1)
    assert (shifted.std(1) < 1e-5).all() and (shifted.mean(1).abs() > 0).all()


def test_the_table_has_means_over_seeds(script):
    found = {"a_seed0": {"S": 0.5, "S, gin": 1.0}, "a_seed1": {"S": 0.1, "S, gin": 0.0}, "b_seed0": {"S": -0.25, "S, gin": 0.0}}
    assert script.table(found).splitlines()[2:] == [
        "| S | +0.30 (+0.50, +0.10) | -0.25 (-0.25) |",
        "| S, gin | +0.50 (+1.00, +0.00) | +0.00 (+0.00) |",
    ]


def test_a_network_with_a_raised_bias_is_that_much_readier_everywhere(
    script, tiny_dataset, tiny_teacher, tmp_path, monkeypatch, capsys
):
    readier = tmp_path / "readier_seed0"
    shutil.copytree(tiny_teacher, readier)
    file = readier / "fold_0" / "checkpoint_final.pth"
    state = torch.load(file, map_location="cpu", weights_only=False)
    name = [n for n in state["network_weights"] if "seg_layers" in n and n.endswith("bias")][-1]
    state["network_weights"][name][1] += 0.5
    torch.save(state, file)
    reference = tmp_path / "reference_seed0"
    shutil.copytree(tiny_teacher, reference)

    def run(*models):
        out = tmp_path / "found.json"
        place = f"{tiny_dataset.id}:Tr"
        arguments = [*map(str, models), "--reference", str(reference), "--source", f"S={place}", "--domain", f"T={place}"]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--patches", "2", "-o", str(out)])
        script.main()
        return json.loads(out.read_text())

    found = run(readier, reference)
    assert list(found["readier_seed0"])[:2] == ["S", "S, strong"] and list(found["readier_seed0"])[-1] == "T"
    assert all(v == pytest.approx(0.5, abs=0.05) for v in found["readier_seed0"].values())
    assert all(v == pytest.approx(0.0, abs=0.05) for v in found["reference_seed0"].values())
    assert "| S, gin | +0.5" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no --reference of the seed of other_seed1"):
        run(tmp_path / "other_seed1")
