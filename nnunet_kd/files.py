"""Writing files so that nobody ever sees half of one, and what tells that one has not changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically: nnU-Net reads plans, splits and dataset.json while other commands run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal; empty for a file that cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError:
        return ""
    return digest.hexdigest()
