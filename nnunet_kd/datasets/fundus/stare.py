"""STARE (Hoover et al., IEEE TMI 2000): 20 fundus photographs, each marked by two observers, Adam Hoover (ah) and
Valentina Kouznetsova (vk, who drew more of the thin vessels).

Published as three archives, stare-images.tar, labels-ah.tar and labels-vk.tar: `im0001.ppm.gz`, `im0001.ah.ppm.gz`,
`im0001.vk.ppm.gz`, ...; 700x605 pixels; labels 0 and 255; no field-of-view masks, no official split. The site states
no licence.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_kd.datasets.fundus.photographs import (
    MASK_FOLDERS,
    FundusCase,
    convert_cases,
    find_masks,
    masks_setting,
)
from nnunet_kd.datasets.fundus.preparation import check_options
from nnunet_kd.datasets.nnunet_format import ConversionReport, new_dataset_folder, new_report
from nnunet_kd.datasets.sources import SourceFiles, check_listed, opened
from nnunet_kd.utils.errors import KDError

NUMBERS = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)  # the marked images
OBSERVERS = ("ah", "vk")
SIZE = (700, 605)
KEEP = r"im\d{4}(?:\.(?:ah|vk))?\.ppm(?:\.gz)?"
EXPECTED = "the 20 images im0001.ppm .. im0324.ppm with im0001.ah.ppm or im0001.vk.ppm and so on, as .ppm or .ppm.gz"


def find_cases(
    source: str | Path, observer: str = "ah", fov_masks: str | Path | None = None, missing: list[str] | None = None
) -> list[FundusCase]:
    """The 20 cases, named STARE_0001 and so on, with the labels of one observer only.

    fov_masks: a folder of field-of-view masks (`fundus.find_masks`). missing: see `sources.check_listed`. Raises KDError if
    an image or a label of the observer is missing, or for an unknown observer.
    """
    if observer not in OBSERVERS:
        raise KDError(f"STARE has observers {' and '.join(OBSERVERS)}, not {observer}: correct --observer")
    files = SourceFiles(Path(source), without=MASK_FOLDERS)
    images, labels = files.find(r"im(\d{4})\.ppm(?:\.gz)?"), files.find(rf"im(\d{{4}})\.{observer}\.ppm(?:\.gz)?")
    wanted = {(f"{n:04d}",): f"im{n:04d}" for n in NUMBERS}
    kinds, masks = (
        {"images": images, f"labels of observer {observer}": labels},
        find_masks(fov_masks, Path(source), r"im(\d{4})"),
    )
    if masks is not None:
        kinds["field-of-view masks"] = masks
    complete = check_listed(source, kinds, wanted, "STARE", EXPECTED, missing)
    return [FundusCase(f"STARE_{k[0]}", images[k], labels[k], masks[k] if masks is not None else None) for k in complete]


def convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    channels: str = "green",
    fov_width: int | None = 512,
    observer: str = "ah",
    fov_masks: Path | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "STARE",
) -> ConversionReport:
    """Write STARE as an nnU-Net dataset. All cases go to imagesTr and labelsTr: it serves as an unseen domain, and
    nnU-Net's integrity check wants training cases.

    The field of view is found from the image, as none is published, or read from the folder `fov_masks`. allow_missing:
    leave out cases that lack a file. See `fundus.prepare` for channels and fov_width.
    Raises KDError for what is wrong with the source or the target folders.
    """
    check_options(channels, fov_width)
    with opened(source, raw, KEEP, parts=("stare-images", "labels-ah", "labels-vk")) as root:
        missing = [] if allow_missing else None
        cases = find_cases(root, observer, fov_masks, missing)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, missing_cases=missing)
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_cases(
                folder,
                cases,
                report,
                channels=channels,
                fov_width=fov_width,
                expected_size=SIZE,
                published_cases=len(NUMBERS),
                root=root,
                settings={"set": "stare", "observer": observer, "source": str(source), **masks_setting(fov_masks)},
                reference="Hoover et al., Locating blood vessels in retinal images by piecewise threshold probing of a matched "
                "filter response, IEEE TMI 2000",
                licence="none stated: see the site",
            )
    return report
