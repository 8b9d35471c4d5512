"""What nnU-Net's dataset.json says, in either of its spellings: "channel_names", or "modality" as nnU-Net 1 wrote it."""

from __future__ import annotations

from collections.abc import Mapping


def channel_names(dataset_json: Mapping) -> list[str]:
    """The input channels' names in the order of the files CASE_0000, CASE_0001, ...

    Where both spellings are there, "channel_names" counts: nnU-Net's planner reads it first, too.

    Raises:
        KeyError: neither is there, or it is no object of names.
    """
    names = dataset_json["channel_names" if "channel_names" in dataset_json else "modality"]
    if not isinstance(names, Mapping):
        raise KeyError("channel_names")
    return [str(names[i]) for i in sorted(names, key=_number)]


def _number(index: str) -> tuple[bool, int]:
    """Numbers by value; what is none stays in the written order (sorting is stable), as nnU-Net takes the entries."""
    return not str(index).isdigit(), int(index) if str(index).isdigit() else 0
