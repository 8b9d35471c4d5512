"""Published archives and folders: unpacked safely, searched without regard to case, depth and compression."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nnunet_kd.utils.errors import KDError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".rar", ".7z")
ALLOW_MISSING = "or convert the rest with --allow-missing"
MAX_NESTING = 3  # DRIVE's datasets.zip holds training.zip and test.zip


@contextmanager
def opened(source: str | Path, scratch: str | Path, keep: str, parts: Collection[str] = ()) -> Iterator[Path]:
    """The folder in which to look for a set's files.

    source: a folder or an archive (.zip, .tar, .tar.gz). A folder without any file that matches `keep` counts with what
    the archives directly inside it hold. scratch: on its disk archives are unpacked, into a hidden folder that is gone
    at the end (nnUNet_raw: there is room for the result anyway). keep: regular expression on lower-case paths; what
    does not match is not unpacked. parts: names of folders inside the layout; a source of such a name stands for the
    folder above it. Raises KDError for what is neither, and for archives that are broken or unsafe.
    """
    source = Path(source).expanduser()
    if source.is_file():
        archives = [source]
    elif source.is_dir():
        if source.resolve().name.lower() in parts:
            source = source.resolve().parent
        archives = [] if SourceFiles(source).find(keep, twice=True) else _archives(source)
    else:
        raise KDError(
            f"{source} is not a folder or an archive that exists: give the published archive (.zip, .tar, .tar.gz) or the "
            "folder it was unpacked to"
        )
    if not archives:
        yield source
        return
    try:
        Path(scratch).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unpacked_", dir=scratch))
    except OSError as e:
        raise KDError(f"cannot unpack into {scratch} ({e.strerror}): make it writable") from e
    try:
        for archive in archives:
            _unpack(archive, folder / _stem(archive), re.compile(keep), MAX_NESTING)
        yield folder
    except KDError as e:
        raise KDError(str(e).replace(str(folder), str(source))) from e  # the scratch folder is gone when it is read
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SourceFiles:
    """The files below a folder, by what their paths end with."""

    def __init__(self, root: Path, without: str | None = None) -> None:
        """Hidden files and what macOS adds to archives are left out. Links are followed: they are the user's own.

        without: regular expression; folders in `root` with such a name (lower case) are left out.
        """
        self.root, self.paths, seen = root, {}, set()
        for folder, folders, names in os.walk(root, followlinks=True):
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:  # a link to a folder above it
                folders.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            folders[:] = sorted((f for f in folders if not f.startswith((".", "__MACOSX"))), key=natural_key)
            if without:
                folders[:] = [f for f in folders if not re.fullmatch(without, f.lower())]
            for name in names:
                if not name.startswith("."):
                    path = Path(folder, name)
                    self.paths[path.relative_to(root).as_posix().lower()] = path

    def find(self, pattern: str, twice: bool = False) -> dict[tuple[str, ...], Path]:
        """Files whose whole name matches `pattern`, by its groups (lower case) and in their natural order.

        pattern: regular expression for the end of the lower-case path, with "/" between folders; it begins at a
        folder's or file's name. A file that is there as X and as X.gz counts once, uncompressed. Raises KDError if two
        files stand for the same, unless `twice`.
        """
        expression, path_of_key = re.compile(rf"(?:.*/)?(?:{pattern})"), {}
        for name in sorted(self.paths, key=natural_key):
            match = expression.fullmatch(name)
            if match is None:
                continue
            key, path = match.groups(), self.paths[name]
            other = path_of_key.setdefault(key, path)
            if other != path and str(path).lower() != f"{other}.gz".lower() and not twice:
                raise KDError(f"{self.root} holds the same file twice ({other} and {path}): give the folder of one copy only")
        return dict(sorted(path_of_key.items(), key=lambda item: [natural_key(group or "") for group in item[0]]))


def check_listed(
    source: str | Path,
    kinds: Mapping[str, Collection[tuple]],
    wanted: Mapping[tuple, str],
    of: str,
    expected: str,
    missing: list[str] | None = None,
) -> list[tuple]:
    """The keys of `wanted` (key of `SourceFiles.find` -> how to name it) that are in each of `kinds` (what it is -> keys).

    missing: None if all have to be there; else a list (--allow-missing) to which the names of the others are added. Raises
    KDError if one is missing and may not be, or if none is left.
    """
    lacking = {what: [name for key, name in wanted.items() if key not in keys] for what, keys in kinds.items()}
    left = [key for key in wanted if all(key in keys for keys in kinds.values())]
    for what, names in lacking.items():
        if names and (missing is None or not left):
            raise KDError(
                f"{source} lacks {len(names)} of the {len(wanted)} {what} of {of}, the first of {names[0]}: expected {expected}"
                + (f"; {ALLOW_MISSING}" if left else "")
            )
    if missing is not None:
        missing += [name for key, name in wanted.items() if key not in left]
    return left


def check_pairs(
    source: str | Path,
    images: Mapping[tuple, Path],
    labels: Mapping[tuple, Path],
    what: str,
    label: str,
    expected: str,
    missing: list[str] | None = None,
) -> list[tuple]:
    """The keys of images, called `what`, that have a label, called `label`.

    missing: as for `check_listed`; the names (without ending) of files whose partner is missing are added. Raises KDError
    if there are no pairs, or if an image has no label, or a label no image, and may not.
    """
    if not images:
        raise KDError(f"{source} holds no {what}: expected {expected}")
    left = [key for key in images if key in labels]
    for kind, partners, other in ((label, labels, images), ("image", images, labels)):
        alone = [other[key].name for key in other if key not in partners]
        if alone and (missing is None or not left):
            raise KDError(
                f"{source} lacks {len(alone)} {kind}s, the first for {alone[0]}: expected {expected}"
                + (f"; {ALLOW_MISSING}" if left else "")
            )
        if missing is not None:
            missing += [name.split(".")[0] for name in alone]
    return left


def natural_key(name: str) -> list:
    """Sorting key: image 9 before image 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _archives(folder: Path) -> list[Path]:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    return [p for p in files if p.name.lower().endswith((*ARCHIVES, *OTHER_ARCHIVES))]


