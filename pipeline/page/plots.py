"""Plots as SVG that takes its ink and its colours from the page, so that they are right in the light and in the dark.

Drawn by matplotlib; the same numbers give the same bytes.
"""

import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = 8  # of cells; style.css has --cell-0 to --cell-7 for the light and for the dark
INK, FAINT = "#010203", "#010204"  # stand for the page's own colours until the SVG is written
WIDTH = 5.2  # inches: fills a phone, and letters stay readable there
POINTS = 300  # of a curve: more cannot be told apart
NAMED = 40  # classes that can be named along an axis
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: found by a search, small, in the reader's own font
    "path.simplify_threshold": 0.2,
    "text.parse_math": False,  # the name of a class is no formula
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}


def color(place: int) -> str:
    """The stand-in of a cell's colour."""
    return f"#0a0b{place % COLORS:02x}"


def curves(histories: dict[str, pd.DataFrame], places: dict[str, int], column: str, title: str) -> Markup:
    """Lines of `column` over iterations for each cell and seed; none without points. `places` give their colours."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = new_figure(WIDTH, 3.0)
    axes = figure.subplots()
    drawn = 0
    for name, history in histories.items():
        place = places[name]
        for _, rows in history.groupby("seed"):
            values = rows[["step", column]].dropna() if column in rows else rows.iloc[:0]
            if values.empty:
                continue
            drawn += 1
            points = thinned(values)
            style: dict[str, Any] = {"color": color(place), "linestyle": "-" if place < COLORS else "--"}
            smooth = thinned(values.assign(**{column: values[column].ewm(halflife=max(0.1, len(values) / 40)).mean()}))
            if column == "train/loss":
                axes.plot(points["step"], points[column], alpha=0.25, linewidth=0.8, **style)
                axes.plot(smooth["step"], smooth[column], linewidth=1.6, **style)
            else:
                axes.plot(points["step"], points[column], marker="o" if len(points) < 30 else "", ms=3, **style)
    if not drawn:
        return Markup("")
    axes.set(xlabel="iteration", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 40k
    axes.grid(axis="y", alpha=0.4)
    return write_svg(figure, f"{title} over iterations of {', '.join(histories)}")


def thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most POINTS of the rows, evenly, the last one among them."""
    if len(rows) <= POINTS:
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int))]


def class_bars(scores: dict[str, pd.Series], places: dict[str, int], order: Sequence[str]) -> Markup:
    """A group of bars for each class in `order`, one bar for each cell: `scores` are name -> class -> IoU, percent."""
    count = len(scores)
    figure = new_figure(WIDTH, 0.8 + len(order) * (0.12 + 0.13 * count))
    axes = figure.subplots()
    heights = np.arange(len(order))
    thick = 0.8 / count
    for place, (name, values) in enumerate(scores.items()):
        found = values.reindex(list(order)).to_numpy(dtype=float)
        offset = (place - (count - 1) / 2) * thick
        axes.barh(heights + offset, np.nan_to_num(found), height=thick * 0.9, color=color(places[name]))
    axes.set_yticks(heights, list(order))
    axes.set(xlabel="IoU, %", xlim=(0, 100), ylim=(len(order) - 0.4, -0.6))
    axes.grid(axis="x", alpha=0.4)
    axes.tick_params(axis="x", labeltop=len(order) > NAMED, top=len(order) > NAMED)
    best = pd.DataFrame(scores).mean(axis=1).reindex(list(order)).dropna().sort_values(kind="stable")
    ends = f"highest for {best.index[-1]}, lowest for {best.index[0]}" if len(best) else "of no class"
    return write_svg(figure, f"Bars of IoU per class for {', '.join(scores)}: on average {ends}", 1.4)


def matrix(classes: Sequence[str], pairs: pd.DataFrame, name: str) -> Markup:
    """The row-normalised confusion matrix as squares that darken with the root of the share."""
    place = {title: index for index, title in enumerate(classes)}
    shares = np.zeros((len(classes), len(classes)))
    shares[pairs["truth"].map(place), pairs["predicted"].map(place)] = pairs["share"]
    picture = np.zeros((*shares.shape, 4))
    picture[..., :3] = (0.13, 0.44, 0.71)
    picture[..., 3] = np.sqrt(shares)  # transparent where there is nothing: right on any background
    side = 2.2 + 0.2 * len(classes) if len(classes) <= NAMED else 6.0
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(picture, interpolation="none")
    axes.set(xlabel="predicted", ylabel="truth")
    axes.spines[["top", "right"]].set_visible(True)
    if len(classes) <= NAMED:
        names = list(classes)
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    right = float(np.trace(shares) / max(1, (shares.sum(axis=1) > 0).sum()))
    return write_svg(figure, f"Confusion matrix of {name}: on average {right:.0%} of a class's pixels are recognised")


def drawing() -> AbstractContextManager[None]:
    """The block in which the plots of this page are drawn."""
    import matplotlib as mpl

    return mpl.rc_context(SETTINGS)


def new_figure(width: float, height: float) -> "Figure":
    """`width` and `height` in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_svg(figure: "Figure", description: str, scale: float = 1.05) -> Markup:
    """The figure as an element of the page; `description` is for those who do not see it, `scale` for wide screens."""
    import matplotlib as mpl

    out = StringIO()
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": description}), warnings.catch_warnings():  # ids of its own
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has it
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'font: ([^"\']*?px) [^;"]*', r"font: \1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    text = re.sub(r"#0a0b0(\d)", r"var(--cell-\1)", text)
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)  # each once in a page
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    text = re.sub(r"\n\s*", "\n", text)
    width = re.search(r'viewBox="0 0 ([\d.]+)', text)
    assert width
    head = f'<svg role="img" aria-label="{escape(description)}" style="--width:{scale * float(width[1]):.0f}px"'
    return Markup(re.sub(r"<svg( width=\"[^\"]*\"| height=\"[^\"]*\")?", head, text, count=1))  # noqa: S704  escaped
