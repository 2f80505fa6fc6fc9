"""Files of this project: written atomically, locked, and read with one clear error when they are damaged."""

import csv
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from deeplab.errors import DataError, naming
from pipeline.errors import BusyError, ParamsError

PATIENCE = 10.0  # seconds to wait for a lock; the data workers of a killed run hold it for about one

# What reading a damaged file raises.
BROKEN = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, csv.Error)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends. After an error only the old file is left.

    An OSError names `path`.
    """
    partial = path.with_name(f".part-{path.name}")  # the same suffix, by which libraries choose a format
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno is None or error.filename not in (None, str(partial)):  # of a library, or about another file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of the file `path`, which is created if it is missing, and hold it in the block."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:  # otherwise it was replaced while waiting
                yield
                return


@contextmanager
def claimed(path: Path, name: str, doing: str = "trained") -> Iterator[None]:
    """Hold the lock of what is being `doing`, until the block or the process ends, in whatever way.

    Raises BusyError, which names the holder, when another process holds it.
    """
    deadline = time.monotonic() + PATIENCE
    while not (file := take(path)):
        if time.monotonic() > deadline:
            holder = path.read_text().strip()
            raise BusyError(f"{name}: already being {doing} ({holder}). Wait for it, or end it.")
        time.sleep(0.2)
    with file:
        sign(file, path, f"process {os.getpid()} on {socket.gethostname()}")
        yield


def take(path: Path) -> TextIO | None:
    """The file `path`, locked; None while another process holds it, or has just removed it with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    file.close()
    return None


def sign(file: TextIO, path: Path, holder: str) -> None:
    """Write `holder` into the locked `file`. An OSError names `path`."""
    with naming(path):
        file.truncate(0)
        os.write(file.fileno(), holder.encode())  # unbuffered: a buffer would fail again when the file is closed


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of the file `path`."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def readable(path: Path, remedy: str) -> Iterator[None]:
    """Raise DataError when the block cannot read `path`; `remedy` says how to restore it."""
    try:
        yield
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(f"{path}: damaged, or edited by hand ({type(error).__name__}: {error}). {remedy}") from None


def writable(out: Path) -> None:
    """Make the folder `out`. Raises ParamsError when a file is there, OSError when nothing can be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ParamsError(f"--out: {out}: a file is in the way, expected a folder or a new name") from None
    probe = out / ".writable"
    probe.touch()
    probe.unlink()