def _stem(archive: Path) -> str:
    return re.sub(r"(?i)\.(zip|tar|tar\.gz|tgz)$", "", archive.name)


def _unpack(archive: Path, folder: Path, keep: re.Pattern, nesting: int) -> None:
    """Unpack what `keep` matches, and archives in the archive. Nothing is written before all names are checked."""
    if archive.name.lower().endswith(OTHER_ARCHIVES):
        raise KDError(f"{archive} is of a kind that Python cannot read: unpack it yourself and give the folder")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                members = [(i.filename, i.file_size, stat.S_ISLNK(i.external_attr >> 16), i) for i in file.infolist()]
                if any(i.flag_bits & 1 for *_, i in members):
                    raise KDError(f"{archive} is encrypted: unpack it with its password and give the folder")
                members = [m for m in members if not m[3].is_dir()]
                written = _write_members(archive, members, folder, keep, file.open)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                members = [(m.name, m.size, not m.isreg(), m) for m in file.getmembers() if not m.isdir()]
                written = _write_members(archive, members, folder, keep, file.extractfile)
        else:
            raise KDError(f"{archive} is no .zip, .tar or .tar.gz, or it is damaged: download it again")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError, NotImplementedError) as e:
        raise KDError(f"cannot unpack {archive} ({' '.join(str(e).split()) or type(e).__name__}): download it again") from e
    for inner in written:
        if inner.name.lower().endswith((*ARCHIVES, *OTHER_ARCHIVES)) and nesting > 1:
            _unpack(inner, inner.with_name(f"{_stem(inner)}"), keep, nesting - 1)


def _write_members(
    archive: Path, members: list, folder: Path, keep: re.Pattern, open_member: Callable[[Any], IO[bytes]]
) -> list[Path]:
    """members: (name, size, whether it is a link or a device, the library's object)."""
    chosen = []
    for name, size, special, member in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
            raise KDError(
                f"{archive} would write outside its folder ({name}): it is not the published archive, download it again"
            )
        if special:
            raise KDError(f"{archive} holds a link or device ({name}): it is not the published archive, download it again")
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts if part != ".")
        wanted = re.fullmatch(rf"(?:.*/)?(?:{keep.pattern})", str(path).lower()) or path.name.lower().endswith(ARCHIVES)
        if wanted and not hidden:
            chosen.append((path, size, member))
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(size for _, size, _ in chosen), shutil.disk_usage(folder).free
    if needed > free:
        raise KDError(
            f"{archive} needs {needed / 2**30:.1f} GiB unpacked, {folder} has {free / 2**30:.1f}: free some, or unpack it "
            "elsewhere and give the folder"
        )
    written = []
    for path, _, member in chosen:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_member(member) as inside, open(target, "xb") as outside:
                shutil.copyfileobj(inside, outside, 1 << 20)
        except FileExistsError as e:
            raise KDError(f"{archive} holds {path} twice: unpack it yourself and give the folder") from e
        written.append(target)
    return written
