import gzip
import resource
import stat
import tarfile
import zipfile
from random import Random

import pytest

from deeplab.errors import DataError
from pipeline.data import unpack as module
from pipeline.data.unpack import unpack
from pipeline.errors import describe
from tests.archives import write_tar, write_zip
from tests.faults import tried

GOOD = ("a/good.txt", b"good")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path, limit=10_000):
    """Unpack `path` in vain, and see that nothing happened outside; the message less its start."""
    canary = path.parent / "canary"
    canary.write_bytes(b"alive")
    before = {path, canary}
    with pytest.raises(DataError) as caught:
        unpack(path, path.parent / "out", ["a"], limit)
    assert canary.read_bytes() == b"alive"
    assert set(path.parent.iterdir()) - {path.parent / "out"} == before
    assert not any(found.is_symlink() for found in path.parent.rglob("*"))
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tgz", "w:gz"), ("x.tar.gz", "w:gz"), ("x.tgz", "w")])
def test_a_tar_is_unpacked_plain_or_packed_whatever_its_name(tmp_path, name, mode):
    path = write_tar(tmp_path / name, ("a", {"type": tarfile.DIRTYPE}), ("./a/b/c.txt", b"content"), GOOD, mode=mode)
    seen = []
    unpack(path, tmp_path / "out", ["a"], 100, seen.append)
    assert files(tmp_path / "out") == {"a/b/c.txt": b"content", "a/good.txt": b"good"}
    assert seen == [7, 4]


def test_a_zip_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "x.zip", ("a/", b"", stat.S_IFDIR | 0o755), ("a/b/c.txt", b"content"), GOOD)
    unpack(path, tmp_path / "out", ["a"], 100)
    assert files(tmp_path / "out") == {"a/b/c.txt": b"content", "a/good.txt": b"good"}


def test_only_the_named_folders_are_unpacked(tmp_path):
    path = write_tar(tmp_path / "x.tar", GOOD, ("b/x", b"b"), ("a/c/d/y", b"y"), ("a/cd/z", b"z"), ("README", b"read"))
    unpack(path, tmp_path / "out", ["a/c", "b"], 100)
    assert files(tmp_path / "out") == {"b/x": b"b", "a/c/d/y": b"y"}


@tried.ARCHIVES
def test_an_archive_without_the_named_folders_is_not_the_right_one(tmp_path):
    path = write_tar(tmp_path / "x.tar", GOOD)
    with pytest.raises(DataError, match=r"x.tar: holds no files in b and c. Is it the right archive\?$"):
        unpack(path, tmp_path / "out", ["b", "a", "c"], 100)


@tried.ESCAPES
def test_owner_and_mode_of_the_archive_are_dropped(tmp_path):
    tar = write_tar(tmp_path / "x.tar", ("a/run", {"mode": 0o6777, "uid": 12345}))
    packed = write_zip(tmp_path / "x.zip", ("a/run2", b"", stat.S_IFREG | 0o6777))
    for path in (tar, packed):
        unpack(path, tmp_path / "out", ["a"], 100)
    (tmp_path / "new").touch()
    for name in ("run", "run2"):
        found, usual = (tmp_path / "out/a" / name).stat(), (tmp_path / "new").stat()
        assert (found.st_mode, found.st_uid) == (usual.st_mode, usual.st_uid)


OUTSIDE = ["../canary", "a/../../canary", "/tmp/canary", "a/../b", "a\\..\\..\\canary", ".."]


@pytest.mark.parametrize("name", OUTSIDE)
@tried.ESCAPES
def test_a_member_that_leaves_the_folder_is_refused_by_name(tmp_path, name):
    tar = write_tar(tmp_path / "x.tar", GOOD, (name, b"bad"))
    assert refused(tar) == f"refused: {name!a} leaves the folder"
    tar.unlink()
    (tmp_path / "out/a/good.txt").unlink()
    assert refused(write_zip(tmp_path / "x.zip", GOOD, (name, b"bad"))) == f"refused: {name!a} leaves the folder"


@pytest.mark.parametrize("folder", ["a", "elsewhere"])
@pytest.mark.parametrize(
    ("attributes", "what"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "../canary"}, "a link to '../canary'"),
        ({"type": tarfile.SYMTYPE, "linkname": "good.txt"}, "a link to 'good.txt'"),
        ({"type": tarfile.LNKTYPE, "linkname": "a/good.txt"}, "a link to 'a/good.txt'"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a device or a pipe"),
        ({"type": tarfile.BLKTYPE}, "a device or a pipe"),
        ({"type": tarfile.FIFOTYPE}, "a device or a pipe"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "of an unknown kind"),
        ({"type": tarfile.CONTTYPE}, "of an unknown kind"),
    ],
)
@tried.ESCAPES
def test_a_tar_member_that_is_no_file_is_refused_wherever_it_goes(tmp_path, attributes, what, folder):
    name = f"{folder}/odd"
    path = write_tar(tmp_path / "x.tar", GOOD, (name, attributes))
    assert refused(path) == f"refused: {name!r} is {what}, expected only files and folders"


