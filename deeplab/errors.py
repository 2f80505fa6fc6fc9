"""The ways in which a run can fail without a bug."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SettingsError(ValueError):
    """A setting does not fit the others, or the machine."""


class DataError(ValueError):
    """The data is missing, broken, or not what the settings say."""


class SizeError(DataError):
    """An image and its mask differ in size."""


class MaskError(DataError):
    """A mask that can be decoded cannot be used. `shape` is its height and width: they may be wrong as well."""

    def __init__(self, message: str, shape: tuple[int, int]) -> None:
        super().__init__(message)
        self.shape = shape


class MaskModeError(MaskError):
    """A mask does not hold one 8-bit label per pixel."""


class LabelError(MaskError):
    """A mask holds a label that its data set does not have."""


class NonFiniteError(ArithmeticError):
    """The loss is NaN or infinite."""


class WorkerError(RuntimeError):
    """A process that makes training samples died or hangs."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError: writing to an open file raises one that does not say which disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own error, say of gzip
            raise
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None
