"""Regions of images in annotations: the checks of polygons and run lengths, whoever wrote them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter, ValidationError

CORNERS: Final = 64  # of the polygon that stands for an ellipse
OVER: Final = 0.01  # how far shares of an image may be beyond 0..1: some tools round
POLYGONS: Final = TypeAdapter(list[list[FiniteFloat]])
COUNTS: Final = TypeAdapter(list[int])

Size = tuple[int, int]  # height, width


class Region(NamedTuple):
    """What one annotation covers: polygons, or a mask as runs of pixels."""

    name: str  # of its class; of YOLO the number
    polygons: Sequence[Any] = ()  # x1, y1, x2, y2, ... of each, in pixels or in shares; it covers what any covers
    runs: Sequence[int] = ()  # pixels outside and inside in turn, by columns, as COCO counts
    is_crowd: bool = False  # things that are not separated: not to be trained on
    order: int = 0  # drawn over all of a lower order


class Listed(NamedTuple):
    """An image that an export lists."""

    place: str  # where, for messages
    file: str  # how the export calls it
    size: Size | None  # None: its regions are in shares of it
    regions: list[Region]


@dataclass
class Export:
    """The content of an annotation file or folder."""

    images: list[Listed] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of classes, where the tool declares them
    problems: list[str] = field(default_factory=list)

    def used_names(self) -> list[str]:
        """The declared names, or else those of the regions in alphabetical order."""
        return self.names or sorted({region.name for image in self.images for region in image.regions})


def add(listed: Listed, place: str, problems: list[str], read: Callable[[], Region]) -> None:
    """Add the region that `read` returns to `listed`, or what is wrong with it to `problems`."""
    try:
        region = read()
    except KeyError as error:
        problems.append(f"{place}: no attribute {error}. Export it again")
    except ValueError as error:
        problems.append(f"{place}: {error}")
    else:
        polygons = [] if region.runs else checked(region.polygons, listed.size, place, problems)
        if region.runs or polygons:
            listed.regions.append(region._replace(polygons=polygons))


def checked(polygons: Any, size: Size | None, place: str, problems: list[str]) -> list[list[float]]:
    """`polygons` as numbers, or nothing and a line in `problems`. Without a size they are in shares of the image."""
    height, width = size or (1, 1)
    try:
        found = POLYGONS.validate_python(polygons)
    except ValidationError:
        got = ascii(polygons)[:40]
        problems.append(f"{place}: got {got}, expected polygons of numbers, and no boxes alone")
        return []
    if not found:
        problems.append(f"{place}: no polygon. Delete it, or draw it again")
    for each in found:
        x, y = each[::2], each[1::2]
        if len(each) < 6 or len(each) % 2:
            text = f"a polygon of {len(each)} numbers, expected x and y of 3 points or more"
        elif size is None and not (min(each) >= -OVER and max(each) <= 1 + OVER):
            text = f"a polygon from {min(each):g} to {max(each):g}, expected shares of the image, from 0 to 1"
        elif max(x) <= 0 or max(y) <= 0 or min(x) >= width or min(y) >= height:
            text = f"a polygon outside of the image, which is {width}x{height}"
        elif min(x) < -width or max(x) > 2 * width or min(y) < -height or max(y) > 2 * height:
            text = f"a polygon far beyond the image, which is {width}x{height}"
        else:
            continue
        problems.append(f"{place}: {text}. Delete it, or draw it again")
        return []
    return found


def counted(segmentation: dict[str, Any], size: Size, place: str, problems: list[str]) -> list[int]:
    """The run lengths of COCO, or none and a line in `problems`."""
    counts = segmentation.get("counts")
    try:
        runs = expand(counts) if isinstance(counts, str) else COUNTS.validate_python(counts)
    except (ValueError, IndexError):
        runs = []
    if segmentation.get("size") != list(size):
        text = f"size {ascii(segmentation.get('size'))[:40]}, but the image is {list(size)}"
    elif min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        text = f"counts {ascii(counts)[:40]} of {sum(runs)} pixels, expected {size[0] * size[1]}"
    elif not sum(runs[1::2]):
        text = "counts without a pixel"
    else:
        return runs
    problems.append(f"{place}: run lengths with {text}. Delete it, or draw it again")
    return []


def expand(text: str) -> list[int]:
    """The run lengths in COCO's text: five bits a character, as differences to the last but one. Raises IndexError."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 31) << shift
            more, place, shift = bool(bits & 32), place + 1, shift + 5
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def filled(runs: Sequence[int], size: Size) -> NDArray[np.bool_]:
    """The pixels (H, W) that run lengths cover. pycocotools.mask.decode does not check them, and warns with numpy 2."""
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(size[1], size[0]).T


def runs_of(inside: NDArray[np.bool_], left: int, top: int, size: Size) -> list[int]:
    """The run lengths of a mask (h, w) whose corner is at `left`, `top`.

    Raises ValueError for a mask without a pixel, or beyond the image.
    """
    height, width = inside.shape
    if min(left, top) < 0 or left + width > size[1] or top + height > size[0]:
        where = f"{width}x{height} at {left}, {top}"
        raise ValueError(f"a mask of {where} in an image of {size[1]}x{size[0]}. Delete it, or draw it again")
    if not inside.any():
        raise ValueError("a mask without a pixel. Delete it, or draw it again")
    columns, rows = np.nonzero(inside.T)
    places = (columns + left) * size[0] + rows + top  # of the pixels, by columns
    starts = places[np.diff(places, prepend=-2) > 1]
    ends = places[np.diff(places, append=places[-1] + 2) > 1] + 1
    edges = np.stack([starts, ends], axis=1).ravel()
    return list(np.diff(edges, prepend=0, append=size[0] * size[1]).tolist())


def ellipse(x: float, y: float, rx: float, ry: float) -> NDArray[np.float64]:
    """The corners (CORNERS, 2) of a polygon around an ellipse."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    with np.errstate(over="ignore"):  # `checked` refuses infinite corners
        return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def turned(corners: NDArray[np.float64], x: float, y: float, degrees: float) -> list[float]:
    """The polygon `corners` (N, 2), turned clockwise about (x, y)."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    return list(((corners - (x, y)) @ rotation + (x, y)).ravel().tolist())
