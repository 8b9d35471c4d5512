"""The comparison's CSV: one row per method, seed, dataset and case. Rows are only ever appended, or measured again.

Every file has COLUMNS. Those of OPTIONAL came later: a file gets ADDED with its first row of a named source or fold, MEASURED
with its first row that holds them. The rows before then have them empty.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunet_kd.comparison.locks import locked
from nnunet_kd.utils.errors import KDError

COLUMNS = (
    "method",
    "seed",
    "dataset",
    "case",
    "dice",
    "iterations",
    "device",
    "commit",
    "config_hash",
    "params",
    "date",
    "cpu_seconds",
)
ADDED = ("source", "fold")
# hd95: mm, or pixels; truth_empty: 0, 1; marked: pixels predicted as foreground; dice_per_label: "1:0.9;2:nan", of several
MEASURED = ("hd95", "truth_empty", "marked", "best_dice", "best_offset", "dice_per_label")
OPTIONAL = (*ADDED, *MEASURED)
IDENTITY = ("method", "seed", "dataset", "params", "config_hash")  # source and fold are part of the hash


def read_rows(file: Path) -> list[dict[str, str]]:
    """All complete rows, as text, each with COLUMNS and OPTIONAL. An empty list if there is no file yet.

    Raises:
        KDError: other columns than this program's, or a row with too few.
    """
    if not file.is_file():
        return []
    return _parse(file, file.read_bytes())[0]


def append_rows(file: Path, rows: Sequence[dict[str, object]]) -> None:
    """Add rows in one piece, under a lock on the file. Rows that are there already (another process) are left out.

    A last line that a killed process left half-written is taken away first: its case counts as missing.
    """
    with _locked_still(file) as fd:
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        whole = content[: content.rfind(b"\n") + 1]
        before, columns = _parse(file, whole) if whole else ([], COLUMNS)
        existing_cases = {(*identity(r), r["case"]) for r in before}
        new = [r for r in rows if (*identity(r), r["case"]) not in existing_cases]
        if _columns_for(columns, new) != columns:
            _replace(file, _columns_for(columns, new), [*before, *new])
            return
        os.ftruncate(fd, len(whole))
        os.pwrite(fd, _text(columns, new, header=not whole), len(whole))
        os.fsync(fd)


def replace_rows(file: Path, rows: Sequence[dict[str, object]]) -> None:
    """Put rows in the place of those of the same run and case, all at once. Others are left out: nothing is added."""
    new = {(*identity(r), r["case"]): r for r in rows}
    with _locked_still(file) as fd:
        before, columns = _parse(file, os.pread(fd, os.fstat(fd).st_size, 0))
        _replace(file, _columns_for(columns, rows), [new.get((*identity(r), r["case"]), r) for r in before])


def part_of(file: Path, name: str) -> Path:
    """The CSV of one job, for `take_over_parts` once the job has renamed it to NAME.done.csv."""
    return file.with_name(f"{file.name}.parts") / f"{name}.csv"


def take_over_parts(file: Path) -> None:
    """Add the rows of finished jobs (CSV.parts/NAME.done.csv) and remove those files."""
    for part in sorted(part_of(file, "x").parent.glob("*.done.csv")):
        try:
            append_rows(file, read_rows(part))
            part.unlink()
        except FileNotFoundError:  # another process was quicker
            continue


def cases_by_identity(rows: Iterable[dict[str, str]]) -> dict[tuple[str, ...], set[str]]:
    """``{(method, seed, dataset, params, config_hash): cases}``."""
    by_identity: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        by_identity.setdefault(identity(row), set()).add(row["case"])
    return by_identity


def _columns_for(columns: Sequence[str], rows: Sequence[dict[str, object]]) -> tuple[str, ...]:
    """The columns of a file that has ``columns`` and gets ``rows``."""
    needed = [c for group in (ADDED, MEASURED) for c in group if any(r.get(g, "") != "" for r in rows for g in group)]
    if set(needed) <= set(columns):
        return tuple(columns)
    return (*COLUMNS, *(c for c in OPTIONAL if c in needed or c in columns))


def _replace(file: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Write another file that then takes this one's place: a kill in the middle leaves the old one whole."""
    temporary = file.with_name(f".{file.name}.tmp{os.getpid()}")
    temporary.write_bytes(_text(columns, rows, header=True))
    os.replace(temporary, file)


@contextmanager
def _locked_still(file: Path) -> Iterator[int]:
    """The lock of ``file``, not of one that another process has replaced while we waited."""
    while True:
        with locked(file) as fd:
            if file.exists() and os.path.samestat(os.fstat(fd), file.stat()):
                yield fd
                return


def _text(columns: Sequence[str], rows: Iterable[dict], header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def identity(row: dict) -> tuple[str, ...]:
    """Which run on which dataset a row is of."""
    return tuple(str(row[c]) for c in IDENTITY)


def _parse(file: Path, content: bytes) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """The rows and the columns."""
    reader = csv.DictReader(io.StringIO(content[: content.rfind(b"\n") + 1].decode("utf-8")), strict=True)
    columns = tuple(reader.fieldnames or ())
    more = columns[len(COLUMNS) :]
    if columns[: len(COLUMNS)] != COLUMNS or not set(more) <= set(OPTIONAL) or len(set(more)) < len(more):
        raise KDError(f"{file} has other columns than {','.join(COLUMNS)}: name another csv, or mend its first line")
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        numbers = [row.get("dice"), *(row.get(c) or "0" for c in MEASURED[:-1])]
        if None in row or None in row.values() or not row["seed"].isdigit() or not all(map(_is_number, numbers)):
            raise KDError(f"{file}, line {number} is no row of {','.join(columns)}: mend or remove it")
        row |= {c: row.get(c, "") for c in OPTIONAL}
    return rows, columns


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
