"""docs/architecture.md's layout is a map: every room and every module of the package is on it, and nothing that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nnunet_kd"
MODULES = sorted(f.relative_to(PACKAGE) for f in PACKAGE.rglob("*.py") if f.name != "__init__.py")
EACH_ITS_OWN = Path("losses/literature")  # one file per loss: a new one needs no line on the map


def rooms() -> dict[Path, str]:
    """What the layout says of each folder of the package."""
    layout = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Layout")[1].split("## Data flow")[0]
    inside = layout.split("    nnunet_kd/\n")[1].split("\n    trainers/")[0]
    found: dict[Path, str] = {}
    room = above = Path()
    for line in inside.splitlines():
        if head := re.match(r"( {6}| {8})(\w+)/ +(?=\S)", line):
            if len(head[1]) == 6:
                room = above = Path(head[2])
            else:
                room = above / head[2]
            line = line[head.end() :]
        found[room] = f"{found.get(room, '')} {line.strip()}"
    return found


def test_every_room_is_on_the_map_and_there():
    folders = {f.parent.relative_to(PACKAGE) for f in PACKAGE.rglob("*.py")} - {Path()}
    assert set(rooms()) == folders


@pytest.mark.parametrize("module", [m for m in MODULES if m.parent != EACH_ITS_OWN], ids=str)
def test_every_module_is_named_in_its_room(module):
    room = rooms()[module.parent]
    assert re.search(rf"\b{module.stem}\b", room), f"docs/architecture.md: {module.parent}/ lacks {module.stem}:{room}"
