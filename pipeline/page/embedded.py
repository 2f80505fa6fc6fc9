"""Pictures that lie in the page itself."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.pictures.overlay import RIGHT, UNLABELLED, WRONG

SHEET = 1200  # width of a data sheet, pixels
IGNORE = 255


Picture = tuple[str, tuple[int, int]]  # an address that holds it, and its width and height

DAMAGED = (OSError, SyntaxError, ValueError)  # what Pillow raises for a file that is no picture


def embedded(content: bytes, kind: str) -> str:
    """An address that holds the picture."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def from_file(path: Path) -> Picture:
    """A .jpg or .png as it is; raises one of DAMAGED."""
    with Image.open(path) as picture:
        picture.load()
    return embedded(path.read_bytes(), "jpeg" if path.suffix == ".jpg" else "png"), picture.size


def error_picture(truth: Path, predicted: Path) -> Picture:
    """Where two masks differ; raises one of DAMAGED, also for masks of unlike size."""
    masks = []
    for path in (truth, predicted):
        with Image.open(path) as picture:
            masks.append(np.asarray(picture))
    kinds: NDArray[np.uint8] = np.where(masks[0] == IGNORE, 2, masks[0] != masks[1]).astype(np.uint8)
    drawn = Image.fromarray(kinds)
    drawn.putpalette([*RIGHT, *WRONG, *UNLABELLED])
    return embedded(png(drawn), "png"), drawn.size


def png(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, format="png", optimize=True)
    return out.getvalue()


def sheet(path: Path) -> Picture:
    """The data sheet, small enough for a page; raises one of DAMAGED."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SHEET, 10 * SHEET))
    out = BytesIO()
    small.save(out, format="jpeg", quality=80)
    return embedded(out.getvalue(), "jpeg"), small.size
