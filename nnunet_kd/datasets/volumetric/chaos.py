"""CHAOS (Kavur et al., Medical Image Analysis 2021): abdomen of healthy people, 20 labelled CT and 20 labelled MR studies
of different patients.

Published layout: `Train_Sets/CT/<patient>/{DICOM_anon/*.dcm,Ground/liver_GT_000.png}` (0 and 255) and
`Train_Sets/MR/<patient>/{T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm,T1DUAL/Ground/*.png,T2SPIR/{DICOM_anon,Ground}}` with
gray ranges per organ. Test_Sets has no labels. T1's labels belong to the in-phase images.

The slices of a study may have different series UIDs, so they are put together here, by ImagePositionPatient. MR labels
have the name of their slice. CT labels are numbered in the order of InstanceNumber, which runs against ascending z. A
label that fits the intensities better when it is turned upside down ends the conversion.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from PIL import Image, UnidentifiedImageError

from nnunet_kd.datasets.nnunet_format import ConversionReport, check_choice, new_dataset_folder, new_report
from nnunet_kd.datasets.sources import SourceFiles, natural_key, opened
from nnunet_kd.datasets.volumetric.volumes import VolumeCase, channel_name, convert_volumes
from nnunet_kd.utils.errors import KDError

PATIENTS = {  # of Train_Sets
    "ct": (1, 2, 5, 6, 8, 10, 14, 16, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30),
    "mr": (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39),
}
N_PUBLISHED = 20
ORGANS = ("liver", "right kidney", "left kidney", "spleen")
GRAY_RANGES = ((55, 70), (110, 135), (175, 200), (240, 255))  # of ORGANS, both ends included except liver's lower one
SPLITS = {"all": 0, "last5test": 5}  # how many patients, the last by number, are for testing
SEQUENCES = {"t1": ("t1dual", r"t1dual/dicom_anon/inphase"), "t2spir": ("t2spir", r"t2spir/dicom_anon")}
SPACING_TOLERANCE = 0.1  # of the median distance of slices: a missing slice doubles it
POSITION, ORIENTATION, INSTANCE = "0020|0032", "0020|0037", "0020|0013"
FIX = "download CHAOS_Train_Sets.zip again"
EXPECTED = "Train_Sets of CHAOS with {}/<patient>/... (see docs/datasets.md)"
KEEP = r"\d+/(?:t1dual/|t2spir/)?(?:dicom_anon/(?:inphase/)?[^/]+\.dcm|ground/[^/]+\.png)"


@dataclass(frozen=True)
class _Slice:
    path: Path
    place: float  # mm along the normal of the slices
    instance: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]


def find_cases(
    source: str | Path, modality: str, sequence: str = "t1", split: str = "all", missing: list[str] | None = None
) -> list[tuple]:
    """The labelled studies as (case, its .dcm files, its .png files), sorted by patient.

    modality: "ct" or "mr"; cases are named CHAOS_CT_01, CHAOS_T1_01 or CHAOS_T2SPIR_01 by patient. Raises KDError if there
    are none, or one lacks its slices or labels, and for an unknown split or sequence.
    """
    check_choice("split", split, SPLITS, of="CHAOS")
    check_choice("sequence", sequence, SEQUENCES, of="CHAOS")
    name = "CT" if modality == "ct" else sequence.upper()
    images, labels = (r"dicom_anon", "") if modality == "ct" else (SEQUENCES[sequence][1], f"{SEQUENCES[sequence][0]}/")
    files = SourceFiles(Path(source))
    studies: dict[int, tuple[list[Path], list[Path]]] = {}
    for part, pattern in enumerate((rf"(\d+)/{images}/([^/]+\.dcm)", rf"(\d+)/{labels}ground/([^/]+\.png)")):
        for (patient, _), path in files.find(pattern).items():
            if "test_sets" not in path.relative_to(files.root).as_posix().lower().split("/"):
                studies.setdefault(int(patient), ([], []))[part].append(path)
    if not studies:
        raise KDError(f"{source} holds no studies of CHAOS {name}: expected {EXPECTED.format(modality.upper())}")
    # published patients count where some may be missing: nobody moves into the test part for another one's absence
    patients = sorted(studies) if missing is None else sorted({*studies, *PATIENTS[modality]})
    cases, first_test = [], len(patients) - SPLITS[split]
    for i, patient in enumerate(patients):
        slices, pngs = studies.get(patient, ((), ()))
        if missing is not None and (not slices or len(slices) != len(pngs)):
            missing.append(f"CHAOS_{name}_{patient:02d}")
            continue
        if len(slices) != len(pngs):
            raise KDError(
                f"patient {patient} of CHAOS {name} in {source} has {len(slices)} slices and {len(pngs)} labels: {FIX}"
            )
        tag = "Tr" if i < first_test else "Ts"
        case = VolumeCase(f"CHAOS_{name}_{patient:02d}", slices[0].parent, pngs[0].parent, tag)
        cases.append((case, slices, pngs))
    if first_test < 1:
        raise KDError(
            f"{source} holds {len(studies)} studies, of which the last {SPLITS[split]} are for testing: use --split all"
        )
    return cases


def convert_ct(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    split: str = "all",
    labels: str = "liver",
    normalisation: str = "modality",
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str = "CHAOSCT",
) -> ConversionReport:
    """Write the CT studies as an nnU-Net dataset. labels: "liver", which is all they have.

    split: "all" (all in imagesTr) or "last5test" (the last five patients in imagesTs). normalisation: "modality" (channel
    "CT") or "zscore". Raises KDError for what is wrong with the source or the target.
    """
    if labels != "liver":
        raise KDError("CHAOS marks nothing but the liver in CT: use --labels liver, or leave it out")
    channel = channel_name("CT", normalisation)
    settings = {"set": "chaos_ct", "split": split, "labels": "liver", "normalisation": normalisation}
    return _convert(
        source, raw, preprocessed, dataset_id, "ct", "t1", "liver", channel, settings, overwrite, name, allow_missing
    )


def convert_mr(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    split: str = "all",
    sequence: str = "t1",
    labels: str = "liver",
    allow_missing: bool = False,
    overwrite: bool = False,
    name: str | None = None,
) -> ConversionReport:
    """Write one sequence of the MR studies as an nnU-Net dataset, CHAOST1 or CHAOST2SPIR.

    sequence: "t1" (in phase) or "t2spir". The same patients have both: with split "last5test" the same five are for
    testing. labels: "liver" or "all" (liver, both kidneys, spleen). Raises KDError as `convert_ct`.
    """
    check_choice("labels", labels, ("liver", "all"))
    settings = {"set": "chaos_mr", "split": split, "sequence": sequence, "labels": labels}
    name = name or f"CHAOS{sequence.upper()}"
    return _convert(
        source, raw, preprocessed, dataset_id, "mr", sequence, labels, "MRI", settings, overwrite, name, allow_missing
    )


def _convert(
    source: str | Path,
    raw: str | Path,
    preprocessed: str | Path,
    dataset_id: int,
    modality: str,
    sequence: str,
    labels: str,
    channel: str,
    settings: dict[str, str],
    overwrite: bool,
    name: str,
    allow_missing: bool,
) -> ConversionReport:
    with opened(source, raw, KEEP) as root:
        missing = [] if allow_missing else None
        studies = find_cases(root, modality, sequence, settings["split"], missing)
        report = new_report(raw, preprocessed, dataset_id, name, overwrite, missing_cases=missing)
        files = {case.name: (slices, pngs) for case, slices, pngs in studies}
        values = np.array([0, 1, 0, 0, 0] if labels == "liver" else range(5), np.uint8)

        def read(case: VolumeCase) -> tuple[SimpleITK.Image, SimpleITK.Image]:
            image, organs = read_study(case.name, *files[case.name], modality)
            label = SimpleITK.GetImageFromArray(values[organs])
            label.CopyInformation(image)
            return image, label

        with new_dataset_folder(raw, dataset_id, name, overwrite) as folder:
            convert_volumes(
                folder,
                [case for case, *_ in studies],
                report,
                read,
                root=root,
                channel=channel,
                labels=ORGANS[:1] if labels == "liver" else ORGANS,
                settings={**settings, "source": str(source)},
                published_cases=N_PUBLISHED,
                licence="see the site",
                reference="Kavur et al., CHAOS Challenge - combined (CT-MR) healthy abdominal organ segmentation, Medical "
                "Image Analysis 2021; doi:10.5281/zenodo.3431873",
                description="Liver in CT" if modality == "ct" else f"Abdomen in MR, {sequence}",
            )
    return report


def read_study(case: str, slices: list[Path], pngs: list[Path], modality: str) -> tuple[SimpleITK.Image, np.ndarray]:
    """One study: the image, and organ numbers (1 + index in ORGANS) as uint8 (z, y, x) on its grid, z ascending.

    Raises KDError for slices that make no regular stack, labels of another size or with unknown gray values, no liver, and
    labels that fit better upside down.
    """
    ordered = sorted((_header(path) for path in slices), key=lambda s: s.place)
    gaps = np.diff([s.place for s in ordered])
    if len(ordered) < 2 or np.abs(gaps - np.median(gaps)).max() > SPACING_TOLERANCE * np.median(gaps):
        wrong = ordered[1 + int(np.argmax(np.abs(gaps - np.median(gaps))))].path if len(gaps) else slices[0]
        raise KDError(f"{case}: the slices make no regular stack, see {wrong}: a slice is missing or there twice; {FIX}")
    if any(not np.allclose(s.orientation, ordered[0].orientation, atol=1e-3) for s in ordered):
        raise KDError(f"{case}: the slices in {slices[0].parent} are not parallel: {FIX}")
    image = _stack(case, ordered, float(np.mean(gaps)))
    labels = _paired(ordered, pngs)
    organs = np.stack([_organs(png, modality) for png in labels])
    array = SimpleITK.GetArrayViewFromImage(image)
    if organs.shape != array.shape:
        raise KDError(
            f"{case}: labels are {organs.shape[2]}x{organs.shape[1]} pixels, slices {array.shape[2]}x{array.shape[1]}: a "
            f"resized copy; {FIX}"
        )
    if not (organs == 1).any():
        raise KDError(f"{case}: the labels in {pngs[0].parent} hold no liver: {FIX}")
    given, flipped = (_scatter(array, mask) for mask in (organs == 1, organs[::-1] == 1))
    if flipped < given:
        raise KDError(
            f"{case}: the labels fit better upside down (intensities in the liver scatter by {flipped:.1f} instead of "
            f"{given:.1f}): slices or labels were renumbered; {FIX}"
        )
    return image, organs


def _header(path: Path) -> _Slice:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        position, orientation = (
            tuple(float(v) for v in reader.GetMetaData(tag).split("\\")) for tag in (POSITION, ORIENTATION)
        )
        instance = int(reader.GetMetaData(INSTANCE))
        normal = np.cross(orientation[:3], orientation[3:])
    except (RuntimeError, ValueError) as e:
        raise KDError(f"{path} is no DICOM slice with position, orientation and number: {FIX}") from e
    # towards the head, or the nearest to that
    place = float(np.dot(position, normal)) * (-1 if normal[2] < 0 else 1)
    return _Slice(path, place, instance, position, orientation)


def _stack(case: str, ordered: list[_Slice], gap: float) -> SimpleITK.Image:
    """The slices as one volume: int16 where the values allow it. DICOM's rescaling is applied by the reader."""
    try:
        parts = [SimpleITK.ReadImage(str(s.path)) for s in ordered]
        arrays = [SimpleITK.GetArrayFromImage(part).reshape(part.GetSize()[1], part.GetSize()[0]) for part in parts]
        array = np.stack(arrays)
    except (RuntimeError, ValueError) as e:
        raise KDError(
            f"{case}: cannot read the slices in {ordered[0].path.parent} ({' '.join(str(e).split())[-120:]}): {FIX}"
        ) from e
    small = array.min() >= -32768 and array.max() <= 32767 and np.array_equal(array, np.rint(array))
    image = SimpleITK.GetImageFromArray(array.astype(np.int16 if small else np.float32))
    row, column = np.array(ordered[0].orientation[:3]), np.array(ordered[0].orientation[3:])
    up = np.subtract(ordered[-1].position, ordered[0].position)
    normal = np.cross(row, column)
    normal = normal if np.dot(normal, up) > 0 else -normal
    image.SetSpacing((*parts[0].GetSpacing()[:2], gap))
    image.SetOrigin(ordered[0].position)
    image.SetDirection(np.stack([row, column, normal], axis=1).ravel().tolist())
    return image


