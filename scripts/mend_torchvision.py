"""Let torchvision be imported beside a CPU-only torch. Run by `make install` with the Python of the environment it
builds.

Why. nnU-Net needs torchvision only because dynamic-network-architectures imports timm, which imports torchvision.
PyPI's Linux wheel of torchvision is built against the CUDA build of torch: beside a CPU-only torch its compiled part
cannot be loaded. torchvision tolerates that, except in one place: while it is imported, it registers shape functions
for the two operators `torchvision::nms` and `torchvision::qnms` (box suppression) that only the compiled part
declares, and the import ends with "operator torchvision::nms does not exist". nnU-Net's built-in trainer is found
before that import happens. Every external trainer hits it, because the search for one walks through all of nnU-Net's
own trainers first.

What. This script imports torchvision in a fresh process. Only if that fails with exactly this error it writes two
small files into the environment's site-packages, and tries again:

  nnunet_kd_torchvision.pth   lets every start of this environment's Python, spawned workers included, load the module
  _nnunet_kd_torchvision.py   which imports nothing and waits until torchvision is imported; if torchvision's compiled
                              part cannot be loaded, it first declares the two operators, without an implementation

Nothing of nnU-Net calls them; a program that does gets torch's error that the operator has no implementation. Where
the compiled part loads, as with the CUDA build, nothing is written, and files written earlier do nothing. The fix
belongs to an environment, so it is no part of the installed package. To undo it, delete the two files. There is no
need for it where torch and torchvision both come from PyTorch's CPU index (https://download.pytorch.org/whl/cpu).

The last line on stdout is a JSON object: python, site_packages, torchvision (version), imported_before, written
(files), imports. Ends with 1 if torchvision still cannot be imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

SYMPTOM = "operator torchvision::nms does not exist"
MODULE = "_nnunet_kd_torchvision"
PTH = "nnunet_kd_torchvision.pth"

HOOK = '''\
"""Written by scripts/mend_torchvision.py of nnunet_kd, which explains it. To undo, delete this file and its .pth."""

import sys

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionFinder:
    """Finds torchvision as Python does, and runs `declare_operators` between finding and executing it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin:
            execute = spec.loader.exec_module

            def exec_module(module):
                declare_operators(spec.origin)
                execute(module)

            spec.loader.exec_module = exec_module
        return spec


def declare_operators(torchvision_init):
    from pathlib import Path

    import torch

    for library in Path(torchvision_init).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
            return  # the compiled part works and declares its operators itself
        except (ImportError, OSError):
            continue
    for operator in OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", SCHEMA)


sys.meta_path.insert(0, TorchvisionFinder)
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    site_packages = Path(sysconfig.get_path("purelib"))
    figures = {"python": sys.executable, "site_packages": str(site_packages)}

    version, error = import_torchvision()
    figures |= {"torchvision": version, "imported_before": version is not None, "written": []}
    if version is not None:
        print(f"torchvision {version} imports; nothing to mend")
    elif SYMPTOM not in error:
        print(f"torchvision cannot be imported, and not for the reason this script mends:\n{error}", file=sys.stderr)
    elif sys.prefix == sys.base_prefix:
        print(f"{sys.executable} is no virtual environment, so nothing is written; use `make install`", file=sys.stderr)
    else:
        (site_packages / f"{MODULE}.py").write_text(HOOK)
        (site_packages / PTH).write_text(f"import {MODULE}\n")
        figures["written"] = [f"{MODULE}.py", PTH]
        version, error = import_torchvision()
        figures["torchvision"] = version
        if version is not None:
            print(f"torchvision {version} did not import beside a CPU-only torch; it does now ({MODULE}.py, {PTH})")
        else:
            print(f"torchvision still cannot be imported:\n{error}", file=sys.stderr)
    figures["imports"] = version is not None
    print(json.dumps(figures))
    return 0 if figures["imports"] else 1


def import_torchvision() -> tuple[str | None, str]:
    """Import torchvision in a fresh process. Returns (version, "") or (None, what the process said)."""
    code = "import torchvision; print(torchvision.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return result.stdout.split()[-1], ""
    return None, result.stderr.strip()


if __name__ == "__main__":
    sys.exit(main())
