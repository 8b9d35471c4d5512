"""What nnU-Net reads in a dataset.json: the input channels, in either spelling, and the reader of the files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_kd.utils.errors import KDError


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


def reader_of(dataset_json: Mapping, example: Path) -> type[BaseReaderWriter]:
    """The reader that nnU-Net takes for a data set: what dataset.json names, else the first that can read its first image.

    The file decides where the ending does not: a .tif is a picture (NaturalImage2DIO) or a volume (Tiff3DIO).

    Raises:
        KDError: nnU-Net reads no such files, or not this one.
    """
    try:
        # nnU-Net prints the traceback of every reader that fails
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(dataset_json, str(example), verbose=False)
    except RuntimeError:
        raise KDError(
            f"cannot read {example} with any reader of nnU-Net's: the file is damaged (copy it again from its source), or of a "
            "kind that nnU-Net does not know"
        ) from None
