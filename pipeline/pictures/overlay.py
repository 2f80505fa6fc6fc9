"""A segmentation as a picture: image, truth, prediction and error side by side."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deeplab.store import IGNORE, Bytes, Color

LONG_SIDE = 480  # of a panel, pixels
GAP = 10
LINE = 22  # of text
OPACITY = 0.7  # of the classes' colours over the image
UNLABELLED: Color = (255, 255, 255)
INK: Color = (20, 20, 20)
RIGHT: Color = (200, 205, 210)
WRONG: Color = (200, 30, 40)


def comparison(
    image: Bytes, truth: Bytes, predicted: Bytes, classes: tuple[str, ...], palette: tuple[Color, ...]
) -> Image.Image:
    """Image (H, W, 3), truth and prediction (H, W), and where they differ, above a legend of their classes."""
    height, width = truth.shape
    factor = LONG_SIDE / max(height, width)
    panel = round(width * factor), round(height * factor)
    total = 4 * panel[0] + 5 * GAP
    rows = wrap(legend_of([truth, predicted], classes, palette), total - 2 * GAP)
    canvas = Image.new("RGB", (total, LINE + panel[1] + GAP + LINE * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    pictures = (
        ("image", image),
        ("truth", tint(image, truth, palette)),
        ("prediction", tint(image, predicted, palette)),
        ("error", errors(truth, predicted)),
    )
    for index, (title, picture) in enumerate(pictures):
        left = GAP + index * (panel[0] + GAP)
        draw.text((left, 3), title, INK, FONT)
        method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST  # the latter keeps its pixels
        canvas.paste(Image.fromarray(picture).resize(panel, method), (left, LINE))
    draw_legend(draw, rows, LINE + panel[1] + GAP)
    return canvas


def errors(truth: Bytes, predicted: Bytes) -> Bytes:
    """Where (H, W) and (H, W) differ, as a picture (H, W, 3): RIGHT, WRONG, or UNLABELLED in the truth."""
    picture = np.full((*truth.shape, 3), RIGHT, dtype=np.uint8)
    picture[truth != predicted] = WRONG
    picture[truth == IGNORE] = UNLABELLED
    return picture


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
