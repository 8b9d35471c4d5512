"""bfloat16 on a CPU without the instructions: said at the start of a training and of a comparison."""

import time

import pytest
import torch
from compare_lab import lab
from small_runs import known_trainers, make, student

from nnunet_kd.comparison.running import loop
from nnunet_kd.training import scheduled
from nnunet_kd.utils import bfloat16 as half_speed

__all__ = ["lab"]  # the fixture


@pytest.mark.parametrize(("slowdown", "warns"), [(0.5, False), (1.4, False), (2.0, True), (57.3, True)])
def test_the_warning_names_the_slowdown_and_the_way_out(monkeypatch, slowdown, warns):
    monkeypatch.setattr(half_speed, "bfloat16_slowdown", lambda: slowdown)
    warning = half_speed.bfloat16_warning()
    assert (warning is not None) == warns
    assert not warns or (f"{slowdown:.0f} times" in warning and "\n" not in warning and '"float32"' in warning)


def test_it_is_measured(monkeypatch):
    plain = half_speed.F.conv2d

    def slow_in_half(x, *args, **more):
        if x.dtype == torch.bfloat16:
            time.sleep(0.02)
        return plain(x, *args, **more)

    monkeypatch.setattr(half_speed.F, "conv2d", slow_in_half)
    assert half_speed.bfloat16_slowdown() > 5


def test_measuring_leaves_random_numbers_and_threads_as_they_are():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert half_speed.bfloat16_slowdown() > 0
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_says_it_once_and_only_in_bfloat16(tiny_teacher, monkeypatch, precision):
    known_trainers(monkeypatch)
    monkeypatch.setattr(scheduled, "bfloat16_warning", lambda: "half is slow here")
    section = {"schedule": {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "cpu_precision": precision}}
    trainer = make("nnUNetTrainerGKD", student(tiny_teacher, f"KDspeed{precision}", **section))
    said = []
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *words, **_: said.append(" ".join(map(str, words))))
    trainer.on_train_start()
    assert sum("WARNING: half is slow here" in line for line in said) == (precision == "bfloat16")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_comparison_says_it_before_its_first_training(lab, monkeypatch, capsys, precision):
    monkeypatch.setattr(loop, "bfloat16_warning", lambda: "half is slow here")
    monkeypatch.setattr(loop, "work", lambda *args, **more: {})
    lab.compare(cpu_precision=precision)
    assert ("WARNING: half is slow here" in capsys.readouterr().out) == (precision == "bfloat16")
