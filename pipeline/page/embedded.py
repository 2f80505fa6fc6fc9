"""Pictures inside the page itself, as data addresses."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab.store import IGNORE
from pipeline.pictures.overlay import RIGHT, UNLABELLED, WRONG

SHEET = 1200  # width of a data sheet, pixels

Picture = tuple[str, tuple[int, int]]  # its data address, width and height

DAMAGED = (OSError, SyntaxError, ValueError)  # what Pillow raises for a file that is no picture


def embedded(content: bytes, kind: str) -> str:
    """The data address of a picture of this MIME type."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def from_file(path: Path) -> Picture:
    """A .jpg or .png, unchanged; raises one of DAMAGED."""
    with Image.open(path) as picture:
        picture.load()
    return embedded(path.read_bytes(), "jpeg" if path.suffix == ".jpg" else "png"), picture.size


def error_picture(truth: Path, predicted: Path) -> Picture:
    """Where two masks differ; raises one of DAMAGED, also for masks of different size."""
    masks = []
    for path in (truth, predicted):
        with Image.open(path) as picture:
            masks.append(np.asarray(picture))
    kinds: NDArray[np.uint8] = np.where(masks[0] == IGNORE, 2, masks[0] != masks[1]).astype(np.uint8)
    drawn = Image.fromarray(kinds)
    drawn.putpalette([*RIGHT, *WRONG, *UNLABELLED])
    out = BytesIO()
    drawn.save(out, format="png", optimize=True)
    return embedded(out.getvalue(), "png"), drawn.size


def sheet(path: Path) -> Picture:
    """The data sheet, small enough for a page; raises one of DAMAGED."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SHEET, 10 * SHEET))
    out = BytesIO()
    small.save(out, format="jpeg", quality=80)
    return embedded(out.getvalue(), "jpeg"), small.size
