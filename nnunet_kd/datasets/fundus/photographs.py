"""Fundus photographs: one preprocessing for every set, so that a model of one camera can predict another's images.

What is done, in this order, and why:

1. the field of view (FOV) is the published mask or, where none is published, found from the image (field_of_view.py);
2. the image is cropped to the FOV's bounding box and resized so that the FOV is `fov_width` pixels wide: nnU-Net's
   reader of natural images fixes the spacing at 1, so the scale between cameras is corrected here or nowhere;
3. pixels outside the FOV are 0, inside at least 1;
4. zeros are padded around, MARGIN of the box's side on each side. The non-zero box is then at most
   1 / (1 + 2 MARGIN)^2 = 69% of the canvas. Below 75% (median over the set) stock nnU-Net plans `use_mask_for_norm`
   for z-scored channels: mean and standard deviation are taken inside the FOV and the outside stays 0, in training and
   in prediction. The border costs nothing later: nnU-Net's preprocessing crops it away.
"""

from __future__ import annotations

import gzip
import io
import math
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
from nnunet_kd.datasets.nnunet_format import ConversionReport, check_choice, write_case, write_dataset_json
from nnunet_kd.datasets.sources import SourceFiles
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.progress import progress

CHANNEL_NAMES = {"green": ("green",), "gray": ("gray",), "rgb": ("red", "green", "blue")}
MARGIN = 0.1
MASK_FOLDERS = r".*masks?.*"  # beside the images of a set that publishes none: not looked into unless asked for
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Geometry:
    """How a native image became a canvas. Boxes in pixels, sizes as (height, width)."""

    native_size: tuple[int, int]
    crop_box: tuple[int, int, int, int]  # top, left, bottom, right in the native image; bottom and right excluded
    scale: float
    resized: tuple[int, int]
    pad: tuple[int, int]  # rows above and below, columns left and right

    @property
    def canvas(self) -> tuple[int, int]:
        return self.resized[0] + 2 * self.pad[0], self.resized[1] + 2 * self.pad[1]


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


def fov_geometry(fov: np.ndarray, fov_width: int | None) -> Geometry:
    """Crop, scale and padding that bring a field of view (bool, (H, W)) to `fov_width` pixels; None keeps the native
    scale."""
    rows, columns = np.flatnonzero(fov.any(axis=1)), np.flatnonzero(fov.any(axis=0))
    if not len(rows):
        raise KDError("the field-of-view mask is empty: the mask file is damaged, download it again")
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    scale = 1.0 if fov_width is None else fov_width / (right - left)
    resized = (max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale)))
    pad = (math.ceil(MARGIN * resized[0]), math.ceil(MARGIN * resized[1]))
    return Geometry(fov.shape, (top, left, bottom, right), scale, resized, pad)


