"""Read mask files as arrays of train ids. Every problem of a file is a DataError that names it."""

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplab.decode import read_content
from deeplab.errors import DataError, LabelError, MaskModeError
from deeplab.histogram import histogram
from deeplab.store import Bytes, Color
from pipeline.data.formats.base import Mask

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP")  # Pillow reads more: for EPS it would start Ghostscript
TILE = 256  # side of a tile whose colours are looked up at once: a whole image would take 30 bytes per pixel
LabelTable = NDArray[np.int16]  # (256,): a file's label -> train id, -1 for a label that the data set does not have

COLORED = (
    "It was probably saved again as colours: use the original file. "
    "For masks that contain colours the format folder has masks_are: colors."
)


def read_labels(path: Path) -> Bytes:
    """The labels (H, W) in the mask `path`: of a palette the indices, never the colours."""
    picture = read_picture(path)
    if picture.mode not in ("P", "L"):
        raise MaskModeError(
            f"{path}: a picture of mode {picture.mode}, expected a mask with one 8-bit label per pixel (mode P or L). "
            + (COLORED if picture.mode.startswith("RGB") else "Save its labels with 8 bits per pixel."),
            shape=(picture.height, picture.width),
        )
    labels: Bytes = np.asarray(picture)
    return labels


def read_colors(path: Path, labels: dict[Color, int]) -> Bytes:
    """The label (H, W) of each pixel's colour in the mask `path`. Raises LabelError for a colour without a label."""
    picture = read_picture(path)
    width, height = picture.size
    table = color_lookup(tuple(labels.items()))
    found = np.empty((height, width), dtype=np.int16)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            box = (left, top, min(left + TILE, width), min(top + TILE, height))
            rgb = np.asarray(picture.crop(box).convert("RGB")).astype(np.int32)
            codes = rgb[:, :, 0] << 16 | rgb[:, :, 1] << 8 | rgb[:, :, 2]
            found[top : top + TILE, left : left + TILE] = table[codes]
    wrong = found == 0
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), width)
        pixel = picture.crop((column, row, column + 1, row + 1)).convert("RGB")
        red, green, blue = np.asarray(pixel)[0, 0]
        raise LabelError(
            f"{path}: colour {red} {green} {blue} at row {row}, column {column} is none of the {len(labels)} in the "
            f"table of classes ({int(wrong.sum()):,} pixels have such a colour)",
            shape=(height, width),
        )
    return (found - 1).astype(np.uint8)


@lru_cache(maxsize=1)  # 32 MB, the same for all masks
def color_lookup(labels: tuple[tuple[Color, int], ...]) -> NDArray[np.int16]:
    """(2**24,): a colour as one number -> its label + 1, or 0 for a colour without a label."""
    table = np.zeros(1 << 24, dtype=np.int16)
    for (red, green, blue), label in labels:
        table[red << 16 | green << 8 | blue] = label + 1
    return table


def read_picture(path: Path) -> "Image.Image":
    """The decoded mask `path`. Raises MaskModeError for JPEG and WebP, which blur labels, before decoding them."""
    from PIL import Image

    content = read_content(path)
    try:
        picture = Image.open(io.BytesIO(content), formats=KINDS)
        blurred = picture.format in ("JPEG", "WEBP")
        if not blurred:
            picture.verify()  # the checksums of a PNG, which decoding does not check
            picture = Image.open(io.BytesIO(content), formats=KINDS)
            picture.load()
    except Exception as error:  # noqa: BLE001  Pillow raises nearly anything for a broken file
        raise DataError(f"{path}: not a readable mask, or cut short ({type(error).__name__})") from None
    if blurred:
        raise MaskModeError(
            f"{path}: a mask saved as {picture.format}, which blurs labels. Use the original, for example a PNG.",
            shape=(picture.height, picture.width),
        )
    return picture


def label_table(train_ids: dict[int, int]) -> LabelTable:
    """The table of `train_ids`, which maps each label that a file may contain to its train id or 255."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(train_ids)] = list(train_ids.values())
    return table


def to_train_ids(labels: Bytes, table: LabelTable, path: Path) -> Mask:
    """`labels` (H, W) as train ids. Raises LabelError with `path` for a label that the data set does not have."""
    height, width = labels.shape
    counts = histogram(labels)
    if unknown := int(counts[table < 0].sum()):
        row, column = divmod(int((table[labels] < 0).argmax()), width)
        raise LabelError(
            f"{path}: label {labels[row, column]} at row {row}, column {column} is out of range, expected "
            f"{legal_labels(table)} ({unknown:,} such pixels)",
            shape=(height, width),
        )
    ids = table.astype(np.uint8)
    # several times faster than table[labels]
    train_ids = np.frombuffer(labels.tobytes().translate(ids.tobytes()), np.uint8).reshape(height, width)
    return Mask(train_ids, np.bincount(ids, weights=counts, minlength=256).astype(np.int64))


def legal_labels(table: LabelTable) -> str:
    """The labels of `table` for a message: `0..20 or 255`."""
    legal = np.flatnonzero(table >= 0)
    runs = np.split(legal, np.flatnonzero(np.diff(legal) > 1) + 1)
    return " or ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
