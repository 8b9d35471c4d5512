"""Fundus photographs as an nnU-Net dataset: found, read, prepared (preparation.py), written, and checked once written."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError
from scipy import ndimage

from nnunet_kd.datasets.fundus.corruptions import corrupt, severities
from nnunet_kd.datasets.fundus.field_of_view import FieldOfView, find_field_of_view
from nnunet_kd.datasets.fundus.preparation import CHANNEL_NAMES, MARGIN, prepare, prepare_label
from nnunet_kd.datasets.nnunet_format import ConversionReport, write_case, write_dataset_json
from nnunet_kd.datasets.sources import SourceFiles
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.progress import progress

MASK_FOLDERS = r".*masks?.*"  # beside the images of a set that publishes none: not looked into unless asked for


@dataclass(frozen=True)
class FundusCase:
    """Source files of one case. `tag` is "Tr" or "Ts"; `fov` is None where the set publishes no mask; `corruption` is a
    name in `corruptions.CORRUPTIONS` for a corrupted copy."""

    name: str
    image: Path
    label: Path
    fov: Path | None = None
    tag: str = "Tr"
    corruption: str | None = None


def list_folder(folder: Path) -> dict[str, Path]:
    """Files and folders by lower-case name: published archives differ in case. Empty if there is no such folder."""
    return {p.name.lower(): p for p in sorted(folder.iterdir())} if folder.is_dir() else {}


def find_masks(folder: str | Path | None, root: Path, name: str) -> dict[tuple[str, ...], Path] | None:
    """Field-of-view masks of one's own by the group in `name`, a regular expression of how their names begin; None if no
    folder is given.

    folder: as given, or inside the set's folder `root`. Raises KDError if it is no folder or holds no such file.
    """
    if folder is None:
        return None
    folder = next((f for f in (Path(folder).expanduser(), Path(root) / folder) if f.is_dir()), None) or Path(folder)
    masks = SourceFiles(folder).find(rf"{name}(?:[._-][^/]*)?\.(?:ppm|png|gif|tiff?|bmp|jpe?g)(?:\.gz)?")
    if not masks:
        raise KDError(f"{folder} holds no masks named as the images are: correct --fov-masks")
    return masks


def masks_setting(folder: Path | None) -> dict:
    """For conversion.json."""
    return {"fov_masks": str(folder)} if folder else {}


def read_rgb(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3). Raises KDError if it cannot be read."""
    return np.asarray(_open(path, "RGB"))


def read_binary(path: Path) -> np.ndarray:
    """A mask file as bool (H, W), threshold 128 of 255 on its gray value (palettes of GIF files are applied first)."""
    return np.asarray(_open(path, "L")) >= 128


def _open(path: Path, mode: str) -> Image.Image:
    try:
        content = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            return image.convert(mode)
    except (OSError, EOFError, zlib.error, ValueError, SyntaxError, UnidentifiedImageError) as e:
        raise KDError(f"cannot read {path} ({str(e) or type(e).__name__}): the file is damaged, download it again") from e


def convert_cases(
    folder: Path,
    cases: Sequence[FundusCase],
    report: ConversionReport,
    *,
    channels: str,
    fov_width: int | None,
    expected_size: tuple[int, int],
    published_cases: int,
    root: Path,
    settings: dict,
    reference: str,
    licence: str,
) -> None:
    """Write all cases, dataset.json, conversion.json and contact_sheet.jpg into `folder`, verify them, and fill in
    `report`.

    expected_size: (width, height) as published; another one is a warning. root: the source folder, for the log. Raises
    KDError if a label or mask does not fit its image or is empty, and if what lies on the disk at the end is not what
    was meant.
    """
    log, sizes, found_fields = {}, Counter(), {}
    for case in progress(cases, report.dataset, leave=True):
        rgb, label = read_rgb(case.image), read_binary(case.label)
        published = read_binary(case.fov) if case.fov else None
        for path, array in ((case.label, label), (case.fov, published)):
            if array is None:
                continue
            if array.shape != rgb.shape[:2]:
                raise KDError(
                    f"{path} is {array.shape[1]}x{array.shape[0]} pixels, its image {case.image.name} "
                    f"{rgb.shape[1]}x{rgb.shape[0]}: the files do not belong together, download the set again"
                )
            if not array.any():
                raise KDError(f"{path} is empty (no pixel >= 128): the file is damaged, download it again")
        try:
            field = find_field_of_view(rgb) if published is None else None
            native_fov = field.mask if field else published
            if case.corruption:
                rgb = corrupt(rgb, native_fov, case.corruption, case.name)
            image, fov, geometry = prepare(rgb, native_fov, channels, fov_width)
        except KDError as e:
            raise KDError(f"{case.image}: {e}") from e
        write_case(folder, case.name, image, prepare_label(label, fov, geometry), fov, case.tag)
        sizes[rgb.shape[1], rgb.shape[0]] += 1
        sources = {"image": case.image, "label": case.label, **({"fov": case.fov} if case.fov else {})}
        log[case.name] = {
            "part": f"images{case.tag}",
            "source": {k: os.path.relpath(p, root) for k, p in sources.items()},
            **({"corruption": case.corruption} if case.corruption else {}),
            **asdict(geometry),
            "canvas": geometry.canvas,
            **({"field_of_view": field.description()} if field else {}),
        }
        if field:
            found_fields[case.name] = field
    report.train_cases = sorted(c.name for c in cases if c.tag == "Tr")
    report.test_cases = sorted(c.name for c in cases if c.tag == "Ts")
    report.native_sizes = dict(sizes)
    _report_fields(found_fields, report)
    if set(sizes) != {expected_size}:
        others = ", ".join(f"{w}x{h}" for w, h in sorted(set(sizes) - {expected_size}))
        report.warnings.append(
            f"images are published with {expected_size[0]}x{expected_size[1]} pixels, found {others}: a resized copy; "
            "download the published set"
        )
    write_dataset_json(
        folder,
        CHANNEL_NAMES[channels],
        ["vessel"],
        len(report.train_cases),
        name=report.dataset,
        licence=licence,
        reference=reference,
        description="Fundus photographs, vessels; prepared by nnunet_kd.datasets.fundus.photographs (see conversion.json)",
        missing_cases=report.missing_cases,
    )
    settings = {**settings, "channels": channels, "fov_width": fov_width, "margin": MARGIN}
    copies = [c for c in cases if c.corruption]
    if copies:
        settings["corruptions"] = severities()
    published = {"cases": None if copies else published_cases, "native_size": expected_size[::-1]}  # (height, width), as above
    content = {"dataset": report.dataset, "settings": settings, "published": published, "cases": log}
    write_json(folder / "conversion.json", content)
    verify(folder, cases, report)
    # corrupted copies: one photograph under every corruption
    shown = [c for c in copies if c.image == copies[0].image] or cases
    contact_sheet(folder, shown, columns=len(shown) if copies else 4).save(folder / "contact_sheet.jpg", quality=90)


