"""Reads a raw nnU-Net dataset back and says what is in it and what is wrong: counts, sizes, spacing, label values, geometry,
duplicates; and draws a contact sheet of images with outlines. For any dataset in PNG or NIfTI files, not only ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK
from skimage.io import imread

from nnunet_kd.datasets.contact_sheet import contact_sheet
from nnunet_kd.datasets.fundus.field_of_view import doubt, fitted_circle
from nnunet_kd.datasets.nnunet_format import missing_text, shortened
from nnunet_kd.datasets.volumetric.volumes import elsewhere, label_counts, read_volume
from nnunet_kd.utils.dataset_json import channel_names
from nnunet_kd.utils.errors import KDError, first_line
from nnunet_kd.utils.progress import progress

N_SHOWN = 6  # cases on the contact sheet, and names in a line of the text
SHEET = "verify.png"


@dataclass
class Verification:
    """What a dataset holds (`rows`, name and value), what is worth knowing (`notes`), what should be looked at (`warnings`)
    and what is wrong (`problems`)."""

    dataset: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """A short table, and one line for each note and problem."""
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{self.dataset}: {f'{len(self.problems)} PROBLEM(S)' if self.problems else 'no problems'}"]
        lines += [f"  {name:{width}}  {value}" for name, value in self.rows]
        lines += [f"  note: {n}" for n in self.notes] + [f"  warning: {w}" for w in self.warnings]
        return "\n".join(lines + [f"  PROBLEM: {p}" for p in self.problems])


@dataclass
class _Case:
    name: str
    tag: str
    size: tuple[int, ...]  # (x, y[, z])
    spacing: tuple[float, ...] | None
    digest: str
    counts: dict[int | float, int]  # label value -> voxels; empty without a label
    channels: int  # in all its files


def verify_dataset(folder: str | Path) -> Verification:
    """Check a raw dataset folder and write its contact sheet, `verify.png`, into it.

    Raises KDError if it is no such folder. Anything wrong with single cases is a problem in the result.
    """
    folder = Path(folder)
    description = _read_json(folder / "dataset.json", required=True)
    try:
        ending, channels = description["file_ending"], len(channel_names(description))
        allowed = {v for value in description["labels"].values() for v in (value if isinstance(value, list) else [value])}
        training = int(description["numTraining"])
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise KDError(f"{folder / 'dataset.json'} lacks {e} of nnU-Net's format: convert the set again") from e
    if ending not in (".png", ".nii.gz", ".nii"):
        raise KDError(f"{folder} holds {ending} files: only .png, .nii.gz and .nii can be verified")

    verification, cases = Verification(folder.name), []
    for tag in ("Tr", "Ts"):
        cases += _read_part(folder, tag, ending, channels, verification)
    parts = {tag: [c for c in cases if c.tag == tag] for tag in ("Tr", "Ts")}
    if len(parts["Tr"]) != training:
        verification.problems.append(
            f"dataset.json says {training} training cases, imagesTr holds {len(parts['Tr'])} readable ones"
        )
    _check_labels(cases, allowed, verification)
    _check_duplicates(cases, verification)
    conversion = _read_json(folder / "conversion.json")
    _check_published(conversion, cases, verification, description.get("missing_cases"))
    _check_fields(folder, conversion, verification)

    labelled = [c for c in cases if c.counts]
    verification.rows[:0] = [
        ("cases", f"{len(parts['Tr'])} in imagesTr, {len(parts['Ts'])} in imagesTs, {len(labelled)} labelled")
    ]
    native = [tuple(e["native_size"][::-1]) for e in conversion.get("cases", {}).values() if "native_size" in e]
    if native:
        verification.rows.append(("native size", _ranges(native)))
    verification.rows.append(("written size", _ranges([c.size for c in cases])))
    spacings = [c.spacing for c in cases if c.spacing]
    if spacings:
        verification.rows.append(("spacing (mm)", _ranges(spacings)))
    verification.rows.append(("label values", _label_shares(labelled)))
    if cases:
        filled = [part for part in parts.values() if part]
        spread = [
            p[i] for p in filled for i in np.unique(np.linspace(0, len(p) - 1, N_SHOWN // len(filled)).round().astype(int))
        ]
        shown = [(f"{c.name} ({c.tag})", *_files(folder, c.tag, c.name, ending)) for c in spread]
        try:
            contact_sheet(shown).save(folder / SHEET)
            verification.rows.append(("contact sheet", str(folder / SHEET)))
        except Exception as error:  # a picture is no reason to lose what was found
            verification.notes.append(f"no contact sheet: {first_line(error)}")
    return verification


def _files(folder: Path, tag: str, name: str, ending: str) -> tuple[Path, Path]:
    return folder / f"images{tag}" / f"{name}_0000{ending}", folder / f"labels{tag}" / f"{name}{ending}"


def _read_json(path: Path, required: bool = False) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError) as e:
        if required:
            raise KDError(f"{path} cannot be read ({e}): give a raw dataset with a dataset.json") from e
        return {}


def _read_part(folder: Path, tag: str, ending: str, channels: int, verification: Verification) -> list[_Case]:
    """All cases of imagesTr or imagesTs; what is missing or unreadable becomes a problem."""
    names = {
        part: sorted(p.name.removesuffix(ending) for p in (folder / f"{part}{tag}").glob(f"*{ending}") if p.name[0] != ".")
        for part in ("images", "labels")
    }
    wrong = [n for n in names["images"] if len(n) < 6 or n[-5] != "_" or not n[-4:].isdigit()]
    if wrong:
        _add(verification, f"images{tag}: names without a channel number", wrong)
    by_case: dict[str, list[str]] = {}
    for name in set(names["images"]) - set(wrong):
        by_case.setdefault(name[:-5], []).append(name[-4:])
    # one file per channel, or several channels in a file, as nnU-Net counts them: a file missing at the end shows when read
    unnumbered = {c for c, numbers in by_case.items() if sorted(numbers) != [f"{k:04d}" for k in range(len(numbers))]}
    _add(verification, f"labels{tag}: labels without an image", sorted(set(names["labels"]) - set(by_case)))
    if tag == "Tr" or names["labels"]:
        _add(verification, f"images{tag}: images without a label", sorted(set(by_case) - set(names["labels"])))
    cases = []
    for case in progress(sorted(set(by_case) - unnumbered), f"verify {tag}", leave=True):
        images = [folder / f"images{tag}" / f"{case}_{number}{ending}" for number in sorted(by_case[case])]
        label = folder / f"labels{tag}" / f"{case}{ending}" if case in names["labels"] else None
        try:
            cases.append(_read_case(case, tag, images, label, verification))
        except KDError as e:
            verification.problems.append(str(e))
    others = {c.name for c in cases if c.channels != channels}
    _add(verification, f"images{tag}: not exactly {channels} channel(s)", sorted(unnumbered | others))
    return cases


def _read_case(name: str, tag: str, images: Sequence[Path], label: Path | None, verification: Verification) -> _Case:
    digest, first, channels = hashlib.sha256(), None, 0
    for path in images:
        array, volume, size, several = _read(path)
        first, channels = first or (volume, size), channels + several
        digest.update(np.ascontiguousarray(array))
        if array.min() == array.max():
            verification.problems.append(f"{path} has the value {array.min()} everywhere")
        if size != first[1] or (volume is not None and elsewhere(volume, first[0])):
            verification.problems.append(f"{path} lies elsewhere than the first channel")
    volume, size = first
    counts: dict = {}
    if label is not None:
        marks, place, marked, several = _read(label)
        if several != 1:
            verification.problems.append(f"{label} holds {several} channels: a label map has one, of label values")
        elif marked != size:
            verification.problems.append(f"{label} is {'x'.join(map(str, marked))}, its image {'x'.join(map(str, size))}")
        elif volume is not None and (difference := elsewhere(place, volume)):
            verification.problems.append(f"{label} lies elsewhere than its image ({difference})")
        counts = label_counts(marks) if several == 1 else {}
    spacing = volume.GetSpacing() if volume is not None else None
    return _Case(name, tag, size, spacing, digest.hexdigest(), counts, channels)


def _read(path: Path) -> tuple[np.ndarray, SimpleITK.Image | None, tuple[int, ...], int]:
    """All values, the volume they belong to, the size (x, y[, z]) and the number of channels, as nnU-Net's readers take them:
    a picture has its colours last, a volume of four dimensions its channels."""
    if path.suffix == ".png":
        try:
            array = imread(path)
        except (OSError, SyntaxError, ValueError) as e:
            raise KDError(f"cannot read {path} ({e})") from e
        return array, None, array.shape[1::-1], array.shape[2] if array.ndim == 3 else 1
    volume = read_volume(path, "convert again")
    array = SimpleITK.GetArrayViewFromImage(volume)
    if volume.GetDimension() == 4:
        return array, volume[:, :, :, 0], volume.GetSize()[:3], volume.GetSize()[3]
    return array, volume, volume.GetSize(), 1


def _check_labels(cases: Sequence[_Case], allowed: set, verification: Verification) -> None:
    for case in cases:
        unknown = sorted(set(case.counts) - allowed)
        if unknown:
            verification.problems.append(
                f"label of {case.name} ({case.tag}) holds {unknown[:5]}, dataset.json knows {sorted(allowed)}"
            )
    empty = [c.name for c in cases if c.counts and not any(c.counts.get(v) for v in allowed if v)]
    if empty:
        verification.notes.append(f"{len(empty)} label(s) mark nothing: {_some(empty)}")
    unscaled = [c.name for c in cases if c.spacing and np.allclose(c.spacing, 1)]
    if unscaled and len(unscaled) < len(cases):
        verification.notes.append(f"{len(unscaled)} case(s) have 1 mm spacing along all axes, others not: {_some(unscaled)}")


def _check_duplicates(cases: Sequence[_Case], verification: Verification) -> None:
    by_digest: dict[str, list[str]] = {}
    for case in cases:
        by_digest.setdefault(case.digest, []).append(f"{case.name} ({case.tag})")
    for same in by_digest.values():
        if len(same) > 1:
            verification.problems.append(f"{len(same)} images are the same: {_some(same)}")


def _check_published(conversion: dict, cases: Sequence[_Case], verification: Verification, missing: list[str] | None) -> None:
    """Against what the converter knows of the published set. missing: what --allow-missing left out, None without it."""
    published = conversion.get("published") or {}
    if missing:
        verification.warnings.append(missing_text(missing))
    if (n := published.get("cases")) and n != len(cases) + len(missing or ()):
        (verification.problems if missing is None else verification.warnings).append(
            f"{n} cases are published, found {len(cases)}"
        )
    if size := published.get("native_size"):
        others = [name for name, entry in conversion.get("cases", {}).items() if entry.get("native_size") != size]
        if others:
            wanted = "x".join(map(str, size[::-1]))
            verification.problems.append(
                f"{len(others)} image(s) were not {wanted} pixels, as published, before: {_some(others)}: a resized copy"
            )


def _check_fields(folder: Path, conversion: dict, verification: Verification) -> None:
    """Whether the written fields of view of a set of fundus photographs are discs, and what the converter thought of them."""
    poor = {}
    for name, entry in conversion.get("cases", {}).items():
        file = folder / f"fov{str(entry.get('part', ''))[-2:]}" / f"{name}.png"
        if not file.is_file() or "crop_box" not in entry:
            continue
        circle = fitted_circle(_read(file)[0] > 0)
        noted = (entry.get("field_of_view") or {}).get("circle") or {}
        if noted and circle:
            circle = replace(circle, fit=min(circle.fit, noted["fit"]))
        if why := doubt(circle):
            poor[name] = why
    if poor:
        first = next(iter(poor))
        verification.warnings.append(
            f"{len(poor)} field(s) of view look wrong (first {first}: {poor[first]}): {_some(list(poor))}; look at fovTr and "
            "fovTs, or convert with masks of your own (--fov-masks)"
        )


def _label_shares(cases: Sequence[_Case]) -> str:
    totals: dict = {}
    for case in cases:
        for value, n in case.counts.items():
            totals[value] = totals.get(value, 0) + n
    return ", ".join(f"{v} ({100 * n / sum(totals.values()):.1f}%)" for v, n in sorted(totals.items())) or "none"


def _ranges(sizes: Sequence[tuple]) -> str:
    """Smallest and largest along every axis: "512x512x74..987"."""
    if not sizes:
        return "none"
    if len({len(s) for s in sizes}) > 1:
        return "of different dimension"
    text = lambda v: f"{v:g}" if isinstance(v, int) else f"{v:.3g}"  # noqa: E731
    axes = [(text(min(a)), text(max(a))) for a in zip(*sizes, strict=True)]
    return " x ".join(low if low == high else f"{low}..{high}" for low, high in axes)


def _add(verification: Verification, what: str, names: Sequence[str]) -> None:
    if names:
        verification.problems.append(f"{what}: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    return shortened(names, N_SHOWN)
