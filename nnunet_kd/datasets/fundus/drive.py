"""DRIVE (Staal et al., IEEE TMI 2004): 40 fundus photographs with field-of-view masks, 20 for training and 20 for
testing.

Published layout: `training/{images/21_training.tif,1st_manual/21_manual1.gif,mask/21_training_mask.gif}` and
`test/{images/01_test.tif,1st_manual/01_manual1.gif,2nd_manual/01_manual2.gif,mask/01_test_mask.gif}`; 565x584 pixels.
The second observer marked the test half only; today's download comes without the test labels. Research use only, no
redistribution.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_kd.datasets.fundus.corruptions import corrupted
from nnunet_kd.datasets.fundus.photographs import FundusCase, convert_cases
from nnunet_kd.datasets.fundus.preparation import check_options
from nnunet_kd.datasets.nnunet_format import ConversionReport, new_dataset_folder, new_report
from nnunet_kd.datasets.sources import ALLOW_MISSING, SourceFiles, opened
from nnunet_kd.utils.errors import KDError

HALVES = {"training": range(21, 41), "test": range(1, 21)}
OBSERVERS = {1: "1st_manual", 2: "2nd_manual"}
KEEP = r"(?:training|test)/(?:.*/)?(?:images|mask|1st_manual|2nd_manual)/[^/]+\.(?:tiff?|gif)"
EXPECTED = (
    "training/images/21_training.tif, training/1st_manual/21_manual1.gif, training/mask/21_training_mask.gif, "
    "test/images/01_test.tif and so on"
)


def find_cases(source: str | Path, observer: int = 1, missing: list[str] | None = None) -> tuple[list[FundusCase], list[str]]:
    """The labelled cases, named DRIVE_training_21, DRIVE_test_01 and so on, and warnings. File names in any case.

    A half without any label of the observer is left out with a warning. missing: see `sources.check_listed`. Raises KDError
    if images, masks or single labels are missing, or if no half is labelled.
    """
    if observer not in OBSERVERS:
        raise KDError(f"DRIVE has observers 1 and 2, not {observer}: correct --observer")
    files = SourceFiles(Path(source))
    cases, warnings = [], []
    for half, numbers in HALVES.items():

        def numbered(name: str, half: str = half) -> dict[int, Path]:
            return {int(i): path for (i,), path in files.find(rf"{half}/(?:.*/)?{name}").items()}

        images = numbered(rf"images/(\d\d)_{half}\.tiff?")
        masks = numbered(rf"mask/(\d\d)_{half}_mask\.gif")
        labels = numbered(rf"{OBSERVERS[observer]}/(\d\d)_manual{observer}\.gif")
        if not labels:
            warnings.append(f"no labels of observer {observer} for the {half} half ({half}/{OBSERVERS[observer]}): left out")
            continue
        for what, paths in (("images", images), ("field-of-view masks", masks), ("labels", labels)):
            if (set(paths) != set(numbers) and missing is None) or set(paths) - set(numbers):
                wrong = sorted(set(numbers) ^ set(paths))
                raise KDError(
                    f"{source} holds {len(paths)} {what} in the {half} half of DRIVE (see number {wrong[0]:02d}), "
                    f"expected 20: {EXPECTED}" + ("" if set(paths) - set(numbers) else f"; {ALLOW_MISSING}")
                )
        complete = [i for i in numbers if i in images and i in masks and i in labels]
        if missing is not None:
            missing += [f"{i:02d}_{half}" for i in numbers if i not in complete]
        cases += [FundusCase(f"DRIVE_{half}_{i:02d}", images[i], labels[i], masks[i]) for i in complete]
    if not cases:
        raise KDError(f"{source} holds no labels of DRIVE's observer {observer}: expected {EXPECTED}")
    return cases, warnings


def convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    channels: str = "green",
    fov_width: int | None = 512,
    observer: int = 1,
    corruptions: bool = False,
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "DRIVE",
) -> ConversionReport:
    """Write DRIVE as an nnU-Net dataset. All labelled cases go to imagesTr and labelsTr: it serves as an unseen
    domain, and nnU-Net's integrity check wants training cases. The case names keep the half, so that one half can be
    chosen by name.

    allow_missing: leave out cases that lack a file. corruptions: write the training half once per corruption instead
    (`corruptions.py`), as dataset `name` + "corrupted". See `fundus.prepare` for channels and fov_width. Raises KDError for
    what is wrong with the source or the target folders.
    """
    check_options(channels, fov_width)
    with opened(source, raw, KEEP, parts=HALVES) as root:
        missing = [] if allow_missing else None
        cases, warnings = find_cases(root, observer, missing)
        if corruptions:
            cases, name = corrupted([c for c in cases if c.name.startswith("DRIVE_training")]), f"{name}corrupted"
            if not cases:
                raise KDError(
                    f"{source} holds no labels of observer {observer} in DRIVE's training half, which --corruptions "
                    "works on: use --observer 1"
                )
            warnings = [w for w in warnings if "test half" not in w]
            missing = None if missing is None else [m for m in missing if m.endswith("training")]
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, warnings=warnings, missing_cases=missing)
        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_cases(
                folder,
                cases,
                report,
                channels=channels,
                fov_width=fov_width,
                expected_size=(565, 584),
                published_cases=len(cases) + len(missing or ()),  # whole halves, see find_cases
                root=root,
                settings={"set": "drive", "observer": observer, "source": str(source)},
                reference="Staal et al., Ridge-based vessel segmentation in color images of the retina, IEEE TMI 2004",
                licence="research use only, no redistribution",
            )
    return report
