"""The cases of a folder: CASE_0000.ending, CASE_0001.ending, ..., one file per channel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import RunnerError
from .images import READERS
from .model import Model


@dataclass(frozen=True)
class Case:
    """One case: its name, its files by channel, and the ending that its segmentation gets too."""

    name: str
    files: list[Path]
    ending: str


def find_cases(folder: Path, model: Model) -> list[Case]:
    """All cases of `folder`, by name. Files end as the model's training images did, or in another way its reader knows.

    Raises:
        RunnerError: there is no folder or no image in it, or a channel is missing.
    """
    if not folder.is_dir():
        raise RunnerError(f"no folder {folder}: check the path")
    ending, files_by_case = _files(folder, model)
    cases = []
    # a single file may hold all channels (RGB); where any case has several, all must
    single = all(list(by_channel) == [0] for by_channel in files_by_case.values())
    wanted = range(1 if single else len(model.channel_names))
    for name, by_channel in sorted(files_by_case.items()):
        for channel in wanted:
            if channel not in by_channel:
                file, title = folder / f"{name}_{channel:04d}{ending}", model.channel_names[channel]
                raise RunnerError(f"{file} is missing: add this channel ({title}) of {name}")
        extra = sorted(set(by_channel) - set(wanted))
        if extra:
            channels = len(model.channel_names)
            raise RunnerError(f"{by_channel[extra[0]]} is channel {extra[0]}, the model has {channels}: take the file away")
        cases.append(Case(name, [by_channel[channel] for channel in wanted], ending))
    return cases


def _files(folder: Path, model: Model) -> tuple[str, dict[str, dict[int, Path]]]:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    unnumbered = None
    for ending in dict.fromkeys((model.file_ending, *READERS[model.reader])):
        files_by_case: dict[str, dict[int, Path]] = {}
        for name in (n for n in names if n.endswith(ending)):
            match = re.fullmatch(r"(.+)_(\d{4})", name[: -len(ending)])
            if match:
                files_by_case.setdefault(match[1], {})[int(match[2])] = folder / name
            else:
                unnumbered = unnumbered or name
        if files_by_case:
            return ending, files_by_case
    if unnumbered:
        raise RunnerError(f"{folder / unnumbered} does not tell its channel: name files CASE_0000, CASE_0001, ... by channel")
    raise RunnerError(f"{folder} holds no image that ends in {model.file_ending}: check the path")
