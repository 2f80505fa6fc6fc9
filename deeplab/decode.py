"""Image files -> arrays: the one decoder, so that packed pixels and those decoded in training are the same bits.

Whatever is wrong with a file is a DataError that names it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture in `path` as (H, W, 3) RGB, not turned by its metadata, which would leave the mask as it is."""
    import cv2

    content = read_content(path)
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