def _crop(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    top, left, bottom, right = geometry.crop_box
    return array[top:bottom, left:right]


def _resize(array: np.ndarray, geometry: Geometry, resample: Image.Resampling) -> np.ndarray:
    """(H, W) -> float32 of the geometry's resized shape. Pillow's filters average over the whole source area
    (antialiased)."""
    height, width = geometry.resized
    return np.asarray(Image.fromarray(array.astype(np.float32)).resize((width, height), resample))


def prepare(
    image_rgb: np.ndarray, fov_mask: np.ndarray | None = None, channels: str = "green", fov_width: int | None = 512
) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Bring a fundus photograph to the common form described at the top of this file.

    image_rgb: uint8 (H, W, 3); fov_mask: bool (H, W), or None to find it; channels: "green", "gray" (luminance) or
    "rgb"; fov_width: width of the field of view in pixels after resizing, or None for the native scale. Returns the
    image, uint8 (H', W') or (H', W', 3), 0 exactly outside the field of view; the field of view, bool (H', W'); and
    the geometry that `prepare_label` needs. Raises KDError for unknown channels, sizes that disagree, or an empty
    mask.
    """
    check_options(channels, fov_width)
    fov_mask = find_field_of_view(image_rgb).mask if fov_mask is None else np.asarray(fov_mask, dtype=bool)
    if fov_mask.shape != image_rgb.shape[:2]:
        raise KDError(f"field-of-view mask is {fov_mask.shape}, image is {image_rgb.shape[:2]}: they belong to two images")
    geometry = fov_geometry(fov_mask, fov_width)
    # HAMMING is the sharpest of Pillow's filters without negative lobes, but made for shrinking only.
    resample = Image.Resampling.HAMMING if geometry.scale < 1 else Image.Resampling.BILINEAR
    mask = _crop(fov_mask, geometry).astype(np.float32)
    weight = _resize(mask, geometry, resample)
    fov = weight >= 0.5

    image = _crop(image_rgb, geometry).astype(np.float32)
    if channels == "rgb":
        planes = [image[..., c] for c in range(3)]
    elif channels == "green":
        planes = [image[..., 1]]
    else:
        planes = [image @ np.asarray(LUMINANCE, dtype=np.float32)]
    # Dividing by the resized mask keeps the black outside from darkening the rim.
    done = [
        np.where(fov, np.clip(np.rint(_resize(p * mask, geometry, resample) / np.maximum(weight, 0.5)), 1, 255), 0)
        for p in planes
    ]
    rows, columns = geometry.pad
    border = ((rows, rows), (columns, columns))
    canvas = [np.pad(p, border).astype(np.uint8) for p in done]
    return (canvas[0] if len(canvas) == 1 else np.stack(canvas, axis=-1)), np.pad(fov, border), geometry


def prepare_label(label: np.ndarray, fov: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Bring a binary label (H, W) to the canvas of its image; 0 outside the field of view. Returns uint8 0/1.

    A box filter, then >= 1/2. Measured on 14 labels each of CHASE_DB1 (scale 0.56) and DRIVE (0.95), resized label
    brought back to the native grid, against the native one: Dice 0.932 and 0.980, clDice 0.945 and 0.981, centre
    lines of vessels up to 3 pixels wide kept 95% and 99.8%. Gaussian antialiasing at the same threshold: Dice 0.924
    and 0.966, thin centre lines 73% and 94%; nearest neighbour: Dice 0.916 and 0.980, thin centre lines 73% and 96%.
    The price: labels are 9% and 2% larger in area.
    """
    resized = _resize(_crop(np.asarray(label, dtype=bool), geometry), geometry, Image.Resampling.BOX) >= 0.5
    rows, columns = geometry.pad
    return (np.pad(resized, ((rows, rows), (columns, columns))) & fov).astype(np.uint8)


def check_options(channels: str, fov_width: int | None) -> None:
    """Raise KDError for an unknown channel choice or an impossible width."""
    check_choice("channels", channels, CHANNEL_NAMES)
    if fov_width is not None and not 32 <= fov_width <= 8192:
        raise KDError(f"--fov-width {fov_width} is not between 32 and 8192 pixels: 512 suits CHASE_DB1 and DRIVE")


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
    found = SourceFiles(folder).find(rf"{name}(?:[._-][^/]*)?\.(?:ppm|png|gif|tiff?|bmp|jpe?g)(?:\.gz)?")
    if not found:
        raise KDError(f"{folder} holds no masks named as the images are: correct --fov-masks")
    return found


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
            found = find_field_of_view(rgb) if published is None else None
            native_fov = found.mask if found else published
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
            **({"field_of_view": found.description()} if found else {}),
        }
        if found:
            found_fields[case.name] = found
    report.train_cases = sorted(c.name for c in cases if c.tag == "Tr")
    report.test_cases = sorted(c.name for c in cases if c.tag == "Ts")
    report.native_sizes = dict(sizes)
    _report_fields(found_fields, report)
    if set(sizes) != {expected_size}:
        found = ", ".join(f"{w}x{h}" for w, h in sorted(set(sizes) - {expected_size}))
        report.warnings.append(
            f"images are published with {expected_size[0]}x{expected_size[1]} pixels, found {found}: a resized copy; "
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
