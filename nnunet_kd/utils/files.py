"""Writing files so that nobody ever sees half of one, and what tells that one is whole and has not changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically: nnU-Net reads plans, splits and dataset.json while other commands run."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def check_gzip(path: Path) -> None:
    """Unpack a gzip file to its end, where length and checksum are compared: SimpleITK fills up a truncated one with zeros and
    says nothing. Raises OSError, EOFError or zlib.error for a damaged one."""
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


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
