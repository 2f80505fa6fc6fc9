"""Image files -> arrays. One decoder, so that packed pixels and those decoded in training are the same bits.

Anything wrong with a file raises a DataError that names it.
"""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JPEG_FRAMES = {0xC0 + kind for kind in range(16)} - {0xC4, 0xC8, 0xCC}  # the segments that contain the size
JPEG_MARK = re.compile(rb"\xff+([^\x00\xff\x01\xd0-\xd7])")  # not those without a length
PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS: Final = 178_956_970  # of one picture, Pillow's own limit; a file of a few kB can claim billions
MAX_SCANS: Final = 100  # of one JPEG: encoders make about ten, and each takes a pass over all pixels


def read_image(path: Path, upright: bool = False) -> NDArray[np.uint8]:
    """The picture in `path` as (H, W, 3) RGB; with `upright` turned as its EXIF tag says.

    The pictures of a data set are not turned, because their masks are not.
    """
    import cv2

    content = read_content(path)
    check_pixels(path, *(header_size(io.BytesIO(content)) or pillow_size(path, content)))
    check_scans(path, content)
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if is_whole(content) else None
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{path}: not a readable image, or cut short")
    return np.asarray(image, dtype=np.uint8)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture in `path`: from the header of a JPEG or PNG, else by decoding it."""
    try:
        with path.open("rb") as file:
            size = header_size(file)
    except OSError:
        size = None  # decoding will report the problem
    if size is None:
        height, width, _ = read_image(path).shape
        return height, width
    check_pixels(path, *size)
    return size


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raise DataError for a picture that would fill the memory, before it is decoded."""
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{path}: {width}x{height} pixels, expected at most {MAX_PIXELS:,} in one picture. Cut it into pieces."
        )


def check_scans(path: Path, content: bytes) -> None:
    """Raise DataError for a JPEG of thousands of scans: 100 kB of them take minutes to decode."""
    if not content.startswith(JPEG_START) or content.count(JPEG_SCAN) <= MAX_SCANS:
        return  # too few even if every match is a scan
    if (scans := sum(kind == JPEG_SCAN[1:] for kind in jpeg_segments(content))) > MAX_SCANS:
        raise DataError(f"{path}: a JPEG of {scans:,} scans, expected at most {MAX_SCANS}. Save it again.")


def is_whole(content: bytes) -> bool:
    """Whether a JPEG or a PNG has its end; True for any other file.

    A cut JPEG that was filled up with zeros still decodes, to a picture that is grey from there on.
    """
    if content.startswith(PNG_START):
        return png_ends(content)
    if content.startswith(JPEG_START):  # the second is for a photo followed by a film
        return content.rfind(JPEG_END) > content.rfind(JPEG_SCAN) or JPEG_END[1:] in jpeg_segments(content)
    return True


def header_size(file: BinaryIO) -> tuple[int, int] | None:
    """Height and width from the header of a JPEG or PNG; None for other files and broken headers."""
    try:
        start = file.read(24)
        if start.startswith(PNG_START):
            width, height = struct.unpack(">II", start[16:])
            return height, width
        if start.startswith(JPEG_START):
            return jpeg_size(file)
    except (ValueError, struct.error):
        pass
    return None


def pillow_size(path: Path, content: bytes) -> tuple[int, int]:
    """Height and width as Pillow reads them from the header, whatever the format."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.height, picture.width
    except Exception as error:  # noqa: BLE001  for a broken file Pillow raises nearly anything
        raise DataError(f"{path}: not a readable image, or cut short ({type(error).__name__})") from None


def jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width from the frame segment of a JPEG. Raises ValueError or struct.error if it is not found."""
    file.seek(len(JPEG_START))
    while True:
        mark, kind, length = struct.unpack(">BBH", file.read(4))
        if mark != 0xFF or kind == 0xFF:
            raise ValueError("no segment begins here")
        if kind in JPEG_FRAMES:
            _, height, width = struct.unpack(">BHH", file.read(5))
            if not height:
                raise ValueError("the height follows later")
            return height, width
        file.seek(length - 2, 1)


def jpeg_segments(content: bytes) -> Iterator[bytes]:
    """The types of the segments of a JPEG up to its end, without those of a thumbnail or of a film after it."""
    place = len(JPEG_START)
    while mark := JPEG_MARK.search(content, place):
        yield mark[1]
        if mark[1] == JPEG_END[1:]:
            return
        place = mark.end() + int.from_bytes(content[mark.end() : mark.end() + 2], "big")


def png_ends(content: bytes) -> bool:
    """Whether all chunks of a PNG are complete: OpenCV allocates what a chunk claims, up to 4 GB."""
    place, kind = len(PNG_START), b""
    while kind != b"IEND" and place < len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        place += length + 12  # and the length, the kind and the checksum
    return kind == b"IEND" and place <= len(content)


def read_content(path: Path) -> bytes:
    """The content of `path`. Raises DataError when it is missing, empty or unreadable."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not content:
        raise DataError(f"{path}: empty file")
    return content
