"""Writes a prepared store (deeplab/store.py): any number of processes write the pixels, one of them the manifest."""

import ctypes
import errno
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from isal.isal_zlib import crc32  # equal to zlib's, ten times as fast
from numpy.typing import NDArray

from deeplab.errors import naming
from deeplab.histogram import histogram
from deeplab.store import FILES, IGNORE, IMAGE_FILES, IMAGES, MANIFEST, MASKS, PACKED, VERSION, Bytes, Color, Record

PARTIAL = f"{MANIFEST}.part"
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class PixelFiles:
    """The two pixel files of a store in the making. Each process that writes to them opens them itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = (folder / IMAGES).open("r+b", buffering=0)
        self.masks = (folder / MASKS).open("r+b", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.images, self.masks):
            with suppress(OSError):  # on a full disk closing fails too, and would hide the first error
                file.close()

    def write(self, split: str, name: str, offset: int, image: Bytes, mask: Bytes, packed: bool = True) -> Record:
        """Write a sample at `offset` pixels, its image (H, W, 3) only if `packed`; return its record."""
        assert image.shape == (*mask.shape, 3)
        return self.write_mask(split, name, offset, mask, self.write_image(offset, image, packed))

    def write_image(self, offset: int, image: Bytes, packed: bool = True) -> int:
        """Write (H, W, 3) RGB at `offset` pixels, unless not `packed`; return its CRC-32."""
        assert image.dtype == np.uint8
        image = np.ascontiguousarray(image)
        checksum = crc32(image.data)  # first, while the image is in the processor's cache
        if packed:
            with naming(self.folder):
                write_at(self.images.fileno(), image.data.cast("B"), 3 * offset)
        return checksum

    def write_mask(
        self,
        split: str,
        name: str,
        offset: int,
        mask: Bytes,
        image_checksum: int,
        pixels: NDArray[np.int64] | None = None,
    ) -> Record:
        """Write (H, W) of train ids and 255 at `offset` pixels; return the record of the sample.

        `pixels` (256,) is the histogram of the mask, if it is known.
        """
        assert mask.dtype == np.uint8
        mask = np.ascontiguousarray(mask)
        counts = histogram(mask) if pixels is None else pixels
        checksum = crc32(mask.data, image_checksum)
        with naming(self.folder):
            write_at(self.masks.fileno(), mask.data.cast("B"), offset)
        return Record(
            id=name,
            split=split,
            height=mask.shape[0],
            width=mask.shape[1],
            offset=offset,
            checksum=checksum,
            pixels={int(label): int(counts[label]) for label in np.flatnonzero(counts)},
        )

    def sync(self) -> None:
        """Wait until everything is on the disk, whichever process wrote it."""
        with naming(self.folder):
            for file in (self.images, self.masks):
                os.fsync(file.fileno())


def write_at(file: int, content: memoryview, offset: int) -> None:
    """Write all of `content`."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def take_room(file: int, size: int) -> None:
    """Reserve `size` bytes on the disk if the file system can. os.posix_fallocate would write zeros where it cannot."""
    if LIBC and LIBC.fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        error = ctypes.get_errno()
        if error in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error, os.strerror(error))


class StoreWriter:
    """Replaces the store in `folder`; the new one is complete when the `with` block ends without an error."""

    def __init__(self, folder: Path, classes: tuple[str, ...], palette: tuple[Color, ...]) -> None:
        assert len(classes) == len(palette) <= IGNORE
        self.folder, self.classes, self.palette = folder, classes, palette
        self.records: list[Record] = []
        self.files: list[str] = []
        self.offset = 0  # in pixels: where the next sample belongs

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove()  # not overwritten: another process may still read the old files
        for name in (IMAGES, MASKS):
            (self.folder / name).touch()
        self.pixels = PixelFiles(self.folder)
        return self

    def reserve(self, pixels: int, packed: bool = True) -> None:
        """Reserve the disk space for `pixels` pixels of masks, and of images if `packed`.

        Raises OSError when there is too little, before hours of work instead of after them. Processes that write into
        reserved space also wait less for each other.
        """
        needed = {self.pixels.masks: pixels, self.pixels.images: 3 * pixels if packed else 0}
        size, free = sum(needed.values()), shutil.disk_usage(self.folder).free
        if size > free:
            place = f"{self.folder} ({size:,} bytes needed, {free:,} free)"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        for file, part in needed.items():
            if part:
                with naming(self.folder):
                    take_room(file.fileno(), part)

    def add(self, split: str, name: str, image: Bytes, mask: Bytes, file: Path | None = None) -> None:
        """Append one sample: `image` (H, W, 3) RGB, `mask` (H, W) of train ids and 255.

        With `file`, which `read_image` decodes to `image`, only its path is kept. Either all samples of a store have
        one or none has.
        """
        self.keep(self.pixels.write(split, name, self.offset, image, mask, packed=file is None), file)

    def keep(self, record: Record, file: Path | None = None) -> None:
        """Append one sample whose pixels are already in the files."""
        assert record.offset == self.offset
        assert all(label < len(self.classes) or label == IGNORE for label in record.pixels)
        if file is not None:  # relative: the folders may move together
            self.files.append(os.path.relpath(file, self.folder))
        self.records.append(record)
        self.offset += record.height * record.width

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert len(self.files) in (0, len(self.records))
                with naming(self.folder):
                    self._write(IMAGE_FILES, "\n".join([FILES if self.files else PACKED, *self.files]) + "\n")
                    self.pixels.sync()
                    self._write_manifest()
        finally:
            self.pixels.__exit__()
            if not (self.folder / MANIFEST).exists():
                self._remove()

    def _remove(self) -> None:
        for name in (MANIFEST, PARTIAL, IMAGES, MASKS, IMAGE_FILES):
            (self.folder / name).unlink(missing_ok=True)

    def _write_manifest(self) -> None:
        head = {"version": VERSION, "classes": self.classes, "palette": self.palette}
        compact = json.JSONEncoder(separators=(",", ":"))
        samples = ",\n".join(compact.encode(vars(record)) for record in self.records)
        text = json.dumps(head, ensure_ascii=False)[:-1] + f',\n"samples": [\n{samples}\n]}}\n'
        self._write(PARTIAL, text)
        (self.folder / PARTIAL).rename(self.folder / MANIFEST)

    def _write(self, name: str, text: str) -> None:
        with (self.folder / name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
