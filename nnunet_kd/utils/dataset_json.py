"""What dataset.json says of the input channels, in either of nnU-Net's spellings."""

from __future__ import annotations

from collections.abc import Mapping


def channel_names(dataset_json: Mapping) -> list[str]:
    """The input channels' names in the order of the files CASE_0000, CASE_0001, ...

    "modality" is how nnU-Net 1 called them. Where both are there, "channel_names" counts, as in nnU-Net's
    planner.

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
