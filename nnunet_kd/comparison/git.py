"""The commit of the running code, and commits of results. Nothing else of a repository is touched."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import nnunet_kd
from nnunet_kd.comparison.locks import locked

_PACKAGE = Path(nnunet_kd.__file__).parent


def code_version() -> str:
    """Short commit of this package, with "-dirty" if its files differ from it; outside a repository the version."""
    commit = _git(_PACKAGE, "rev-parse", "--short", "HEAD")
    if commit is None or commit.returncode or _git(_PACKAGE, "ls-files", "--error-unmatch", "__init__.py").returncode:
        return f"v{nnunet_kd.__version__}"
    changed = _git(_PACKAGE, "status", "--porcelain", "--", ".").stdout.strip()
    return commit.stdout.strip() + ("-dirty" if changed else "")


def in_work_tree(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, lies in a git work tree."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    completed = _git(folder, "rev-parse", "--is-inside-work-tree")
    return completed is not None and completed.stdout.strip() == "true"


def commit(paths: Sequence[Path], message: str) -> str | None:
    """Commit these paths and nothing else, whatever is staged. Returns why it did not work, or None."""
    here = paths[0].absolute().parent
    names = [str(p.absolute()) for p in paths]
    lock = Path(_git(here, "rev-parse", "--absolute-git-dir").stdout.strip()) / "nnunet_kd_compare.lock"
    with locked(lock):
        for pause in (1, 3, 10, 0):  # somebody else's git command may hold the index for a moment
            done = _git(here, "add", "--", *names)
            if done.returncode == 0:
                if not _git(here, "status", "--porcelain", "--", *names).stdout:
                    return None
                done = _git(here, "commit", "--quiet", "-m", message, "--", *names)
            text = (done.stderr or done.stdout).strip()
            if "index.lock" not in text:
                break
            time.sleep(pause)
    if done.returncode == 0:
        return None
    return text.splitlines()[0] if text else f"git ended with {done.returncode}"


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess | None:
    """None if there is no git."""
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
