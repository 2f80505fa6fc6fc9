"""Mask files -> arrays of train ids. Whatever is wrong with a file is a DataError that names it."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplab.decode import read_content
from deeplab.errors import DataError, LabelError, MaskModeError
from deeplab.store import Bytes, Color
from deeplab.store_writer import histogram
from pipeline.datasets.layout import Mask

if TYPE_CHECKING:
    from PIL import Image

LabelTable = NDArray[np.int16]  # (256,): a file's label -> train id, -1 where the data set has no such label


def read_labels(path: Path) -> Bytes:
    """The labels in the mask `path` as (H, W): the indices of a palette, never its colours."""
    picture = read_picture(path)
    if picture.mode not in ("P", "L"):
        raise MaskModeError(
            f"{path}: a picture of mode {picture.mode}, expected a mask with one 8-bit label per pixel (mode P or L). "
            "It was probably saved again as colours: take the original file. "
            "(For masks that are meant to hold colours the format folder has masks_are: colors.)",
            shape=(picture.height, picture.width),
        )
    labels: Bytes = np.asarray(picture)
    return labels


def read_colors(path: Path, labels: dict[Color, int]) -> Bytes:
    """The label (H, W) of each pixel's colour in the mask `path`; a colour without a label is a DataError naming it."""
    rgb = np.asarray(read_picture(path).convert("RGB"))
    codes = rgb @ np.array([1 << 16, 1 << 8, 1])
    known = np.array([red << 16 | green << 8 | blue for red, green, blue in labels])
    order = np.argsort(known)
    nearest = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    wrong = known[nearest] != codes
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), wrong.shape[1])
        red, green, blue = rgb[row, column]
        raise LabelError(
            f"{path}: colour {red} {green} {blue} at row {row}, column {column} is none of the {len(known)} in the "
            f"table of classes ({int(wrong.sum()):,} pixels have such a colour)",
            shape=(wrong.shape[0], wrong.shape[1]),
        )
    found: Bytes = np.array(list(labels.values()), dtype=np.uint8)[nearest]
    return found


def read_picture(path: Path) -> "Image.Image":
    """The mask `path` as Pillow sees it, decoded; JPEG and WebP are refused, for they blur labels and colours."""
    from PIL import Image

    content = read_content(path)
    try:
        Image.open(io.BytesIO(content)).verify()  # the checksums of a PNG, which decoding does not look at
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except Exception as error:  # noqa: BLE001  a broken file makes Pillow raise nearly anything
        raise DataError(f"{path}: not a readable mask, or cut short ({type(error).__name__})") from None
    if picture.format in ("JPEG", "WEBP"):
        raise MaskModeError(
            f"{path}: a mask saved as {picture.format}, which blurs labels. Take the original, a PNG say.",
            shape=(picture.height, picture.width),
        )
    return picture


def label_table(train_ids: dict[int, int]) -> LabelTable:
    """The table for `train_ids`, which maps each label that may occur in a file to its train id or 255."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(train_ids)] = list(train_ids.values())
    return table


def to_train_ids(labels: Bytes, table: LabelTable, path: Path) -> Mask:
    """`labels` (H, W) as train ids; a label that the data set does not have is a LabelError naming `path`."""
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
    # Several times faster than table[labels].
    train_ids = np.frombuffer(labels.tobytes().translate(ids.tobytes()), np.uint8).reshape(height, width)
    return Mask(train_ids, np.bincount(ids, weights=counts, minlength=256).astype(np.int64))


def legal_labels(table: LabelTable) -> str:
    """The labels of `table` for a message: `0..20 or 255`."""
    legal = np.flatnonzero(table >= 0)
    runs = np.split(legal, np.flatnonzero(np.diff(legal) > 1) + 1)
    return " or ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
