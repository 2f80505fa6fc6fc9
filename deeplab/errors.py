"""The errors that a user can fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SettingsError(ValueError):
    """A setting does not fit the other settings or the machine."""


class DataError(ValueError):
    """Data is missing, damaged, or does not match the settings."""


class SizeError(DataError):
    """An image and its mask differ in size."""


class MaskError(DataError):
    """A mask was decoded but is invalid. `shape` is its height and width, which may be wrong too."""

    def __init__(self, message: str, shape: tuple[int, int]) -> None:
        super().__init__(message)
        self.shape = shape


class MaskModeError(MaskError):
    """A mask does not hold one 8-bit label per pixel."""


class LabelError(MaskError):
    """A mask has a label that is not in its data set."""


class NonFiniteError(ArithmeticError):
    """The loss is NaN or infinite."""


class WorkerError(RuntimeError):
    """A process that makes training samples died or hangs."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an OSError of the block: an error of writing to an open file does not name it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own error, say of gzip
            raise
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None
