"""`nnunet-kd compare` finds a result by its config_hash: names of presets and methods may change, their hash may not.

The golden hashes are those of commit 39a753f, on plans of a tiny data set that lie beside them. New methods are added by
`python tests/comparison/test_config_hashes.py`, which changes none that is there.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from nnunet_kd.comparison.checked_settings import read_settings
from nnunet_kd.comparison.planning import Source, _runs
from nnunet_kd.comparison.sizes import templates_of
from nnunet_kd.config.presets import NAMES

ROOT = Path(__file__).parents[2]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "config_hashes"
GOLDEN = FIXTURE / "golden.json"
FILES = sorted((ROOT / "docs" / "results").glob("*.yaml"))
COMMON = {
    "dataset": 950,
    "configuration": "2d",
    "csv": "x.csv",
    "models": "models",
    "seeds": [0],
    "domains": {"all": "950"},
    "teacher": {"features": [4, 8, 8], "iterations": 10},
    "student": {"features": [2, 4, 4], "iterations": 10},
}


def hashes(methods: dict, cpu_precision: str | None, scratch: Path) -> dict[str, str]:
    """``{method: config_hash}`` of a comparison of these methods, their widths left out, on the tiny data set."""
    folder = scratch / "Dataset950_Tiny"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nnUNetPlans.json", "dataset.json"):
        shutil.copy(FIXTURE / name, folder)
    methods = {name: {k: v for k, v in m.items() if k != "features"} for name, m in methods.items()}
    file = scratch / "compare.yaml"
    file.write_text(yaml.safe_dump({**COMMON, "methods": methods, "cpu_precision": cpu_precision}))
    settings = read_settings(file)
    source = Source("", folder.name, folder, scratch)
    return {run.method: run.config_hash for run in _runs(settings, source, 0, templates_of(settings, folder))}


def of_presets(scratch: Path, presets=NAMES) -> dict[str, str]:
    return hashes({"teacher": {"role": "teacher"}} | {f"m{n}": {"preset": p} for n, p in enumerate(presets)}, None, scratch)


def of_file(file: Path, scratch: Path) -> dict[str, str]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return hashes(content["methods"], content.get("cpu_precision"), scratch)


def named(presets, scratch: Path) -> dict[str, str]:
    found = of_presets(scratch, presets)
    return {p: found[f"m{n}"] for n, p in enumerate(presets)}


def golden() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_preset_name_keeps_its_hash(nnunet_folders, tmp_path):
    expected = golden()["presets"]
    assert named(list(expected), tmp_path) == expected


def test_a_new_name_has_the_hash_of_the_old_one():
    presets = golden()["presets"]
    assert presets["kd+adjusted+mirrored"] == presets["default"] and presets["all"] == presets["paper"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_method_of_the_published_tables_keeps_its_hash(nnunet_folders, file, tmp_path):
    found, expected = of_file(file, tmp_path), golden()["files"][file.name]
    assert {name: found.get(name) for name in expected} == expected


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("nnUNet_raw", tempfile.mkdtemp())
    before = golden() if GOLDEN.is_file() else {"presets": {}, "files": {}}
    kept = [name for name in NAMES if name != "gkd"]  # which has no rows yet and is still to get its lasting form
    now = {"presets": named(kept, Path(tempfile.mkdtemp())), "files": {}}
    for file in FILES:
        now["files"][file.name] = of_file(file, Path(tempfile.mkdtemp())) | before["files"].get(file.name, {})
    now["presets"] |= before["presets"]
    GOLDEN.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
