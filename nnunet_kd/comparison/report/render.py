"""A table as Markdown or as LaTeX with booktabs, and rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_kd.utils.tables import markdown_table

_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


@dataclass
class Table:
    """Cells as text; the first ``texts`` columns are words, the others numbers. ``notes`` are sentences below it."""

    caption: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    texts: int = 1


def markdown(tables: Sequence[Table]) -> str:
    """The tables one below the other, each with its caption above and its notes below."""
    parts = []
    for t in tables:
        if t.caption:
            parts.append(t.caption)
        if t.header:
            parts.append(markdown_table([t.header, *t.rows]))
        parts += t.notes
    return "\n\n".join(parts)


def latex(tables: Sequence[Table]) -> str:
    r"""One ``table`` environment each, for a document with ``\usepackage{booktabs}``."""
    parts = ["% \\usepackage{booktabs}"]
    for t in tables:
        if not t.header:
            parts += [f"% {_escape(text)}" for text in (t.caption, *t.notes) if text]
            continue
        columns = "l" * t.texts + "r" * (len(t.header) - t.texts)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(' '.join([t.caption, *t.notes]).strip())}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_row(t.header),
            r"\midrule",
            *map(_latex_row, t.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with a header of all their keys; None and missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for r in rows for k in r)), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(_escape, cells))} \\\\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
