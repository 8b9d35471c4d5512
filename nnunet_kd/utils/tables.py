"""Tables as text: aligned in columns for a terminal, or as Markdown. The first row is the head."""

from __future__ import annotations

from collections.abc import Sequence


def aligned_table(rows: Sequence[Sequence[str]], texts: int = 1, rule: bool = False) -> str:
    """Columns two spaces apart: the first ``texts`` to the left, numbers to the right. ``rule``: a line below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if rule:
        rows = [rows[0], ["-" * w for w in widths], *rows[1:]]
    return "\n".join(
        "  ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