@pytest.mark.parametrize(
    ("mode", "what"),
    [(stat.S_IFLNK | 0o777, "a link"), (stat.S_IFCHR, "a device or a pipe"), (stat.S_IFIFO, "a device or a pipe")],
)
@tried.ESCAPES
def test_a_zip_member_that_is_no_file_is_refused(tmp_path, mode, what):
    path = write_zip(tmp_path / "x.zip", GOOD, ("a/odd", b"../../canary", mode))
    assert refused(path) == f"refused: 'a/odd' is {what}, expected only files and folders"


@tried.ARCHIVES
def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", GOOD)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flags of the file's own header, and of the directory's
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert refused(path) == "refused: 'a/good.txt' is encrypted, expected only files and folders"


@tried.ESCAPES
def test_links_nested_beyond_the_length_of_a_path_do_not_lead_outside(tmp_path):
    """The way of CVE-2025-4517: a path so long that checking it gives up, and then a link that leads out of it."""
    entries, path, step = [], "a", "d" * 200
    for letter in "bcdefghijklmnopq":
        entries.append((f"{path}/{step}", {"type": tarfile.DIRTYPE}))
        entries.append((f"{path}/{letter}", {"type": tarfile.SYMTYPE, "linkname": step}))
        path += f"/{letter}"
    entries.append((f"{path}/{'l' * 254}", {"type": tarfile.SYMTYPE, "linkname": "../" * 16}))
    entries.append(("a/escape", {"type": tarfile.SYMTYPE, "linkname": f"{path}/{'l' * 254}/../.."}))
    entries.append(("a/escape/canary", b"dead"))
    assert refused(write_tar(tmp_path / "x.tar", *entries)).startswith("refused: 'a/b' is a link to 'ddd")


@pytest.mark.parametrize("second", ["a/good.txt", "./a/good.txt", "a//good.txt", "a/good.txt/below"])
@tried.ARCHIVES
def test_a_member_that_is_there_twice_is_refused(tmp_path, second):
    message = f"refused: {second!r} occurs twice, or as a file and as a folder"
    tar = write_tar(tmp_path / "x.tar", GOOD, (second, b"second"))
    assert refused(tar) == message
    tar.unlink()
    (tmp_path / "out/a/good.txt").unlink()
    assert refused(write_zip(tmp_path / "x.zip", GOOD, (second, b"second"))) == message


@tried.ARCHIVES
def test_names_that_no_file_should_have_are_refused(tmp_path):
    for number, name in enumerate(["a/line\nbreak", "a/\udcff", "."]):
        (tmp_path / str(number)).mkdir()
        path = write_tar(tmp_path / str(number) / "x.tar", (name, b""))
        assert refused(path) == f"refused: {name!a} has an unusable name"
    (tmp_path / "zip").mkdir()
    assert refused(write_zip(tmp_path / "zip/x.zip", ("", b""))) == "refused: '' has an unusable name"


@tried.BOMBS
def test_a_bomb_is_refused_before_its_member_is_written(tmp_path):
    bomb = bytes(5_000_000)
    path = write_zip(tmp_path / "x.zip", GOOD, ("a/bomb", bomb))
    assert path.stat().st_size < 10_000
    assert refused(path) == "refused: unpacks to more than 10,000 bytes (at 'a/bomb')"
    assert files(tmp_path / "out") == {"a/good.txt": b"good"}
    path.unlink()
    (tmp_path / "out/a/good.txt").unlink()
    path = write_tar(tmp_path / "x.tgz", GOOD, ("elsewhere/bomb", bomb), mode="w:gz")
    assert refused(path) == "refused: unpacks to more than 10,000 bytes (at 'elsewhere/bomb')"


@tried.BOMBS
def test_the_limit_is_on_all_members_together(tmp_path):
    path = write_tar(tmp_path / "x.tar", *((f"a/{n}", bytes(1000)) for n in range(11)))
    assert refused(path) == "refused: unpacks to more than 10,000 bytes (at 'a/10')"


