"""What a format finds in a raw folder, in one form for all formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError
from deeplab.store import Bytes, Color
from pipeline.settings.schema import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample before it is decoded; not yet known to exist."""

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
    """A mask that was checked, and counted on the way."""

    ids: Bytes  # (H, W) train ids, 255 ignored
    pixels: NDArray[np.int64]  # (256,) how many have each id

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ids.shape


class Format(Protocol):
    """What the module of a format has: a new one is a file with these functions and a line in FORMATS."""

    def scan(self, raw: Path, config: DatasetConfig, splits: tuple[str, ...], /) -> Layout:
        """What lies in `raw`, without decoding it. DataError names what is missing and how to place it."""
        ...

    def size(self, sample: RawSample, /) -> tuple[int, int]:
        """Height and width of the image, without decoding it where that can be. DataError as in load_image."""
        ...

    def load_image(self, sample: RawSample, /) -> Bytes:
        """The image (H, W, 3) RGB. DataError names the file and what is wrong.

        It is what `deeplab.decode.read_image` makes of its file, for a file-backed store reads it again.
        """
        ...

    def load_mask(self, sample: RawSample, /) -> Mask:
        """The mask (H, W) of train ids, 255 ignored. DataError names the file and what is wrong."""
        ...


def require(path: Path, raw: Path, holds: str) -> Path:
    """`path` below the raw folder if it is there; otherwise a DataError that says what `raw` has to hold."""
    if path.exists():
        return path
    if raw.exists():
        raise DataError(f"{path}: not found. {raw} has to hold {holds} with the folders of the official archives.")
    if raw.is_symlink():
        raise DataError(f"{raw}: links to {raw.readlink()}, which is not there. Link the folder that holds {holds}.")
    raise DataError(f"{raw}: not found. Put or link the folder that holds {holds} there.")


def read_lines(path: Path) -> list[str]:
    """The lines of the text file `path`."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list ({error})") from None


def read_ids(path: Path) -> list[str]:
    """The ids in `path`, one a line, in the file's order."""
    ids: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if len(words) > 1:
            raise DataError(f"{path}:{number}: got {line.strip()!r}, expected one id a line")
        if words and words[0] in ids:
            raise DataError(f"{path}:{number}: {words[0]} stands in line {ids[words[0]]} already")
        if words:
            ids[words[0]] = number
    return list(ids)


def pair_by_name(images: Path, masks: Path, pattern: str, image_end: str, mask_end: str) -> list[RawSample]:
    """The samples whose files have the same name, less its end, in both folders; `pattern` is how deep they lie.

    A file without its partner makes a sample too: reading it will tell what is missing.
    """
    names = {
        str(path.relative_to(folder)).removesuffix(end)
        for folder, end in ((images, image_end), (masks, mask_end))
        for path in folder.glob(pattern + end)
        if not path.name.startswith(".")
    }
    if odd := sorted(name for name in names if not name.isprintable()):
        raise DataError(f"{images}: the file name {odd[0]!a} is not text that can be printed. Rename the file.")
    samples = [RawSample(id=Path(n).name, image=images / (n + image_end), mask=masks / (n + mask_end)) for n in names]
    return sorted(samples, key=lambda sample: sample.id)
