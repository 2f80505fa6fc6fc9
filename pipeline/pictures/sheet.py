"""A sheet of samples, each image beside its mask, to check a data set by eye."""

from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from deeplab.store import Bytes, Color, Store
from pipeline.files import whole
from pipeline.pictures.overlay import FONT, GAP, INK, LINE, draw_legend, legend_of, tint, wrap

SAMPLES = 16
COLUMNS = 2  # of pairs
TILE = 360, 270  # width and height that a sample has to fit into
SEED = 0


def write_sheet(store: Store, split: str, path: Path) -> None:
    """Write a PNG of a few samples of `split`: each image as it is learned, beside it the same under the colours of its
    mask. A legend names the classes.
    """
    samples = store.split(split)
    chosen = sorted(Random(SEED).sample(range(len(samples)), min(SAMPLES, len(samples))))  # noqa: S311  not a secret
    pictures = [(samples.records[index].id, shrink(samples.image(index), samples.mask(index))) for index in chosen]
    with whole(path) as partial:
        sheet(pictures, store.classes, store.palette).save(partial)


def shrink(image: Bytes, mask: Bytes) -> tuple[Bytes, Bytes]:
    """Image and mask, resized to fit into TILE."""
    height, width = mask.shape
    factor = min(TILE[0] / width, TILE[1] / height)
    size = max(1, round(factor * width)), max(1, round(factor * height))
    smooth = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST  # small images keep their pixels
    small = np.asarray(Image.fromarray(image).resize(size, smooth, reducing_gap=2.0))
    return small, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def sheet(
    pictures: list[tuple[str, tuple[Bytes, Bytes]]], classes: tuple[str, ...], palette: tuple[Color, ...]
) -> Image.Image:
    """Rows of images, each beside its overlay and below its id, and a legend at the bottom."""
    total = 2 * COLUMNS * (TILE[0] + GAP) + GAP
    tall = max(mask.shape[0] for _, (_, mask) in pictures)
    rows = wrap(legend_of([mask for _, (_, mask) in pictures], classes, palette), total - 2 * GAP)
    bottom = -(-len(pictures) // COLUMNS) * (LINE + tall + GAP)
    canvas = Image.new("RGB", (total, bottom + LINE * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, (image, mask)) in enumerate(pictures):
        left = GAP + index % COLUMNS * 2 * (TILE[0] + GAP)
        top = index // COLUMNS * (LINE + tall + GAP)
        draw.text((left, top + 3), shortened(name), INK, FONT)
        canvas.paste(Image.fromarray(image), (left, top + LINE))
        canvas.paste(Image.fromarray(tint(image, mask, palette)), (left + image.shape[1] + GAP, top + LINE))
    draw_legend(draw, rows, bottom)
    return canvas


def shortened(name: str) -> str:
    """`name`, cut at its start if it is wider than a tile. The end is the part that differs."""
    return name if len(name) <= 40 else f"…{name[-39:]}"
