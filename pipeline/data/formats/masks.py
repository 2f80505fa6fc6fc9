"""Read mask files as arrays of train ids. Every problem of a file is a DataError that names it."""

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplab.decode import check_pages, open_picture, quiet, read_content, unreadable
from deeplab.errors import LabelError, MaskModeError
from deeplab.histogram import histogram
from deeplab.store import IGNORE, Bytes, Color
from pipeline.data.formats.base import Mask

if TYPE_CHECKING:
    from PIL import Image

TILE = 256  # side of a tile whose colours are looked up at once: a whole image would take 30 bytes per pixel
LabelTable = NDArray[np.int16]  # (256,): a file's label -> train id, -1 for a label that the data set does not have

COLORED = (
    "It was probably saved again as colours: use the original file. "
    "For masks that contain colours the format folder has masks_are: colors."
)


def read_labels(path: Path) -> Bytes:
    """The labels (H, W) in the mask `path`: of a palette the indices, never the colours.

    Any mode that holds one number per pixel will do, such as 1, 16 or 32 bits, grey with an opaque alpha channel, and
    RGB of three equal channels. Raises MaskModeError for colours and LabelError for a number beyond 0..255.
    """
    return labels_in(path, read_picture(path))


def labels_in(path: Path, picture: "Image.Image") -> Bytes:
    """The labels (H, W) of a decoded mask."""
    if picture.mode in ("L", "P"):
        return np.asarray(picture)
    bands = picture.getbands()
    values = np.atleast_3d(np.asarray(picture))
    shape = (picture.height, picture.width)
    if bands[-1] in ("A", "a") and len(bands) > 1:
        if (values[..., -1] != 255).any():
            raise MaskModeError(
                f"{path}: a mask with transparent pixels (mode {picture.mode}), whose labels are unclear. Save it "
                "without an alpha channel.",
                shape,
            )
        values = values[..., :-1]
    numbers = values[..., 0]
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV") or (values != numbers[..., None]).any():
        raise MaskModeError(
            f"{path}: a picture of mode {picture.mode}, expected a mask with one label per pixel. {COLORED}", shape
        )
    with np.errstate(invalid="ignore"):  # of NaN
        labels: Bytes = numbers.astype(np.uint8)
    if (odd := labels != numbers).any():
        row, column = divmod(int(odd.argmax()), shape[1])
        raise LabelError(
            f"{path}: label {numbers[row, column]} at row {row}, column {column} is not a whole number from 0 to 255 "
            f"({int(odd.sum()):,} such pixels)",
            shape,
        )
    return labels


def read_indexed(path: Path, table: LabelTable) -> tuple[Bytes, dict[int, Color]]:
    """The labels (H, W) in the mask `path`, and of a palette the colour of each label that occurs.

    Raises MaskModeError when indices and greys of the palette both are labels of `table`, but different ones: some
    programs renumber the greys of a mask when they save it with a palette.
    """
    picture = read_picture(path)
    labels = labels_in(path, picture)
    if picture.mode not in ("P", "PA"):
        return labels, {}
    flat = picture.getpalette("RGB") or []
    used = np.flatnonzero(histogram(labels)).tolist()
    colors = {label: (*flat[3 * label : 3 * label + 3],) for label in used if 3 * label + 3 <= len(flat)}
    greys = {label: red for label, (red, green, blue) in colors.items() if red == green == blue}
    moved = [label for label, grey in greys.items() if grey != label]
    legal = table >= 0
    if moved and len(greys) == len(used) and legal[used].all() and legal[list(greys.values())].all():
        raise MaskModeError(
            f"{path}: index {moved[0]} of its palette is the grey {greys[moved[0]]}, and both are labels. Save it as "
            "grey (mode L), which has one meaning.",
            (picture.height, picture.width),
        )
    return labels, colors  # type: ignore[return-value]


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
    """The decoded mask `path`, upright. Raises MaskModeError for JPEG and WebP, which blur labels."""
    from PIL import ImageOps

    content = read_content(path)
    try:
        picture = open_picture(io.BytesIO(content))
        blurred = picture.format in ("JPEG", "MPO", "WEBP")
        if not blurred:
            check_pages(path, content, picture)
            with quiet():
                picture.verify()  # the checksums of a PNG, which decoding does not check
                picture = ImageOps.exif_transpose(open_picture(io.BytesIO(content)))  # as images are
    except Exception as error:  # noqa: BLE001  Pillow raises nearly anything for a broken file
        raise unreadable(path, "mask", error) from None
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
            f"{legal_labels(table)} ({unknown:,} such pixels)"
            + ("" if counts[1:IGNORE].any() else ". For masks in black and white: masks_are: binary"),
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
