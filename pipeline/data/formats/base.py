"""What every raw format has: a list of the samples in a raw folder, and functions that read them."""

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deeplab.decode import read_image, read_size
from deeplab.errors import DataError
from deeplab.store import Bytes, Color
from pipeline.settings.schema import DatasetConfig

SHOWN: Final = 20  # kinds of problems that a message lists; it counts the others


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample before it is decoded. Its files may be missing."""

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A raw data set: its classes in the order of their train ids, and the samples of each split, sorted by id."""

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    samples: dict[str, list[RawSample]]


class Mask(NamedTuple):
    """A checked mask, with the number of its pixels of each id."""

    ids: Bytes  # (H, W) train ids, 255 ignored
    pixels: NDArray[np.int64]  # (256,) how many have each id
    colors: Mapping[int, Color] = {}  # of a palette whose meaning is not known: the colour of each label that occurs

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ids.shape


class Format(Protocol):
    """The functions of a format's module. A new format is a file with these functions and a line in FORMATS."""

    def scan(self, raw: Path, config: DatasetConfig, splits: tuple[str, ...], /) -> Layout:
        """The content of `raw`, not decoded. Raises DataError with what is missing and how to place it."""
        ...

    def size(self, sample: RawSample, /) -> tuple[int, int]:
        """Height and width of the image, if possible without decoding it. Raises DataError as load_image does.

        An orientation in the file may swap the two.
        """
        ...

    def load_image(self, sample: RawSample, /) -> Bytes:
        """The image (H, W, 3) RGB. Raises DataError with the file and its problem.

        It equals `deeplab.decode.read_image` of its file, because a file-backed store reads the file again.
        """
        ...

    def load_mask(self, sample: RawSample, /) -> Mask:
        """The mask (H, W) of train ids, 255 ignored. Raises DataError with the file and its problem."""
        ...


def image_size(sample: RawSample) -> tuple[int, int]:
    """`size` of the formats whose images are files."""
    return read_size(sample.image)


def image_of(sample: RawSample) -> Bytes:
    """`load_image` of the formats whose images are files."""
    return read_image(sample.image)


def require(path: Path, raw: Path, holds: str) -> Path:
    """`path`, if it exists. Raises DataError with what the raw folder `raw` must contain."""
    if path.exists():
        return path
    if raw.exists():
        raise DataError(f"{path}: not found. {raw} must contain {holds} with the folders of the official archives.")
    if raw.is_symlink():
        raise DataError(f"{raw}: links to {raw.readlink()}, which does not exist. Link the folder that holds {holds}.")
    raise DataError(f"{raw}: not found. Put or link the folder that holds {holds} there.")


def read_lines(path: Path, form: str) -> list[str]:
    """The lines of the text file `path`. Raises DataError if it cannot be read; `form` is how a line should look."""
    try:
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows PowerShell writes
        return content.decode("utf-16" if wide else "utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Write a text file with lines `{form}`.") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text in UTF-8 or UTF-16. Save it as UTF-8.") from None


def grouped(problems: Sequence[str]) -> list[str]:
    """`problems` for a person: one line for each kind, with the number of its files and the first as an example.

    Problems are of one kind when they differ in paths and numbers only. At most SHOWN kinds are listed.
    """
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"\S*/\S*|'[^']*'|\d[\d,]*", "", problem), []).append(problem)
    lines = [each[0] if len(each) == 1 else f"{len(each)} alike, for example {each[0]}" for each in kinds.values()]
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} other kinds"] if len(lines) > SHOWN else [])]


def read_ids(path: Path) -> list[str]:
    """The ids in `path`, one per line, in the order of the file."""
    ids: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "id"), start=1):
        words = line.split()
        if len(words) > 1:
            raise DataError(f"{path}:{number}: got {line.strip()!r}, expected one id per line")
        if words and words[0] in ids:
            raise DataError(f"{path}:{number}: {words[0]} is already in line {ids[words[0]]}")
        if words:
            ids[words[0]] = number
    return list(ids)


def pair_by_name(images: Path, masks: Path, pattern: str, image_end: str, mask_end: str) -> list[RawSample]:
    """The samples in two folders, paired by their names without the endings. `pattern` is the depth of the files.

    A file without a partner is a sample too: reading it reports the missing file.
    """
    names = {
        str(path.relative_to(folder)).removesuffix(end)
        for folder, end in ((images, image_end), (masks, mask_end))
        for path in folder.glob(pattern + end)
        if not path.name.startswith(".")
    }
    if odd := sorted(name for name in names if not name.isprintable()):
        raise DataError(f"{images}: the file name {odd[0]!a} cannot be printed. Rename the file.")
    samples = [RawSample(id=Path(n).name, image=images / (n + image_end), mask=masks / (n + mask_end)) for n in names]
    return sorted(samples, key=lambda sample: sample.id)
