"""What an installation consists of: metadata, trainer shims, scripts, the environment that `make install` builds."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nnunet_kd
from nnunet_kd.utils import environment as paths
from nnunet_kd.utils.errors import KDError

ROOT = Path(__file__).parents[1]
SHIMS = sorted(file.stem for file in (ROOT / "trainers").glob("nnUNetTrainer*.py"))
MEND = ROOT / "scripts" / "mend_torchvision.py"
DISTRIBUTIONS = {
    "dynamic_network_architectures": "dynamic-network-architectures",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "yaml": "pyyaml",
}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


def setup_argument(name: str):
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)]
    setup = next(call for call in calls if getattr(call.func, "id", "") == "setup")
    return next(ast.literal_eval(k.value) for k in setup.keywords if k.arg == name)


def declared() -> dict[str, Requirement]:
    """install_requires of setup.py, by lower-case name."""
    listed = setup_argument("install_requires")
    return {requirement.name.lower(): requirement for requirement in map(Requirement, listed)}


def optional() -> set[str]:
    """Names in extras_require, but for what tests alone need."""
    extras = setup_argument("extras_require")
    return {Requirement(text).name.lower() for extra, listed in extras.items() if extra != "test" for text in listed}


def test_what_is_imported_is_declared_and_the_other_way_round():
    imported = set()
    for file in (ROOT / "nnunet_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"nnunet_kd"}
    assert {"torch", "nnunetv2", "numpy"} <= third_party
    found = {DISTRIBUTIONS.get(name, name) for name in third_party}
    assert declared().keys() - {"setuptools"} == found - optional()


def test_constraints_lie_within_the_declared_ranges():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert {"torch", "nnunetv2"} <= pins.keys()
    for name, requirement in declared().items():
        if name in pins:
            assert requirement.specifier.contains(pins[name]), requirement


@pytest.mark.parametrize("name", SHIMS)
def test_nnunet_finds_the_trainer_of_the_package(name, monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_kd.training import distillation as trainer
    from nnunet_kd.training import named as named_trainers

    monkeypatch.setenv("nnUNet_extTrainer", str(paths.trainers_path()))
    found = recursive_find_trainer_class_by_name(name)
    assert found is (getattr(named_trainers, name, None) or getattr(trainer, name))
    assert pickle.loads(pickle.dumps(found)) is found  # DDP's spawned processes need that


def test_every_trainer_has_its_shim():
    from nnunet_kd.training import distillation as trainer
    from nnunet_kd.training import named as named_trainers

    ours = {name for name in {**vars(trainer), **vars(named_trainers)} if name.startswith("nnUNetTrainer")} - {"nnUNetTrainer"}
    assert ours == set(SHIMS)


def test_missing_trainers_are_an_error_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "find_spec", lambda name: None)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "nnunet_kd" / "utils" / "environment.py"))
    with pytest.raises(KDError, match="install nnunet-kd again"):
        paths.trainers_path()


# `python SCRIPT --help` of every script, one after the other: torch and nnU-Net are imported once
HELP = """
import contextlib, io, json, os, runpy, sys, traceback

said = {}
for script in sys.argv[1:]:
    sys.argv, sys.path[0], out, code = [script, "--help"], os.path.dirname(script), io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            code = traceback.format_exc()
    said[os.path.basename(script)] = [code, out.getvalue()]
