"""Charts as pictures of the page: SVG in a data address, the same bytes for the same numbers."""

import warnings
from io import BytesIO
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.page.embedded import embedded
from pipeline.page.html import part

PIXELS = 96  # per inch, in a browser
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
}  # text stays text: small, in a font of the reader
METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def plot(figure: Figure, caption: str, description: str, tall: bool = False) -> Markup:
    """The figure above its caption; `description` is for those who cannot see it. A `tall` one scrolls by itself."""
    out = BytesIO()
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has it
        figure.savefig(out, format="svg", transparent=True, metadata=METADATA)
    width, height = (round(PIXELS * side) for side in figure.get_size_inches())
    picture = part("picture", embedded(out.getvalue(), "svg+xml"), (width, height), description)
    return part("plot", picture, caption, tall)