def _paired(ordered: list[_Slice], pngs: list[Path]) -> list[Path]:
    """The label of every slice: by name where names agree (MR), else by order of InstanceNumber (CT)."""
    by_name = {png.stem.lower(): png for png in pngs}
    stems = [s.path.stem.lower() for s in ordered]
    if set(stems) == set(by_name):
        return [by_name[stem] for stem in stems]
    numbered = dict(zip(sorted(s.instance for s in ordered), sorted(pngs, key=lambda p: natural_key(p.name)), strict=True))
    if len(numbered) != len(ordered):
        raise KDError(
            f"{ordered[0].path.parent}: two slices have one InstanceNumber, so their labels cannot be told apart: {FIX}"
        )
    return [numbered[s.instance] for s in ordered]


def _organs(png: Path, modality: str) -> np.ndarray:
    """Organ numbers of one label picture, uint8 (H, W)."""
    try:
        with Image.open(png) as picture:
            gray = np.asarray(picture.convert("L"))
    except (OSError, UnidentifiedImageError, SyntaxError) as e:
        raise KDError(f"cannot read {png} ({e}): {FIX}") from e
    table = np.full(256, 255, np.uint8)
    table[0] = 0
    if modality == "ct":
        table[255] = 1
    else:
        for number, (low, high) in enumerate(GRAY_RANGES, start=1):
            table[low + (number == 1) : high + 1] = number
    organs = table[gray]
    if (organs == 255).any():
        unknown = np.unique(gray[organs == 255])[:4].tolist()
        raise KDError(f"{png} holds gray values {unknown}, which stand for no organ: a resized or recoloured copy; {FIX}")
    return organs


def _scatter(array: np.ndarray, mask: np.ndarray) -> float:
    """Mean distance of the intensities in a mask from their median: small in one organ, large across lung, fat and air."""
    inside = array[mask].astype(np.float64)
    return float(np.abs(inside - np.median(inside)).mean())
