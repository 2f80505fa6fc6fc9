"""Image files -> arrays: the one decoder, so that packed pixels and those decoded in training are the same bits.

Whatever is wrong with a file is a DataError that names it.
"""

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JPEG_FRAMES = {0xC0 + kind for kind in range(16)} - {0xC4, 0xC8, 0xCC}  # the segments that tell the size
MAX_PIXELS = 178_956_970  # where Pillow, which reads masks, takes a picture for a decompression bomb
PNG_START = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture in `path` as (H, W, 3) RGB, not turned by its metadata, which would leave the mask as it is."""
    import cv2

    content = read_content(path)
    check_pixels(path, content)
    # A file whose end was lost but filled with zeros still decodes, to a picture that is grey from there on.
    whole = not content.startswith(JPEG_START) or content.rfind(JPEG_END) > content.rfind(JPEG_SCAN)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if whole else None
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{path}: not a readable image, or cut short")
    return np.asarray(image, dtype=np.uint8)


def check_pixels(path: Path, content: bytes) -> None:
    """DataError for a JPEG or PNG that says to be larger than any picture: a few kilobytes may unpack to gigabytes."""
    try:
        if content.startswith(PNG_START):
            width, height = struct.unpack(">II", content[16:24])
        elif content.startswith(JPEG_START):
            height, width = jpeg_size(io.BytesIO(content))
        else:
            return  # OpenCV has a limit of its own
    except (ValueError, struct.error):
        return  # decoding tells what is wrong
    if height * width > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels, expected at most {MAX_PIXELS:,}")


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture in `path`: of a JPEG or a PNG from its header, of any other by decoding it."""
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if start.startswith(PNG_START):
                width, height = struct.unpack(">II", start[16:])
                return height, width
            if start.startswith(JPEG_START):
                return jpeg_size(file)
    except (OSError, ValueError, struct.error):
        pass  # decoding tells what is wrong
    height, width, _ = read_image(path).shape
    return height, width


def jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width from the segment of a JPEG that tells them; ValueError or struct.error if it is not found."""
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


def read_content(path: Path) -> bytes:
    """All bytes of `path`, of which there is at least one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not content:
        raise DataError(f"{path}: empty file")
    return content
