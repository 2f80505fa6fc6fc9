"""Files -> arrays. Whatever is wrong with a file is a DataError that names it."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError, LabelError, MaskModeError
from deeplab.store import Bytes

LabelTable = NDArray[np.int16]  # (256,): a file's label -> train id, -1 where the data set has no such label

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_image(path: Path) -> Bytes:
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


def read_labels(path: Path) -> Bytes:
    """The labels in the PNG `path` as (H, W): the indices of a palette, never its colours."""
    from PIL import Image

    content = read_content(path)
    try:
        Image.open(io.BytesIO(content)).verify()  # the checksums of a PNG, which decoding does not look at
        with Image.open(io.BytesIO(content)) as picture:
            mode, labels = picture.mode, np.asarray(picture)
    except Exception as error:  # noqa: BLE001  a broken file makes Pillow raise nearly anything
        raise DataError(f"{path}: not a readable mask, or cut short ({type(error).__name__})") from None
    if mode not in ("P", "L"):
        raise MaskModeError(
            f"{path}: a picture of mode {mode}, expected a mask with one 8-bit label per pixel (mode P or L). "
            "It was probably saved again as colours: take the original file."
        )
    return labels


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


def label_table(train_ids: dict[int, int]) -> LabelTable:
    """The table for `train_ids`, which maps each label that may occur in a file to its train id or 255."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(train_ids)] = list(train_ids.values())
    return table


def to_train_ids(labels: Bytes, table: LabelTable, path: Path) -> Bytes:
    """`labels` (H, W) as train ids (H, W); a label that the data set does not have is a DataError naming `path`."""
    train_ids = table[labels]
    wrong = train_ids < 0
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), wrong.shape[1])
        raise LabelError(
            f"{path}: label {labels[row, column]} at row {row}, column {column} is out of range, expected "
            f"{legal_labels(table)} ({int(wrong.sum()):,} such pixels)"
        )
    return train_ids.astype(np.uint8)


def legal_labels(table: LabelTable) -> str:
    """The labels of `table` for a message: `0..20 or 255`."""
    legal = np.flatnonzero(table >= 0)
    runs = np.split(legal, np.flatnonzero(np.diff(legal) > 1) + 1)
    return " or ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
