"""Predictions of the cells: the same images side by side, then the best and worst ones of each cell."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pipeline.page.embedded import DAMAGED, error_picture, from_file
from pipeline.page.html import joined, part
from pipeline.page.inputs import CellPage, DatasetPage
from pipeline.pictures.colors import RIGHT, WRONG
from pipeline.pictures.overlay import UNLABELLED

PARTS = {"image": "image.jpg", "truth": "truth.png", "prediction": "prediction.png"}
KINDS = {"worst": "Worst images", "best": "Best images"}
MANY = 40  # classes: the colours of more are folded away
WORDS = (
    "The same images for all cells. First the image and its truth, then for each cell its prediction, its errors and "
    "the mIoU of this image. A click enlarges a picture."
)

Image = dict[str, Any]  # an entry of about.json


def predictions(page: DatasetPage) -> Markup:
    """Image and truth, and for each cell its prediction and its errors; then each cell's own best and worst images."""
    cells = [cell for cell in page.measured if cell.about]
    if not cells:
        return Markup()
    pieces = [legend(cells[0]), part("text", WORDS)]
    pieces += [side_by_side(name, cells) for name in dict.fromkeys(name for cell in cells for name in drawn(cell))]
    for cell in cells:
        own = [extremes(cell, kind) for kind in KINDS]
        if any(own):
            pieces.append(part("more", f"{cell.name}: its worst and best images", joined(own)))
    return joined(pieces)


def side_by_side(name: str, cells: list[CellPage]) -> Markup:
    """One image as all cells see it."""
    found = [(cell, drawn(cell)[name]) for cell in cells if name in drawn(cell)]
    tiles = [part("pictures", [shown(*found[0], title) for title in ("image", "truth")], "image, truth")]
    for cell, image in found:
        both = [shown(cell, image, "prediction"), errors(cell, image)]
        tiles.append(part("pictures", both, part("cell", cell.name, f"{score(image)} %")))
    return part("tiles", name, tiles)


def drawn(cell: CellPage) -> dict[str, Image]:
    """The images spread over the split, by their ids."""
    return {image["id"]: image for image in cell.about["images"] if image["why"] == "spread"}


def extremes(cell: CellPage, kind: str) -> Markup:
    """The best or the worst images of one cell; empty without any."""
    tiles = [
        part(
            "pictures",
            [*(shown(cell, image, title) for title in PARTS), errors(cell, image)],
            f"{image['id']}: {score(image)} %",
        )
        for image in cell.about["images"]
        if image["why"] == kind
    ]
    return part("tiles", KINDS[kind], tiles) if tiles else Markup()


def shown(cell: CellPage, image: Image, title: str) -> Markup:
    """One part of an image, or a note that it is missing."""
    assert cell.parts
    try:
        found = from_file(cell.parts / f"{image['stem']}.{PARTS[title]}")
    except DAMAGED:
        return Markup("{} is missing or damaged").format(title)
    of = f" of {cell.name}" if title == "prediction" else ""
    return part("picture", *found, f"{title}{of}, {image['id']}", f"{cell.name}.{image['stem']}.{title}")


def errors(cell: CellPage, image: Image) -> Markup:
    """Where the prediction is wrong; empty when a part is missing, which `shown` reports."""
    assert cell.parts
    try:
        found = error_picture(*(cell.parts / f"{image['stem']}.{PARTS[title]}" for title in ("truth", "prediction")))
    except DAMAGED:
        return Markup()
    words = f"errors of {cell.name}, {image['id']}: {score(image)} % mIoU"
    return part("picture", *found, words, f"{cell.name}.{image['stem']}.errors")


def score(image: Image) -> str:
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
