"""The comparison's CSV: one row per method, seed, dataset and case. Rows are only ever appended."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_kd.compare.locks import locked
from nnunet_kd.errors import KDError

COLUMNS = ("method", "seed", "dataset", "case", "dice", "iterations", "device", "commit", "config_hash", "params", "date",
           "cpu_seconds")  # fmt: skip
IDENTITY = ("method", "seed", "dataset", "params", "config_hash")


def read_rows(file: Path) -> list[dict[str, str]]:
    """All complete rows, as text. An empty list if there is no file yet.

    Raises:
        KDError: other columns than this program's, or a row with too few.
    """
    if not file.is_file():
        return []
    return _parse(file, file.read_bytes())


def append_rows(file: Path, rows: Sequence[dict[str, object]]) -> None:
    """Add rows in one piece, under a lock on the file. Rows that are there already (another process) are left out.

    A last line that a killed process left half-written is taken away first: its case counts as missing.
    """
    with locked(file) as fd:
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        whole = content[: content.rfind(b"\n") + 1]
        there = {(*_identity(r), r["case"]) for r in (_parse(file, whole) if whole else [])}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerows(r for r in rows if (*_identity(r), r["case"]) not in there)
        os.ftruncate(fd, len(whole))
        os.pwrite(fd, text.getvalue().encode(), len(whole))
        os.fsync(fd)


def cases_by_identity(rows: Iterable[dict[str, str]]) -> dict[tuple[str, ...], set[str]]:
    """``{(method, seed, dataset, params, config_hash): cases}``."""
    found: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        found.setdefault(_identity(row), set()).add(row["case"])
    return found


def _identity(row: dict) -> tuple[str, ...]:
    return tuple(str(row[c]) for c in IDENTITY)


def _parse(file: Path, content: bytes) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(content[: content.rfind(b"\n") + 1].decode("utf-8")), strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise KDError(f"{file} has other columns than {','.join(COLUMNS)}: name another csv, or mend its first line")
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values() or not row["seed"].isdigit() or not _is_number(row["dice"]):
            raise KDError(f"{file}, line {number} is no row of {','.join(COLUMNS)}: mend or remove it")
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
