"""Unpack an untrusted archive: only regular files, only below the named folders, and only up to limits.

Python's `extractall` is not used: in 3.11 it follows links out of the folder, and its `data` filter has been bypassed.
"""

import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Final

from deeplab.errors import DataError, naming

MAX_MEMBERS: Final = 200_000  # the largest of the official archives has 45,000
CHUNK: Final = 1 << 20  # bytes
FILE, FOLDER = "a file", "a folder"

# What both libraries raise for a broken archive.
BROKEN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    OverflowError,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """An entry of a tar or zip archive."""

    name: str
    kind: str  # FILE, FOLDER or a description
    size: int  # bytes, by the archive's own account
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path, into: Path, folders: Sequence[str], max_bytes: int, report: Callable[[int], None] = lambda _: None
) -> None:
    """Write the files of `archive` below `folders` to `into`, and call `report` with the bytes as they are written.

    Raises DataError with the first member that is refused. The caller removes what was written until then.
    """
    wanted, total = [PurePosixPath(folder) for folder in folders], 0
    found: set[PurePosixPath] = set()
    try:
        for count, member in enumerate(members_of(archive), start=1):
            path = checked_path(archive, member)
            total += member.size
            if total > max_bytes:
                raise DataError(f"{archive}: refused: unpacks to more than {max_bytes:,} bytes (at {member.name!a})")
            if count > MAX_MEMBERS:
                raise DataError(f"{archive}: refused: has more than {MAX_MEMBERS:,} members")
            below = [folder for folder in wanted if folder in (path, *path.parents)]
            if member.kind == FILE and below:
                found.update(below)
                write(archive, member, into / path, report)
    except BROKEN as error:
        raise DataError(f"{archive}: broken or cut short ({error or type(error).__name__})") from None
    except OSError as error:
        reasons = {errno.EINVAL: "a member is outside of it", None: error}  # None: from bz2, not from the system
        if error.errno not in reasons:
            raise
        raise DataError(f"{archive}: broken or cut short ({reasons[error.errno]})") from None
    if missing := [str(folder) for folder in wanted if folder not in found]:
        raise DataError(f"{archive}: holds no files in {' and '.join(missing)}. Is it the right archive?")


def checked_path(archive: Path, member: Member) -> PurePosixPath:
    """The path of `member`. Raises DataError if it leaves the folder, or is neither a file nor a folder."""
    path = PurePosixPath(member.name)
    problem = ""
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        problem = "leaves the folder"
    elif member.kind not in (FILE, FOLDER):
        problem = f"is {member.kind}, expected only files and folders"
    elif not member.name.isprintable() or (member.kind == FILE and not path.parts):
        problem = "has an unusable name"
    if problem:
        raise DataError(f"{archive}: refused: {member.name!a} {problem}")
    return path


def write(archive: Path, member: Member, path: Path, report: Callable[[int], None]) -> None:
    """Write one file, without the owner and the mode that the archive gives it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")  # does not overwrite
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"{archive}: refused: {member.name!a} occurs twice, or as a file and as a folder") from None
    written = 0
    with naming(path), file, member.open() as content:
        while written <= member.size and (chunk := content.read(CHUNK)):
            file.write(chunk)
            written += len(chunk)
            report(len(chunk))
    if written != member.size:
        raise DataError(
            f"{archive}: refused: {member.name!a} is not as long as the archive says ({member.size:,} bytes)"
        )


def members_of(archive: Path) -> Iterator[Member]:
    """The members in the order of the archive."""
    return zip_members(archive) if archive.suffix == ".zip" else tar_members(archive)


def tar_members(archive: Path) -> Iterator[Member]:
    """The members of a tar, plain or compressed by gzip, whatever its name."""
    with archive.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with tarfile.open(archive, "r:gz" if packed else "r:") as tar:
        for entry in tar:
            yield Member(name=entry.name, kind=tar_kind(entry), size=entry.size, open=partial(tar_file, tar, entry))
        # tarfile stops at the first block that is no header. Reading on finds damage, and checks gzip's checksum.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        rest = tar.fileobj.read(CHUNK)
        if any(rest[: tarfile.BLOCKSIZE]):
            raise tarfile.ReadError(f"no header at byte {tar.offset:,}")


def tar_file(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    """The content of a regular file."""
    content = tar.extractfile(entry)
    assert content is not None
    return content


def tar_kind(entry: tarfile.TarInfo) -> str:
    """FILE, FOLDER or a description of `entry`."""
    if entry.isdir():
        return FOLDER
    if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse():
        return FILE
    if entry.issym() or entry.islnk():
        return f"a link to {entry.linkname!a}"
    return "a device or a pipe" if entry.isdev() else "of an unknown kind"


def zip_members(archive: Path) -> Iterator[Member]:
    """The members of a zip."""
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            yield Member(name=info.filename, kind=zip_kind(info), size=info.file_size, open=partial(packed.open, info))


def zip_kind(info: zipfile.ZipInfo) -> str:
    """FILE, FOLDER or a description of `info`. The upper half of its attributes is a Unix mode or zero."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 0x1:
        return "encrypted"
    if kind == stat.S_IFLNK:
        return "a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device or a pipe"
    return FOLDER if info.filename.endswith("/") or kind == stat.S_IFDIR else FILE  # is_dir fails without a name