def _report_fields(found: Mapping[str, FieldOfView], report: ConversionReport) -> None:
    """How well the fields of view found fit a circle, into the report."""
    if not found:
        return
    fits = [field.circle.fit for field in found.values() if field.circle]
    discs = [name for name, field in found.items() if field.kind == "disc"]
    text = f"found in {len(found)} images"
    if fits:
        text += f"; at least {100 * min(fits):.0f}% of the outline on a circle"
    if discs:
        text += f"; {len(discs)} with part of the rim lost taken as the whole disc ({', '.join(discs[:3])})"
    report.rows.append(("field of view", text))
    doubtful = {name: why for name, field in found.items() if (why := field.doubt())}
    if doubtful:
        name, why = next(iter(doubtful.items()))
        report.warnings.append(
            f"the field of view found is doubtful in {len(doubtful)} image(s) ({name}: {why}): see fovTr and "
            "contact_sheet.jpg; masks of your own go by --fov-masks"
        )


def verify(folder: Path, cases: Sequence[FundusCase], report: ConversionReport) -> None:
    """Read back every written file and compare with what was meant; fills in the report's canvas sizes and label
    values."""
    canvas, values, vessel, inside, shares = Counter(), set(), 0, 0, []
    for case in cases:
        image, label, fov = (np.asarray(Image.open(p)) for p in case_files(folder, case))
        nonzero = image.max(axis=2) if image.ndim == 3 else image
        if not (
            nonzero.shape == label.shape == fov.shape and np.array_equal(nonzero > 0, fov > 0) and not label[fov == 0].any()
        ):
            raise KDError(f"{case.name} in {folder} was not written as it should be: is the disk full? Convert again")
        canvas[label.shape[1], label.shape[0]] += 1
        values |= set(np.unique(label).tolist())
        vessel, inside = vessel + int(label.sum()), inside + int((fov > 0).sum())
        rows, columns = np.flatnonzero(fov.any(axis=1)), np.flatnonzero(fov.any(axis=0))
        shares.append((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / fov.size)
    written = {tag: len(list((folder / f"images{tag}").glob("*.png"))) for tag in ("Tr", "Ts")}
    if written != {"Tr": len(report.train_cases), "Ts": len(report.test_cases)} or values != {0, 1}:
        raise KDError(f"{folder} holds {written} images and label values {sorted(values)}: is the disk full? Convert again")
    if np.median(shares) >= 0.75:
        raise KDError(f"{folder}: the field of view fills {np.median(shares):.2f} of the canvas, nnU-Net would not mask by it")
    report.canvas_sizes, report.label_values, report.label_fraction = dict(canvas), sorted(values), vessel / inside


def case_files(folder: Path, case: FundusCase) -> tuple[Path, Path, Path]:
    """Image, label and field of view of a written case."""
    return (
        folder / f"images{case.tag}" / f"{case.name}_0000.png",
        folder / f"labels{case.tag}" / f"{case.name}.png",
        folder / f"fov{case.tag}" / f"{case.name}.png",
    )


def contact_sheet(folder: Path, cases: Sequence[FundusCase], columns: int = 4, side: int = 400) -> Image.Image:
    """A few written cases, spread over the set: the image above, the same with the label's contour (yellow) and FOV
    (cyan) below."""
    chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, columns).round().astype(int))]
    sheet = Image.new("RGB", (side * len(chosen), side * 2))
    for x, case in enumerate(chosen):
        image, label, fov = (np.asarray(Image.open(p)) for p in case_files(folder, case))
        plain = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        drawn = plain.copy()
        drawn[(label > 0) & ~ndimage.binary_erosion(label > 0)] = (255, 220, 0)
        drawn[(fov > 0) & ~ndimage.binary_erosion(fov > 0, iterations=2)] = (0, 220, 255)
        for y, picture in enumerate((plain, drawn)):
            tile = Image.fromarray(picture)
            tile.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x * side, y * side))
        ImageDraw.Draw(sheet).text((x * side + 6, 6), f"{case.name} ({case.tag})", fill=(255, 255, 255))
    return sheet
