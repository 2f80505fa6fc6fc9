"""A segmentation as a picture: an image under the colours of its classes, and their legend."""

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from deeplab.store import IGNORE, Bytes, Color

GAP = 10
LINE = 22  # of text
OPACITY = 0.7  # of the classes' colours over the image
UNLABELLED: Color = (255, 255, 255)
INK: Color = (20, 20, 20)


def tint(image: Bytes, labels: Bytes, palette: tuple[Color, ...]) -> Bytes:
    """The image in grey (H, W, 3) under the colours of its labels (H, W)."""
    colors = np.full((IGNORE + 1, 3), UNLABELLED, dtype=np.float32)
    colors[: len(palette)] = palette
    grey: NDArray[np.float32] = image.mean(axis=2, keepdims=True, dtype=np.float32)
    return np.rint(OPACITY * colors[labels] + (1 - OPACITY) * grey).astype(np.uint8)


def legend_of(masks: list[Bytes], classes: tuple[str, ...], palette: tuple[Color, ...]) -> list[tuple[str, Color]]:
    """Name and colour of the classes that occur in any of `masks`."""
    kinds = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)))
    legend = [(classes[kind], palette[kind]) for kind in kinds if kind != IGNORE]
    return [*legend, ("not labelled", UNLABELLED)] if IGNORE in kinds else legend


def draw_legend(draw: ImageDraw.ImageDraw, rows: list[list[tuple[int, str, Color]]], top: int) -> None:
    """Draw the `rows` that `wrap` returns, from `top` downwards."""
    for row, entries in enumerate(rows):
        line = top + row * LINE
        for left, name, color in entries:
            draw.rectangle((GAP + left, line + 3, GAP + left + 14, line + 17), color, INK)
            draw.text((GAP + left + 20, line + 1), name, INK, FONT)


def wrap(legend: list[tuple[str, Color]], width: int) -> list[list[tuple[int, str, Color]]]:
    """Place the legend's entries in rows of at most `width` pixels: (left, name, colour)."""
    rows: list[list[tuple[int, str, Color]]] = [[]]
    left = 0
    for name, color in legend:
        needed = 20 + round(FONT.getlength(name)) + 2 * GAP
        if rows[-1] and left + needed > width:
            rows.append([])
            left = 0
        rows[-1].append((left, name, color))
        left += needed
    return rows


FONT = ImageFont.load_default(14)
