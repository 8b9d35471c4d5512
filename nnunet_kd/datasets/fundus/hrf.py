"""HRF (Budai et al., International Journal of Biomedical Imaging 2013): 45 fundus photographs, 15 each of healthy eyes
(h), with diabetic retinopathy (dr) and with glaucoma (g).

Published layout: `images/01_h.jpg`, `images/01_dr.JPG`, `manual1/01_h.tif`, `mask/01_h_mask.tif`, ..., or one archive of
each kind per class (healthy.zip, healthy_manualsegm.zip, healthy_fovmask.zip, ...), where the same files lie flat;
3504x2336 pixels. Licence CC BY 4.0.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_kd.datasets.fundus.photographs import FundusCase, convert_cases
from nnunet_kd.datasets.fundus.preparation import check_options
from nnunet_kd.datasets.nnunet_format import (
    ConversionReport,
    check_choice,
    folds_of_cases,
    new_dataset_folder,
    new_report,
    write_splits,
)
from nnunet_kd.datasets.sources import SourceFiles, check_listed, opened

CLASSES = ("h", "dr", "g")
SPLITS = {"first5": range(1, 6), "all": range(1, 16)}  # the numbers of each class that are trained on
N_FOLDS = 5
SIZE = (3504, 2336)
KEEP = r"\d\d_(?:h|dr|g)(?:_mask)?\.(?:jpe?g|tiff?)"
EXPECTED = "15 images of each class (01_h.jpg, 01_dr.JPG, 01_g.jpg, ...) with labels 01_h.tif and masks 01_h_mask.tif"


def find_cases(source: str | Path, split: str = "first5", missing: list[str] | None = None) -> list[FundusCase]:
    """The 45 cases, named HRF_h_01 and so on, with tag "Tr" or "Ts" by `split`.

    missing: see `sources.check_listed`. Raises KDError if an image, a label or a mask is missing, or for an unknown split.
    """
    check_choice("split", split, SPLITS, of="HRF")
    files = SourceFiles(Path(source))
    kinds = {
        "images": files.find(r"(\d\d)_(h|dr|g)\.jpe?g"),
        "labels": files.find(r"(\d\d)_(h|dr|g)\.tiff?"),
        "field-of-view masks": files.find(r"(\d\d)_(h|dr|g)_mask\.tiff?"),
    }
    wanted = {(f"{n:02d}", c): f"{n:02d}_{c}" for c in CLASSES for n in range(1, 16)}
    complete = check_listed(source, kinds, wanted, "HRF", EXPECTED, missing)
    images, labels, masks = kinds.values()
    return [
        FundusCase(f"HRF_{c}_{n}", images[n, c], labels[n, c], masks[n, c], tag="Tr" if int(n) in SPLITS[split] else "Ts")
        for n, c in complete
    ]


def convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    channels: str = "green",
    fov_width: int | None = 512,
    split: str = "first5",
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "HRF",
) -> ConversionReport:
    """Write HRF as an nnU-Net dataset.

    split: "first5" (01-05 of each class in imagesTr, the others in imagesTs; `splits_final.json` with five folds, one
    number of every class each) or "all" (everything in imagesTr: an unseen domain). allow_missing: leave out cases that
    lack a file. See `fundus.prepare` for channels
    and fov_width. Raises KDError for what is wrong with the source or the target folders.
    """
    check_options(channels, fov_width)
    with opened(source, raw, KEEP, parts=("images", "manual1", "mask")) as root:
        missing = [] if allow_missing else None
        cases = find_cases(root, split, missing)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, missing_cases=missing)
        folds = []
        if split == "first5":
            train = [f"HRF_{c}_{n:02d}" for c in CLASSES for n in SPLITS[split]]
            folds = folds_of_cases(train, lambda case: case[-2:], N_FOLDS, present={c.name for c in cases})
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_cases(
                folder,
                cases,
                report,
                channels=channels,
                fov_width=fov_width,
                expected_size=SIZE,
                published_cases=45,
                root=root,
                settings={"set": "hrf", "split": split, "source": str(source)},
                reference="Budai et al., Robust vessel segmentation in fundus images, International Journal of Biomedical "
                "Imaging 2013",
                licence="CC BY 4.0",
            )
            if folds:
                write_splits(preprocessed, report.dataset, folds, overwrite)
    report.folds = len(folds)
    return report
