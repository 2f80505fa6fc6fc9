"""Charts of results, for the page and for MLflow: curves of a training, IoU of each class, confusions.

Axes and letters are black on a transparent ground: the page inverts charts when the reader's screen is dark.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.pictures.colors import COLORS

if TYPE_CHECKING:
    import pandas as pd

Rows = Iterable[Mapping[Any, Any]]

NAMED = 40  # classes that can be named along an axis; more overlap
WRITTEN = 25  # classes up to which a matrix has numbers
WIDTH = 5.6  # inches
POINTS = 300  # of a curve: more cannot be distinguished


def class_picture(rows: Rows) -> Figure:
    """Bars of IoU for one cell, the best class on top. `rows` have `class` and `IoU`, empty for an absent class."""
    scores = {row["class"]: 100 * float(row["IoU"]) for row in rows if row["IoU"]}
    return class_bars({0: scores}, sorted(scores, key=lambda name: -scores[name]))


def class_bars(scores: Mapping[int, Mapping[str, float]], order: Sequence[str]) -> Figure:
    """A group of bars for each class in `order`, a bar per cell: `scores` are colour -> class -> IoU in percent."""
    thick = 0.8 / len(scores)
    figure, axes = new_figure(WIDTH, 0.8 + len(order) * (0.1 + 0.11 * len(scores)))
    for place, (color, found) in enumerate(scores.items()):
        heights = np.arange(len(order)) + thick * (place - (len(scores) - 1) / 2)
        lengths = np.nan_to_num([found.get(name, 0.0) for name in order])
        axes.barh(heights, lengths, height=0.9 * thick, color=COLORS[color % len(COLORS)])
    axes.set_yticks(range(len(order)), order, parse_math=False)  # the name of a class is not a formula
    axes.set(xlabel="IoU, %", xlim=(0, 100), ylim=(len(order) - 0.4, -0.6))
    axes.grid(axis="x", alpha=0.4)
    axes.tick_params(axis="x", labeltop=len(order) > NAMED, top=len(order) > NAMED)
    return figure


def confusion_picture(classes: Sequence[str], pairs: Rows) -> Figure:
    """Matrix of `share`: of the pixels of class `truth`, those that were predicted as class `predicted`.

    Percents are written into the fields unless there are many. A class without pixels has an empty row.
    """
    place = {name: index for index, name in enumerate(classes)}
    shares = np.zeros((len(classes), len(classes)))
    for pair in pairs:
        shares[place[pair["truth"]], place[pair["predicted"]]] = 100 * float(pair["share"] or "nan")
    written = len(classes) <= WRITTEN
    side = 2.0 + (0.3 if written else 0.2) * min(len(classes), NAMED)
    figure, axes = new_figure(side + 0.8, side)
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="none")
    bar = figure.colorbar(drawn, label="% of the true class's pixels", shrink=0.9)
    assert bar.solids
    bar.solids.set_rasterized(True)  # else a path for each of its 256 colours
    for row, column in np.argwhere(shares >= 0.5) if written else ():
        ink = "white" if shares[row, column] > 40 else "black"
        text = f"{shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.spines[["top", "right"]].set_visible(True)
    if len(classes) <= NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    return figure


def curves(histories: "Mapping[int, pd.DataFrame]", column: str, title: str) -> Figure | None:
    """Lines of `column` over iterations for each cell and seed: `histories` are colour -> rows. None without points."""
    figure, axes = new_figure(WIDTH, 2.8)
    for place, history in histories.items():
        style: dict[str, Any] = {
            "color": COLORS[place % len(COLORS)],
            "linestyle": "-" if place < len(COLORS) else "--",
        }
        for _, rows in history.groupby("seed"):
            values = rows[["step", column]].dropna() if column in rows else rows.iloc[:0]
            if values.empty:
                continue
            points = thinned(values)
            if column == "train/loss":
                smooth = values[column].ewm(halflife=max(0.1, len(values) / 40)).mean()
                axes.plot(points["step"], points[column], alpha=0.25, linewidth=0.8, **style)
                axes.plot(points["step"], smooth.loc[points.index], linewidth=1.6, **style)
            else:
                axes.plot(points["step"], points[column], marker="o" if len(points) < 30 else "", ms=3, **style)
    axes.set(xlabel="iteration", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 40k
    axes.grid(axis="y", alpha=0.4)
    return figure if axes.lines else None


def thinned(rows: "pd.DataFrame") -> "pd.DataFrame":
    """At most POINTS of the rows, evenly spaced, with the last one."""
    if len(rows) <= POINTS:
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int))]


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` and `height` inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
