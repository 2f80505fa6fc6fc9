"""Files of ours: written whole or not at all, and read to one clear error when they are damaged or edited by hand."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplab.errors import DataError
from pipeline.errors import ParamsError

# What reading a damaged file raises.
BROKEN = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block has ended; after an error the old file stays, and nothing else.

    An OSError names `path`.
    """
    partial = path.with_name(f".part-{path.name}")  # the same ending, by which libraries choose a format
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno is None or error.filename not in (None, str(partial)):  # a library's own, or of another file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep out other processes that lock `path` until the block has ended. The file is created if it is missing."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:  # else it was replaced meanwhile
                yield
                return


@contextmanager
def readable(path: Path, remedy: str) -> Iterator[None]:
    """DataError when the block finds that `path` is not as it was written; `remedy` says what brings it back."""
    try:
        yield
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(f"{path}: damaged, or edited by hand ({type(error).__name__}: {error}). {remedy}") from None


def writable(out: Path) -> None:
    """Make the folder `out`.

    Raises ParamsError when a file is there, and an OSError that names the folder when nothing can be written to it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ParamsError(f"--out: {out}: a file is in the way, expected a folder or a new name") from None
    probe = out / ".writable"
    probe.touch()
    probe.unlink()
