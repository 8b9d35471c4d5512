"""PolypGen (Ali et al., Scientific Data 2023): polyps from six centres, each a domain of its own; empty masks are kept.

Published layout, from public descriptions of PolypGen2021_MultiCenterData_v3, not seen by us: `data_C1/images_C1/NAME.jpg`,
`data_C1/masks_C1/NAME_mask.jpg`, ... data_C6; one image of C3 ends in "_", its mask without it. Seen: a resized copy of C1 to
C3 as `C1/images/NAME.jpg`, `C1/masks/NAME.png`. The single frames are read; the video frames in sequenceData are not, and
imagesAll_positive repeats both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nnunet_kd.datasets.endoscopy import PICTURE, write_polyps
from nnunet_kd.datasets.fundus.photographs import FundusCase
from nnunet_kd.datasets.nnunet_format import ConversionReport
from nnunet_kd.datasets.sources import SourceFiles, check_pairs

CENTRES = {"C1": 256, "C2": 301, "C3": 457, "C4": 227, "C5": 208, "C6": 88}  # published single frames
NAME = r"([^/]+?)_*"
IMAGES = rf"(?:data_)?(c[1-6])/images?(?:_c[1-6])?/{NAME}\.{PICTURE}"
MASKS = rf"(?:data_)?(c[1-6])/masks?(?:_c[1-6])?/{NAME}(?:_mask)?\.{PICTURE}"


def convert_polypgen(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "PolypGen",
) -> ConversionReport:
    """Write the single frames of PolypGen's centres, those that are there, as one nnU-Net dataset, all in imagesTr.

    Cases are named PolypGen_C1_NAME by centre, so that a pattern (`PolypGen_C1_*`) is a domain. An empty mask is an image
    without a polyp: it is written and counted. size: (width, height) to resize all to, in pixels. Raises KDError for what
    is wrong with the source or the target.
    """
    missing = [] if allow_missing else None
    report = write_polyps(
        lambda root: _cases(root, source, missing),
        {"set": "polypgen"},
        (source, raw, preprocessed, dataset_id, size, overwrite, name, missing),
        published=(_published, None),
        licence="CC BY 4.0",
        reference="Ali et al., A multi-centre polyp detection and segmentation dataset for generalisability assessment, "
        "Scientific Data 2023",
        keep=f"{IMAGES}|{MASKS}",
        parts=(),
        negatives=True,
    )
    cases_per_centre = Counter(map(_centre, report.train_cases))
    report.rows.append(("centres", ", ".join(f"{centre} ({n} cases)" for centre, n in sorted(cases_per_centre.items()))))
    return report


def _cases(root: Path, source: str | Path, missing: list[str] | None) -> list[FundusCase]:
    files = SourceFiles(root)
    images, masks = files.find(IMAGES), files.find(MASKS)
    expected = "folders C1 to C6, each with images and masks, or data_C1/images_C1 and data_C1/masks_C1, ... (docs/datasets.md)"
    whole = check_pairs(source, images, masks, "images of PolypGen", "mask", expected, missing)
    return [FundusCase(f"PolypGen_{key[0].upper()}_{images[key].stem.rstrip('_')}", images[key], masks[key]) for key in whole]


def _centre(case: str) -> str:
    return case.split("_")[1]


def _published(cases: Sequence[FundusCase]) -> int:
    return sum(CENTRES[centre] for centre in {_centre(case.name) for case in cases})
