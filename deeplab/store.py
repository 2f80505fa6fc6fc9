"""The prepared store: a manifest, and the images and masks of a data set as raw bytes that are memory-mapped.

A training sample reads only the rows of its crop, nothing is decoded twice, and any raw layout becomes the same form:

    manifest.json     classes, palette, and per sample: id, split, height, width, offset, checksum, pixels per class
    masks.bin         uint8 train ids (H, W), one mask after another; 255 is ignored
    images.bin        uint8 RGB (H, W, 3), one image after another; empty in a file-backed store
    image_files.txt   the line `packed`; in a file-backed store `files`, and the relative path of each image

A file-backed store takes less space and decodes an image each time it is read. Its manifest is equal byte for byte, so
the choice between the two cannot change a number. The manifest is written last, so an interrupted `prepare` leaves
nothing that looks like a store.
"""

import hashlib
import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from deeplab.config import STRICT
from deeplab.decode import read_image
from deeplab.errors import DataError

Bytes = NDArray[np.uint8]
Natural = Annotated[int, Field(ge=0)]
Color = tuple[Natural, Natural, Natural]

IGNORE = 255
MANIFEST, IMAGES, MASKS, IMAGE_FILES = "manifest.json", "images.bin", "masks.bin", "image_files.txt"
PACKED, FILES = "packed", "files"  # where the pixels of the images are
VERSION = 1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Record:
    """One sample of the manifest."""

    id: str
    split: str
    height: Natural
    width: Natural
    offset: Natural  # in pixels, from the start of masks.bin; three times as many bytes in a packed images.bin
    checksum: Natural  # CRC-32 over the image's bytes, then the mask's
    pixels: dict[int, Natural]  # train id -> number of pixels, ignored ones under 255


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Manifest:
    """The content of manifest.json."""

    version: Literal[1]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]  # RGB of each class
    samples: list[Record]


MANIFEST_FORM = TypeAdapter(Manifest)


def checksum(image: Bytes, mask: Bytes) -> int:
    """CRC-32 over the bytes of both."""
    return zlib.crc32(mask.data, zlib.crc32(image.data))


class Store:
    """A store, opened for reading. Raises DataError when it is incomplete or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}. Prepare the data set.") from None
        try:
            manifest = MANIFEST_FORM.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}: not a manifest of version {VERSION}, or damaged ({where!a}: {first['msg']!a}). "
                "Prepare the data set again."
            ) from None
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.classes, self.palette, self.records = manifest.classes, manifest.palette, manifest.samples
        self.files = read_files(folder, len(self.records))
        total = sum(record.height * record.width for record in self.records)
        if outside := [each.id for each in self.records if each.offset + each.height * each.width > total]:
            raise DataError(f"{path}: damaged (the place of {outside[0]!a}). Prepare the data set again.")
        for name, expected in ((IMAGES, 0 if self.files else 3 * total), (MASKS, total)):
            file = folder / name
            found = f"{file.stat().st_size:,} bytes" if file.exists() else "missing"
            if found != f"{expected:,} bytes":
                raise DataError(f"{file}: {found}, expected {expected:,} bytes. Prepare the data set again.")

    def split(self, name: str) -> "Split":
        """The samples of split `name`, in the manifest's order."""
        chosen = [index for index, record in enumerate(self.records) if record.split == name]
        if not chosen:
            known = ", ".join(sorted({record.split for record in self.records}))
            raise DataError(f"{self.folder}: no samples in split {name!r}; available: {known}")
        files = [self.files[index] for index in chosen] if self.files else []
        return Split(self.folder, [self.records[index] for index in chosen], files)

    def verify(self) -> None:
        """Read everything and compare it with the checksums. Raises DataError when samples have changed."""
        samples = Split(self.folder, self.records, self.files)
        changed = [
            record.id
            for index, record in enumerate(self.records)
            if checksum(samples.image(index), samples.mask(index)) != record.checksum
        ]
        if changed:
            raise DataError(
                f"{self.folder}: {len(changed)} samples differ from their checksums, the first is {changed[0]}. "
                "Prepare the data set again."
            )


def read_files(folder: Path, samples: int) -> list[Path]:
    """The image files of a file-backed store of `samples` samples; empty for a packed one."""
    path = folder / IMAGE_FILES
    try:
        kind, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Prepare the data set again.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a list of files. Prepare the data set again.") from None
    if (kind, len(lines)) not in ((PACKED, 0), (FILES, samples)):
        raise DataError(f"{path}: expected {PACKED!r}, or {FILES!r} and {samples} lines. Prepare the data set again.")
    # Not resolved: if the folder of the store is a link, its `..` is elsewhere.
    return [Path(os.path.normpath(folder / line)) for line in lines]


class Split:
    """The samples of one split. Picklable: each process maps the files itself."""

    def __init__(self, folder: Path, records: list[Record], files: list[Path]) -> None:
        self.folder, self.records, self.files = folder, records, files

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "records": self.records, "files": self.files}

    @cached_property
    def _images(self) -> Bytes:
        return np.asarray(np.memmap(self.folder / IMAGES, dtype=np.uint8, mode="r"))

    @cached_property
    def _masks(self) -> Bytes:
        return np.asarray(np.memmap(self.folder / MASKS, dtype=np.uint8, mode="r"))

    def image(self, index: int) -> Bytes:
        """Read-only RGB (H, W, 3): a view, or in a file-backed store a new array."""
        if self.files:
            return self._decoded(index)
        record = self.records[index]
        size = record.height * record.width
        return self._images[3 * record.offset : 3 * (record.offset + size)].reshape(record.height, record.width, 3)

    def mask(self, index: int) -> Bytes:
        """Read-only view (H, W) of train ids, uint8; 255 is ignored."""
        record = self.records[index]
        size = record.height * record.width
        return self._masks[record.offset : record.offset + size].reshape(record.height, record.width)

    def _decoded(self, index: int) -> Bytes:
        record, path = self.records[index], self.files[index]
        image = read_image(path)
        # The raw folder may have changed, and another version of the decoder may round differently.
        same = image.shape[:2] == (record.height, record.width) and checksum(image, self.mask(index)) == record.checksum
        if not same:
            raise DataError(
                f"{path}: not the image that was prepared (the checksum over image and mask differs). "
                "Restore the file, or prepare the data set again."
            )
        image.flags.writeable = False
        return image
