"""The pictures that go with a run: IoU per class, and who is taken for whom."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, str]]

NAMED = 40  # classes that can be named along an axis; more than these overlap


def class_picture(rows: Rows) -> "Figure":
    """Bars of IoU, the best class on top. `rows` have `class` and `IoU`; a class that did not occur has no IoU."""
    from matplotlib.figure import Figure

    found = sorted((float(row["IoU"]), row["class"]) for row in rows if row["IoU"])
    figure = Figure(figsize=(7, 1 + 0.2 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for _, name in found], [iou for iou, _ in found])
    axes.set(xlabel="IoU", xlim=(0, 1))
    axes.margins(y=0.01)
    return figure


def confusion_picture(classes: list[str], pairs: Rows) -> "Figure":
    """Matrix of `share`: of the pixels of class `truth`, those that were taken for class `predicted`."""
    from matplotlib.figure import Figure

    place = {name: index for index, name in enumerate(classes)}
    shares = [[0.0] * len(classes) for _ in classes]
    for pair in pairs:
        shares[place[pair["truth"]]][place[pair["predicted"]]] = float(pair["share"])
    size = 3 + 0.22 * min(len(classes), NAMED)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1), label="share of the true class")
    axes.set(xlabel="predicted", ylabel="truth")
    if len(classes) <= NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    return figure
