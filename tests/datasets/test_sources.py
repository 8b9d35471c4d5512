"""Archives and folders as sources: what is found, what is refused, what is left behind."""

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from nnunet_kd.cli.main import main
from nnunet_kd.datasets import CONVERTERS
from nnunet_kd.datasets.sources import SourceFiles, opened
from nnunet_kd.utils.errors import KDError

KEEP = r"im\d+(?:\.ah)?\.ppm(?:\.gz)?"


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def found(source: Path, tmp_path: Path, pattern: str = r"im(\d+)\.ppm(?:\.gz)?", **options) -> dict[tuple, bytes]:
    """What is found, read while the source is open; afterwards nothing may be left."""
    with opened(source, tmp_path / "raw", KEEP, **options) as root:
        result = {key: path.read_bytes() for key, path in SourceFiles(root).find(pattern).items()}
    assert not list((tmp_path / "raw").glob("*")) and not list((tmp_path / "raw").glob(".*"))
    return result


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_reads_like_its_folder(tmp_path, kind):
    folder = fill(tmp_path / "set", "inner/Im1.PPM", "inner/im2.ppm.gz", "notes.txt", "__MACOSX/inner/._im1.ppm", ".im3.ppm")
    archive = Path(shutil.make_archive(str(tmp_path / "x"), kind, folder))
    assert found(archive, tmp_path) == found(folder, tmp_path) == {("1",): b"inner/Im1.PPM", ("2",): b"inner/im2.ppm.gz"}


def test_a_folder_of_archives_and_archives_in_archives(tmp_path):
    for name in ("a", "b"):
        shutil.make_archive(str(tmp_path / "set" / name), "tar", fill(tmp_path / name, f"im{ord(name)}.ppm"))
    assert len(found(tmp_path / "set", tmp_path)) == 2
    outer = Path(shutil.make_archive(str(tmp_path / "outer"), "zip", tmp_path / "set"))
    assert len(found(outer, tmp_path)) == 2
    fill(tmp_path / "set", "im9.ppm")  # unpacked beside the archives: they are left alone
    assert list(found(tmp_path / "set", tmp_path)) == [("9",)]


def test_natural_order_depth_and_the_folder_above(tmp_path):
    folder = fill(tmp_path / "Set", "x/images/im10.ppm", "x/images/im9.ppm", "x/masks/im9.ah.ppm")
    assert list(found(folder, tmp_path)) == [("9",), ("10",)]
    below = folder / "x" / "images"
    assert len(found(below, tmp_path, r"im(\d+)\.ah\.ppm")) == 0
    assert len(found(below, tmp_path, r"im(\d+)\.ah\.ppm", parts=("images", "masks"))) == 1


def test_two_copies_are_an_error_but_not_a_file_beside_its_gz(tmp_path):
    folder = fill(tmp_path / "set", "a/im1.ppm", "a/im1.ppm.gz")
    assert found(folder, tmp_path) == {("1",): b"a/im1.ppm"}
    fill(folder, "b/im1.ppm")
    with pytest.raises(KDError, match="holds the same file twice .*a/im1.ppm and .*b/im1.ppm"):
        found(folder, tmp_path)


def test_a_link_in_the_users_own_folder_is_followed_once(tmp_path):
    fill(tmp_path / "elsewhere", "im1.ppm")
    folder = fill(tmp_path / "set", "im2.ppm")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert list(found(folder, tmp_path)) == [("1",), ("2",)]


def zip_with(path: Path, name: str, mode: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("im1.ppm", b"fine")
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode or 0o100644) << 16
        file.writestr(info, b"/etc/passwd")
    return path


def tar_with(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for n, k in (("im1.ppm", tarfile.REGTYPE), (name, kind)):
            info = tarfile.TarInfo(n)
            info.type, info.linkname, info.size = k, "/etc/passwd", 4 if k == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(b"abcd"))
    return path


@pytest.mark.parametrize("name", ["../im7.ppm", "/tmp/im7.ppm", "a/../../im7.ppm", "C:\\im7.ppm", "..\\im7.ppm"])
@pytest.mark.parametrize("make", [zip_with, tar_with])
def test_an_archive_that_would_write_elsewhere_is_refused_whole(tmp_path, make, name):
    with pytest.raises(KDError, match="would write outside its folder .*download it again") as error:
        found(make(tmp_path / "x.archive", name), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("im7*")) and not list(tmp_path.rglob(".unpacked*")) and not Path("/tmp/im7.ppm").exists()


def test_links_and_devices_in_archives_are_refused(tmp_path):
    for archive in (
        zip_with(tmp_path / "a.zip", "im2.ppm", 0o120777),
        tar_with(tmp_path / "b.tar.gz", "im2.ppm", tarfile.SYMTYPE),
        tar_with(tmp_path / "c.tar.gz", "im2.ppm", tarfile.LNKTYPE),
        tar_with(tmp_path / "d.tar.gz", "pipe", tarfile.FIFOTYPE),
    ):
        with pytest.raises(KDError, match="holds a link or device"):
            found(archive, tmp_path)
        assert not list((tmp_path / "raw").glob(".*"))


def test_broken_archives(tmp_path):
    whole = shutil.make_archive(str(tmp_path / "x"), "gztar", fill(tmp_path / "set", *(f"im{i}.ppm" for i in range(300))))
    content = Path(whole).read_bytes()
    cases = {
        "half.tar.gz": content[: len(content) // 2],
        "text.zip": b"not found",
        "empty.tar": b"",
        "text.gz": gzip.compress(b"x"),
    }
    damaged = bytearray(zip_with(tmp_path / "y.zip", "im2.ppm").read_bytes())
    damaged[damaged.index(b"fine")] ^= 1  # the checksum shows it
    for name, data in {**cases, "damaged.zip": bytes(damaged)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(KDError, match=f"{name}.*download it again") as error:
            found(tmp_path / name, tmp_path)
        assert "\n" not in str(error.value) and not list((tmp_path / "raw").glob(".*"))
    (tmp_path / "set.rar").write_bytes(b"Rar!")
    with pytest.raises(KDError, match="unpack it yourself"):
        found(tmp_path / "set.rar", tmp_path)
    with pytest.raises(KDError, match="nowhere is not a folder or an archive"):
        found(tmp_path / "nowhere", tmp_path)


def test_errors_name_the_archive_not_the_scratch_folder(tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "x"), "zip", fill(tmp_path / "set", "a/im1.ppm", "b/im1.ppm")))
    with pytest.raises(KDError, match="twice") as error:
        found(archive, tmp_path)
    assert ".unpacked" not in str(error.value) and f"{archive}/x/a/im1.ppm" in str(error.value)


def test_help_names_every_set(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in CONVERTERS)