@tried.BOMBS
def test_more_members_than_any_data_set_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    path = write_zip(tmp_path / "x.zip", *((f"a/{n}", b"") for n in range(4)))
    assert refused(path) == "refused: has more than 3 members"


@pytest.mark.parametrize("claimed", [10, 9_000])
@tried.ARCHIVES
def test_a_zip_member_that_is_not_as_long_as_it_says_is_refused(tmp_path, claimed):
    """A bomb may claim to be small."""
    path = write_zip(tmp_path / "x.zip", ("a/bomb", bytes(5_000)))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    for place in (22, start + 24):
        content[place : place + 4] = claimed.to_bytes(4, "little")
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(("broken or cut short (", "refused: 'a/bomb' is not as long as the archive says"))
    assert sum(map(len, files(tmp_path / "out").values())) <= 5_000


@tried.ARCHIVES
def test_a_reader_that_gives_more_than_the_archive_says_is_stopped(tmp_path, monkeypatch):
    class Endless:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            return bytes(size)

    member = module.Member(name="a/endless", kind=module.FILE, size=5, open=Endless)
    monkeypatch.setattr(module, "members_of", lambda _: [member])
    with pytest.raises(DataError, match=r"x.tar: refused: 'a/endless' is not as long as the archive says \(5 bytes\)$"):
        unpack(tmp_path / "x.tar", tmp_path / "out", ["a"], 100)
    assert (tmp_path / "out/a/endless").stat().st_size <= module.CHUNK


@pytest.mark.parametrize("kept", [0, 1, 300, 700, 1200, 2000])
@tried.ARCHIVES
def test_an_archive_that_is_cut_short_is_refused(tmp_path, kept):
    content = [Random(number).randbytes(1000) for number in range(60)]
    for number, path in enumerate(
        [
            write_tar(tmp_path / "x.tar", ("a/1", content[1]), ("a/2", content[2])),
            write_tar(tmp_path / "x.tgz", *((f"a/{n}", content[n]) for n in range(60)), mode="w:gz"),
            write_zip(tmp_path / "x.zip", *((f"a/{n}", content[n]) for n in range(60))),
        ]
    ):
        whole = path.read_bytes()
        assert len(whole) > kept
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / path.name).write_bytes(whole[:kept])
        assert refused(folder / path.name, 10**6).startswith("broken or cut short (")


@tried.ARCHIVES
def test_a_tar_with_rubbish_between_its_members_is_refused(tmp_path):
    """tarfile itself takes that for the end and says nothing."""
    path = write_tar(tmp_path / "x.tar", GOOD, ("a/2", b"second"))
    content = bytearray(path.read_bytes())
    content[1024:1040] = b"x" * 16
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 1
    assert refused(path) == "broken or cut short (no header at byte 1,024)"


@tried.ARCHIVES
def test_flipped_bytes_in_packed_archives_are_found(tmp_path):
    path = write_zip(tmp_path / "x.zip", ("a/1", bytes(range(256)) * 8))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    assert refused(path).startswith("broken or cut short (")
    path.unlink()
    write_tar(tmp_path / "plain", ("a/2", bytes(range(256)) * 8))
    content = bytearray(gzip.compress((tmp_path / "plain").read_bytes()))
    (tmp_path / "plain").unlink()
    content[-6] ^= 0xFF  # of the checksum
    path = tmp_path / "x.tgz"
    path.write_bytes(content)
    assert refused(path).startswith("broken or cut short (")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@tried.ARCHIVES
def test_flipped_bytes_are_found_in_every_compression_of_zip(tmp_path, method):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/1", Random(0).randbytes(100_000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert refused(path, 10**6).startswith("broken or cut short (")


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
@tried.ARCHIVES
def test_what_is_no_archive_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"<html>" * 500)
    assert refused(path).startswith("broken or cut short (")


@pytest.mark.parametrize("write", [write_tar, write_zip])
@tried.SMALL_DISK
def test_a_full_disk_is_named_with_its_file(tmp_path, write):
    path = write(tmp_path / ("x.zip" if write is write_zip else "x.tar"), GOOD, ("a/big", bytes(100_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            unpack(path, tmp_path / "out", ["a"], 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert describe(caught.value) == (
        f"{tmp_path}/out/a/big: no space left on the disk. Free some and run the same command again."
    )


@tried.ARCHIVES
def test_a_zip_whose_member_lies_before_its_beginning_is_broken(tmp_path):
    path = write_zip(tmp_path / "x.zip", GOOD, ("a/2", b"second"))
    content = path.read_bytes()
    path.write_bytes(content[:2] + content[4:])  # all places in its directory are then two bytes off
    assert refused(path).startswith("broken or cut short (")
