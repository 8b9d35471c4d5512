"""Images in and segmentations out, with the axes, numbers and spacing that nnU-Net's readers give. Arrays are (Z, Y, X).

SimpleITK reads NIfTI, MHA, NRRD, ...; PNG and BMP come through pillow and TIFF through tifffile, loaded only if needed.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import RunnerError

ITK_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".gipl")
READERS = {  # nnU-Net's reader: the endings that are read in its way
    "SimpleITKIO": ITK_ENDINGS,
    "SimpleITKIOWithReorient": ITK_ENDINGS,
    "NibabelIO": ITK_ENDINGS,
    "NibabelIOWithReorient": ITK_ENDINGS,
    "NaturalImage2DIO": (".png", ".bmp", ".tif", ".tiff", *ITK_ENDINGS),
    "Tiff3DIO": (".tif", ".tiff"),
}


@dataclass
class Image:
    """data (C, Z, Y, X), 2-D images with Z = 1; spacing (z, y, x) in mm; geometry: what write() needs to put it back."""

    data: np.ndarray
    spacing: tuple[float, float, float]
    geometry: dict


def read(files: Sequence[Path], reader: str) -> Image:
    """Read one case, a file per channel (or one file with all).

    Raises:
        RunnerError: a file cannot be read, or the files do not fit together.
    """
    read_one = {"NaturalImage2DIO": _read_natural, "Tiff3DIO": _read_tiff}.get(reader, _read_itk)
    images = []
    for file in files:
        if not Path(file).is_file():
            raise RunnerError(f"no image {file}: check the path")
        try:
            images.append(read_one(Path(file), reader.endswith("WithReorient")))
        except RunnerError:
            raise
        except Exception as error:  # readers raise whatever they like
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            raise RunnerError(f"cannot read {file} ({reason.strip()}): replace the file by an intact one") from error
    first = images[0]
    for file, image in zip(files, images, strict=True):
        if image.data.shape[1:] != first.data.shape[1:]:
            raise RunnerError(f"{file} has size {image.data.shape[1:]}, {files[0]} {first.data.shape[1:]}: make them equal")
        if not np.allclose(image.spacing, first.spacing):
            raise RunnerError(f"{file} has spacing {image.spacing}, {files[0]} {first.spacing}: make them equal")
        for key in ("origin", "direction"):
            if key in first.geometry and not np.allclose(image.geometry[key], first.geometry[key], atol=1e-3):
                print(f"warning: {file} has another {key} than {files[0]}; the segmentation gets the latter's", file=sys.stderr)
    data = first.data if len(images) == 1 else np.concatenate([image.data for image in images])
    return Image(np.ascontiguousarray(data, dtype=np.float32), first.spacing, first.geometry)


def write(segmentation: np.ndarray, file: Path, reader: str, geometry: dict) -> None:
    """Write a segmentation (Z, Y, X) in the place of the image. `file` is complete or not there."""
    segmentation = segmentation.astype(np.uint8 if segmentation.max(initial=0) < 255 else np.uint16, copy=False)
    temporary = file.with_name(f".writing_{file.name}")  # the ending tells the format
    try:
        if reader == "NaturalImage2DIO" and "origin" not in geometry:
            _write_natural(segmentation[0], temporary)
        elif reader == "Tiff3DIO":
            import tifffile

            tifffile.imwrite(temporary, segmentation, compression="zlib")
            spacing = json.dumps({"spacing": list(geometry["spacing"])})
            (file.with_name(file.name[: -len(file.suffix)] + ".json")).write_text(spacing, encoding="utf-8")
        else:
            _write_itk(segmentation, temporary, geometry)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _read_itk(file: Path, reorient: bool) -> Image:
    import SimpleITK

    if file.name.endswith(".nii.gz"):
        _check_complete(file)
    image = SimpleITK.ReadImage(str(file))
    geometry = {}
    if reorient:
        get = SimpleITK.DICOMOrientImageFilter_GetOrientationFromDirectionCosines
        geometry["orientation"] = get(image.GetDirection())
        image = SimpleITK.DICOMOrient(image, "RAS")
    data = SimpleITK.GetArrayFromImage(image)
    spacing = [abs(s) for s in image.GetSpacing()[::-1]]
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1 or data.ndim not in (2, 3, 4):
        raise RunnerError(f"{file} has {data.ndim} axes and {components} components: save one 2-D or 3-D file per channel")
    geometry |= {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    if data.ndim == 2:
        return Image(data[None, None], (max(spacing) * 999, *spacing), geometry)
    if data.ndim == 3:
        return Image(data[None], tuple(spacing), geometry)
    direction = np.reshape(geometry["direction"], (4, 4))[:3, :3]  # channels along the fourth axis: geometry of the first three
    geometry |= {"spacing": geometry["spacing"][:3], "origin": geometry["origin"][:3], "direction": direction.ravel().tolist()}
    return Image(data, tuple(spacing[1:]), geometry)


def _check_complete(file: Path) -> None:
    """SimpleITK fills up a truncated .nii.gz with zeros and says nothing. The size at gzip's end must be the header's."""
    with gzip.open(file) as unpacked:
        header = unpacked.read(352)
        if len(header) < 348:
            raise RunnerError(f"{file} is truncated: replace the file by an intact one")
        with open(file, "rb") as packed:
            packed.seek(-4, 2)
            size = struct.unpack("<I", packed.read(4))[0]
        dims = struct.unpack_from("<8h", header, 40)
        if struct.unpack_from("<i", header)[0] == 348 and 1 <= dims[0] <= 7:
            voxels = int(np.prod([max(1, d) for d in dims[1 : dims[0] + 1]], dtype=np.int64))
            expected = int(struct.unpack_from("<f", header, 108)[0]) + voxels * struct.unpack_from("<h", header, 72)[0] // 8
            if size == expected % 2**32:
                return
        try:  # an unusual file: unpack it to the end
            while unpacked.read(1 << 24):
                pass
        except EOFError:
            raise RunnerError(f"{file} is truncated: replace the file by an intact one") from None


def _write_itk(segmentation: np.ndarray, file: Path, geometry: dict) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(segmentation[0] if len(geometry["spacing"]) == 2 else segmentation)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    if "orientation" in geometry:
        image = SimpleITK.DICOMOrient(image, geometry["orientation"])
    SimpleITK.WriteImage(image, str(file), True)


def _read_natural(file: Path, _: bool) -> Image:
    """2-D, grey or RGB; challenge platforms send photographs as .mha."""
    geometry = {}
    if file.name.endswith(ITK_ENDINGS):
        import SimpleITK

        image = SimpleITK.ReadImage(str(file))
        data = SimpleITK.GetArrayFromImage(image)
        geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
        if image.GetDimension() == 3 and len(data) == 1:
            data = data[0]
    elif file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        data = tifffile.imread(file)
        if data.ndim == 3 and data.shape[-1] not in (3, 4) and data.shape[0] in (3, 4):
            data = np.moveaxis(data, 0, -1)
    else:
        from PIL import Image as Pillow

        with Pillow.open(file) as image:
            data = np.asarray(image.convert(image.palette.mode) if image.mode == "P" else image)
    if data.ndim == 3 and data.shape[-1] in (3, 4):
        data = np.moveaxis(data, -1, 0)
    elif data.ndim == 2:
        data = data[None]
    else:
        raise RunnerError(f"{file} has shape {data.shape}: the model reads 2-D grey or RGB images")
    return Image(data[:, None], (999.0, 1.0, 1.0), geometry)


def _write_natural(segmentation: np.ndarray, file: Path) -> None:
    if file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(file, segmentation)
    else:
        from PIL import Image as Pillow

        Pillow.fromarray(segmentation).save(file)


def _read_tiff(file: Path, _: bool) -> Image:
    """A 3-D TIFF; its spacing is in CASE.json beside CASE_0000.tif, else 1."""
    import tifffile

    data = tifffile.imread(file)
    if data.ndim != 3:
        raise RunnerError(f"{file} has shape {data.shape}: the model reads 3-D TIFF files")
    notes = file.with_name(file.name[: -len(file.suffix) - 5] + ".json")
    spacing = (1.0, 1.0, 1.0)
    if notes.is_file():
        spacing = tuple(float(s) for s in json.loads(notes.read_text(encoding="utf-8"))["spacing"])
        if len(spacing) != 3:
            raise RunnerError(f"{notes} must give three spacings (z, y, x)")
    return Image(data[None], spacing, {"spacing": spacing})
