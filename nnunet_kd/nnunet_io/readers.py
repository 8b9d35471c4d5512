"""Which of nnU-Net's readers reads the files of a data set."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_kd.utils.errors import KDError


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
