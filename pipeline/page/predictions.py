"""Predictions of the cells: the same images side by side, then the best and worst ones of each cell."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pipeline.page.embedded import DAMAGED, error_picture, from_file
from pipeline.page.html import joined, part, table
from pipeline.page.inputs import CellPage, DatasetPage
from pipeline.pictures.overlay import RIGHT, UNLABELLED, WRONG

PARTS = {"image": "image.jpg", "truth": "truth.png", "prediction": "prediction.png"}
KINDS = {"worst": "Worst images", "best": "Best images"}
MANY = 40  # classes: the colours of more are folded away


def predictions(page: DatasetPage) -> Markup:
    """Image, truth, and for each cell its prediction above its errors; then each cell's own best and worst images."""
    cells = [cell for cell in page.measured if cell.about]
    if not cells:
        return Markup()
    caption = "The same images for all cells: prediction above, errors below, mIoU of the image"
    shared = table(side_by_side(cells), caption)
    pieces = [legend(cells[0]), Markup('<div class="pictures">{}</div>').format(shared)]
    for cell in cells:
        own = [extreme(cell, kind) for kind in KINDS if any(image["why"] == kind for image in cell.about["images"])]
        if own:
            content = Markup('<div class="pictures">{}</div>').format(joined(own))
            pieces.append(part("more", f"{cell.name}: its worst and best images", content))
    return joined(pieces)


def side_by_side(cells: list[CellPage]) -> list[dict[str, Any]]:
    """A row for each image that is drawn for all cells."""
    names = dict.fromkeys(name for cell in cells for name in drawn(cell))
    rows = []
    for name in names:
        first = next(cell for cell in cells if name in drawn(cell))
        row: dict[str, Any] = {"id": name}
        row |= {title: shown(first, drawn(first)[name], title) for title in ("image", "truth")}
        for cell in cells:
            image = drawn(cell).get(name)
            row[cell.name] = predicted(cell, image) if image else "-"
        rows.append(row)
    return rows


def drawn(cell: CellPage) -> dict[str, dict[str, Any]]:
    """The images spread over the split, by their ids."""
    return {image["id"]: image for image in cell.about["images"] if image["why"] == "spread"}


def extreme(cell: CellPage, kind: str) -> Markup:
    """The best or the worst images of one cell."""
    rows = [
        {"id": image["id"], "mIoU": score(image)}
        | {title: shown(cell, image, title) for title in PARTS}
        | {"error": errors(cell, image)}
        for image in cell.about["images"]
        if image["why"] == kind
    ]
    return table(rows, f"{KINDS[kind]} of {cell.name}, mIoU of the image in percent")


def predicted(cell: CellPage, image: dict[str, Any]) -> Markup:
    return joined([shown(cell, image, "prediction"), errors(cell, image), Markup("{} %").format(score(image))])


def shown(cell: CellPage, image: dict[str, Any], title: str) -> Markup:
    """One part of an image, or a note that it is missing."""
    assert cell.parts
    try:
        found = from_file(cell.parts / f"{image['stem']}.{PARTS[title]}")
    except DAMAGED:
        return Markup("{} is missing or damaged").format(title)
    of = f" of {cell.name}" if title == "prediction" else ""
    return part("picture", *found, f"{title}{of}, {image['id']}")


def errors(cell: CellPage, image: dict[str, Any]) -> Markup:
    """Where the prediction is wrong; empty when a part is missing, which `shown` reports."""
    assert cell.parts
    try:
        found = error_picture(*(cell.parts / f"{image['stem']}.{PARTS[title]}" for title in ("truth", "prediction")))
    except DAMAGED:
        return Markup()
    return part("picture", *found, f"errors of {cell.name}, {image['id']}: {score(image)} % mIoU")


def score(image: dict[str, Any]) -> str:
    return "-" if image["mIoU"] is None else f"{100 * image['mIoU']:.1f}"


def legend(cell: CellPage) -> Markup:
    """The colours of classes and errors."""
    classes = list(zip(cell.about["classes"], map(rgb, cell.about["palette"]), strict=True))
    errors = {"right": rgb(RIGHT), "wrong": rgb(WRONG), "not labelled": rgb(UNLABELLED)}
    names = part("legend", classes)
    if len(classes) > MANY:
        names = part("more", f"Colours of {len(classes)} classes", names)
    return joined([names, part("legend", errors.items())])


def rgb(color: Sequence[float]) -> str:
    """The colour in CSS; `int` lets nothing but numbers into the style of an element."""
    return "rgb({}, {}, {})".format(*map(int, color))