print(json.dumps(said))
"""
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int | str, str]]:
    """Exit code, or what was raised, and output of every script's --help."""
    result = run(sys.executable, "-c", HELP, *SCRIPTS, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("script", [script.name for script in SCRIPTS])
def test_scripts_explain_themselves(helps, script):
    code, said = helps[script]
    assert code == 0 and "usage:" in said and len(said) > 200, (code, said)


def test_make_says_which_python_it_needs(tmp_path):
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(MEND, tmp_path / "scripts")
    (tmp_path / "python3.9").write_text("#!/bin/sh\nexit 1\n")  # what 3.9 answers to the version check
    (tmp_path / "python3.9").chmod(0o755)
    result = run("make", "install", "PYTHON=./python3.9", cwd=tmp_path)
    assert result.returncode != 0
    assert "./python3.9 is missing or older than Python 3.10; name a newer one" in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_the_wheel_holds_the_trainers_and_works_where_it_is_installed(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("nnunet_kd", "trainers", "tests", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.split("-")[:2] == ["nnunet_kd", nnunet_kd.__version__]

    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"nnunet_kd/trainers/{shim}.py" for shim in SHIMS} <= names
    templates = {str(file.relative_to(ROOT)) for file in (ROOT / "nnunet_kd").rglob("*.j2")}
    assert templates | {f"nnunet_kd/deploy/runner/{name}" for name in ("README.md", "requirements.txt")} <= names
    assert "nnunet_kd/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"nnunet_kd", f"nnunet_kd-{nnunet_kd.__version__}.dist-info"}
    assert any(name.endswith("/LICENSE") for name in names)

    assert run(*pip, "install", "--no-deps", "--target", site, wheel).returncode == 0
    code = (
        "import os; from nnunet_kd.utils.environment import trainers_path\n"
        "os.environ['nnUNet_extTrainer'] = str(trainers_path())\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "import nnunet_kd.training.named\n"
        "assert find('nnUNetTrainerGKD') is nnunet_kd.training.named.nnUNetTrainerGKD\n"
        "print(trainers_path())"
    )
    installed = {**os.environ, "PYTHONPATH": str(site)}
    result = run(sys.executable, "-c", code, cwd=tmp_path, env=installed)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.splitlines()[-1]) == (site / "nnunet_kd" / "trainers").resolve()
    command = run(site / "bin" / "nnunet-kd", "trainers-path", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
    assert command.stdout.strip() == str((site / "nnunet_kd" / "trainers").resolve())


class Environment:
    """A bare virtual environment whose packages a test writes itself."""

    def __init__(self, folder: Path) -> None:
        assert run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
        self.python = folder / "bin" / "python"
        self.site = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())

    def package(self, name: str, code: str) -> None:
        (self.site / name).mkdir()
        (self.site / name / "__init__.py").write_text(code)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        return run(self.python, *arguments, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})

    def mend(self) -> tuple[int, dict, str]:
        result = self.run(MEND)
        return result.returncode, json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / "venv")


FAKE_TORCH = """
import types
defined = set()
library = types.SimpleNamespace(define=lambda name, schema: defined.add(name))
def load_library(path):
    if 'broken' in open(path).read():
        raise OSError('libc10_cuda.so: cannot open shared object file')
    defined.update(('torchvision::nms', 'torchvision::qnms'))
ops = types.SimpleNamespace(load_library=load_library, torchvision=types.SimpleNamespace())
"""
FAKE_TORCHVISION = """
__version__ = '0.0'
import torch
if not {'torchvision::nms', 'torchvision::qnms'} <= torch.defined:
    raise RuntimeError('operator torchvision::nms does not exist')
"""


def test_mend_declares_the_operators_where_the_compiled_part_does_not_load(environment):
    environment.package("torch", FAKE_TORCH)
    environment.package("torchvision", FAKE_TORCHVISION)
    (environment.site / "torchvision" / "_C.so").write_text("broken")

    code, figures, _ = environment.mend()
    assert (code, figures["imported_before"], figures["imports"]) == (0, False, True)
    assert set(figures["written"]) == {"_nnunet_kd_torchvision.py", "nnunet_kd_torchvision.pth"}
    assert environment.run("-c", "import torchvision").returncode == 0
    code, figures, _ = environment.mend()
    assert (code, figures["imported_before"], figures["written"]) == (0, True, [])

    # Nothing happens before torchvision is imported, not even when somebody asks where it is.
    idle = "import importlib.util, sys; importlib.util.find_spec('torchvision'); assert 'torch' not in sys.modules"
    assert environment.run("-c", idle).returncode == 0
    # A torch that fits comes later: the operators are the compiled part's own again.
    (environment.site / "torchvision" / "_C.so").write_text("fits")
    no_declaration = "import torch; torch.library = None; import torchvision"
    assert environment.run("-c", no_declaration).returncode == 0


@pytest.mark.parametrize(
    ("torchvision", "code", "said"),
    [
        ("__version__ = '0.0'", 0, ""),
        ("raise ImportError('libpng is missing')", 1, "libpng is missing"),
        (None, 1, "No module named 'torchvision'"),
    ],
)
def test_mend_writes_nothing_without_that_error(environment, torchvision, code, said):
    if torchvision:
        environment.package("torchvision", torchvision)
    before = set(environment.site.iterdir())
    returned, figures, stderr = environment.mend()
    assert (returned, figures["written"]) == (code, []) and said in stderr
    assert set(environment.site.iterdir()) == before


@pytest.mark.slow
def test_mend_with_the_real_torchvision(environment, tmp_path):
    """The packages of the running environment, seen from a new one that has none of its .pth files."""
    (environment.site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    works = environment.run("-c", "import torchvision").returncode == 0
    code, figures, stderr = environment.mend()
    assert code == 0, stderr
    assert figures["imported_before"] == works and bool(figures["written"]) == (not works)
    assert re.match(r"\d+\.\d+", figures["torchvision"])
    script = tmp_path / "worker.py"
    script.write_text(
        "import multiprocessing\n"
        "def version(_):\n"
        "    import timm, torchvision\n"
        "    return torchvision.__version__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(version, [0])[0])\n"
    )
    assert environment.run(script).stdout.split()[-1] == figures["torchvision"]
