"""Pictures and charts inside the page itself, as data addresses: the same bytes for the same content."""

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from deeplab.store import IGNORE
from pipeline.page.html import part
from pipeline.pictures.colors import RIGHT, WRONG
from pipeline.pictures.overlay import UNLABELLED

SHEET = 1200  # width of a data sheet, pixels
PIXELS = 96  # per inch, in a browser
# Text stays text: small, in a font of the reader.
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "page"}
METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}

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


def plot(figure: Figure, caption: str, description: str, tall: bool = False) -> Markup:
    """The figure above its caption; `description` is for those who cannot see it. A `tall` one scrolls by itself."""
    out = BytesIO()
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has it
        figure.savefig(out, format="svg", transparent=True, metadata=METADATA)
    width, height = (round(PIXELS * side) for side in figure.get_size_inches())
    return part("plot", embedded(out.getvalue(), "svg+xml"), (width, height), description, caption, tall)
