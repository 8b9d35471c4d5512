"""CHASE_DB1 (Kingston University; Fraz et al., IEEE TBME 2012): 28 fundus photographs, both eyes of 14 children, two
observers.

Published layout, flat: `Image_01L.jpg`, `Image_01L_1stHO.png`, `Image_01L_2ndHO.png`, ..., `Image_14R...`; 999x960
pixels; no field-of-view masks. Licence CC BY 4.0.
"""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_kd.datasets.fundus.corruptions import corrupted
from nnunet_kd.datasets.fundus.photographs import (
    MASK_FOLDERS,
    FundusCase,
    convert_cases,
    find_masks,
    list_folder,
    masks_setting,
)
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
from nnunet_kd.utils.errors import KDError

CHILDREN = tuple(f"{i:02d}" for i in range(1, 15))
# Two opposite customs are in use; in both, the two eyes of a child stay together.
SPLITS = {"first20": CHILDREN[:10], "last8train": CHILDREN[10:]}  # the children trained on
OBSERVERS = {1: "1stho", 2: "2ndho"}
N_FOLDS = 5
IMAGE_NAME = r"image_(\d\d[lr])"
IMAGE, KEEP = rf"{IMAGE_NAME}\.(?:jpe?g|png|tiff?)", r"image_\d\d[lr](?:_[12](?:st|nd)ho)?\.(?:jpe?g|png|tiff?)"
EXPECTED = (
    "28 images Image_01L.jpg .. Image_14R.jpg with Image_01L_1stHO.png (observer 1) and Image_01L_2ndHO.png "
    "(observer 2) beside them"
)


def find_cases(
    source: str | Path,
    observer: int = 1,
    split: str = "first20",
    fov_masks: str | Path | None = None,
    missing: list[str] | None = None,
) -> list[FundusCase]:
    """The 28 cases, named CHASEDB1_01L and so on, with tag "Tr" or "Ts" by `split`. File names in any case.

    fov_masks: a folder of field-of-view masks (`fundus.find_masks`). missing: see `sources.check_listed`. Raises KDError if
    an image or a label of the observer is missing, or for an unknown observer or split.
    """
    if observer not in OBSERVERS:
        raise KDError(f"CHASE_DB1 has observers 1 and 2, not {observer}: correct --observer")
    check_choice("split", split, SPLITS, of="CHASE_DB1")
    files = list_folder(Path(source))
    images = {m[1]: p for n, p in files.items() if (m := re.fullmatch(IMAGE, n))}
    wanted = [child + eye for child in CHILDREN for eye in "lr"]
    unexpected = sorted(set(images) - set(wanted))
    if unexpected:
        raise KDError(f"{source} holds {len(images)} images of CHASE_DB1 (unexpected {unexpected}): expected {EXPECTED}")
    labels = {eye: path for eye in wanted if (path := files.get(f"image_{eye}_{OBSERVERS[observer]}.png"))}
    masks = find_masks(fov_masks, Path(source), IMAGE_NAME)
    kinds = {"images": images, f"labels of observer {observer}": labels}
    if masks is not None:
        kinds["field-of-view masks"] = masks = {eye: path for (eye,), path in masks.items()}
    names = {eye: f"Image_{eye.upper()}" for eye in wanted}
    return [
        FundusCase(
            f"CHASEDB1_{eye.upper()}",
            images[eye],
            labels[eye],
            masks[eye] if masks is not None else None,
            tag="Tr" if eye[:2] in SPLITS[split] else "Ts",
        )
        for eye in check_listed(source, kinds, names, "CHASE_DB1", EXPECTED, missing)
    ]


def convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    channels: str = "green",
    fov_width: int | None = 512,
    observer: int = 1,
    split: str = "first20",
    corruptions: bool = False,
    fov_masks: Path | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "CHASEDB1",
) -> ConversionReport:
    """Write CHASE_DB1 as an nnU-Net dataset: training cases in imagesTr, test cases in imagesTs and labelsTs.

    split: "first20" (children 01-10 train, 11-14 test) or "last8train" (11-14 train, 01-10 test). `splits_final.json` goes
    to the preprocessed folder: five folds by child (fit 16, choose 4); four with "last8train" (fit 6, choose 2), which has
    four children. corruptions: write the training cases once per corruption instead (`corruptions.py`), as dataset `name` +
    "corrupted", without test cases and splits. The field of view is found from the image, or read from the folder
    `fov_masks`. allow_missing: leave out cases that lack a file; the others keep their part and fold. See `fundus.prepare`
    for channels and fov_width. Raises KDError for what is wrong with the source or the target folders.
    """
    check_options(channels, fov_width)
    with opened(source, raw, KEEP) as root:
        inside = {p.parent for p in SourceFiles(root, without=MASK_FOLDERS).find(IMAGE, twice=True).values()}
        root = inside.pop() if len(inside) == 1 else root  # a folder further down
        missing = [] if allow_missing else None
        cases = find_cases(root, observer, split, fov_masks, missing)
        if corruptions:
            cases, name = corrupted([c for c in cases if c.tag == "Tr"]), f"{name}corrupted"
            missing = None if missing is None else [m for m in missing if m[-3:-1] in SPLITS[split]]
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, missing_cases=missing)
        folds = []
        if not corruptions:
            train = [f"CHASEDB1_{child}{eye}" for child in SPLITS[split] for eye in "LR"]
            folds = folds_of_cases(train, lambda case: case[-3:-1], N_FOLDS, present={c.name for c in cases})  # by child
        if 0 < len(folds) < N_FOLDS:
            report.warnings.append(
                f"only {len(folds)} folds (one child each): train folds 0 to {len(folds) - 1}, "
                "nnU-Net would split a further one at random"
            )
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_cases(
                folder,
                cases,
                report,
                channels=channels,
                fov_width=fov_width,
                expected_size=(999, 960),
                published_cases=28,
                root=root,
                settings={
                    "set": "chase_db1",
                    "observer": observer,
                    "split": split,
                    "source": str(source),
                    **masks_setting(fov_masks),
                },
                reference="Fraz et al., An ensemble classification-based approach applied to retinal blood vessel "
                "segmentation, IEEE TBME 2012",
                licence="CC BY 4.0",
            )
            if folds:
                write_splits(preprocessed, report.dataset, folds, overwrite)
    report.folds = len(folds)
    return report
