"""What `import nnunet_kd` shows: every name is there, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nnunet_kd

HEAVY = ("torch", "nnunetv2", "numpy", "scipy", "matplotlib")


@pytest.mark.parametrize("name", nnunet_kd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(nnunet_kd, name) is not None and name in dir(nnunet_kd)


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse(Path(nnunet_kd.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    imported = {alias.asname for node in block.body for alias in node.names}
    assert imported == set(nnunet_kd.__all__) - {"__version__"}
    assert (Path(nnunet_kd.__file__).parent / "py.typed").is_file()


def test_every_loss_of_the_registry_is_public():
    for loss in nnunet_kd.losses.LOSSES.values():
        assert getattr(nnunet_kd.losses, loss.__name__) is loss and loss.__name__ in nnunet_kd.losses.__all__


def test_what_is_shown_works():
    logits = torch.randn(2, 3, 8, 8)
    assert nnunet_kd.KD()(logits, logits).item() == pytest.approx(0, abs=1e-6)
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    assert nnunet_kd.frechet_distance(vectors, vectors + 1) == pytest.approx(4)
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        nnunet_kd.Nonsense  # noqa: B018


@pytest.mark.parametrize("module", ["nnunet_kd", "nnunet_kd.cli.main"])
def test_importing_loads_nothing_heavy(module):
    program = f"import sys, {module}; print(sorted(set(sys.modules) & {set(HEAVY)}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_costs_hardly_more_than_starting_python():
    """Importing torch alone takes seconds. Processor time, the least of three runs: other programs do not count."""

    def seconds(*command: str) -> float:
        times = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    bare = seconds("-c", "import argparse, pathlib; argparse.ArgumentParser().format_help()")
    assert seconds("-m", "nnunet_kd.cli.main", "--help") < 4 * bare
