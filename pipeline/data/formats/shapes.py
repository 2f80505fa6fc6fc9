"""Synthetic shapes for the demo: drawn by code, with the same bits on every machine.

Size, place and angle of a shape are random. One shape in eight has the colour of another class. So a small network
learns most of it within a minute from colours, and the rest only from outlines.
"""

import math
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deeplab.histogram import histogram
from deeplab.store import IGNORE, Bytes, Color
from pipeline.data.formats.base import Layout, Mask, RawSample
from pipeline.errors import ParamsError
from pipeline.settings.params import pick
from pipeline.settings.schema import DatasetConfig

Grid = NDArray[np.int64]  # (H, W): a coordinate of each pixel

PALETTE: Final[dict[str, Color]] = {
    "background": (0, 0, 0),
    "circle": (220, 50, 50),
    "square": (60, 90, 220),
    "triangle": (40, 170, 70),
    "ring": (225, 200, 40),
    "cross": (170, 60, 190),
}
SIDES: Final = (56, 80)  # least and greatest height and width
UNIT: Final = 256  # fractions are whole numbers of 1/256, which are the same on every machine


def scan(raw: Path, config: DatasetConfig, splits: tuple[str, ...]) -> Layout:  # noqa: ARG001  raw is empty
    """The samples of each split, as many as the settings say."""
    if config.store != "packed":
        raise ParamsError(f"store: got {config.store!r}, expected 'packed': the format shapes has no image files")
    samples: dict[str, list[RawSample]] = {}
    for split in splits:
        count = pick(config.images, split, "images of the format shapes")
        names = [f"{split}_{index:05d}" for index in range(count)]
        samples[split] = [RawSample(id=name, image=Path(name), mask=Path(name)) for name in names]
    return Layout(classes=tuple(PALETTE), palette=tuple(PALETTE.values()), samples=samples)


def size(sample: RawSample) -> tuple[int, int]:
    """Height and width of the image."""
    return random_size(Random(sample.id))  # noqa: S311  not a secret


def load_image(sample: RawSample) -> Bytes:
    """The image (H, W, 3)."""
    return draw(sample.id)[0]


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W)."""
    mask = draw(sample.id)[1]
    return Mask(mask, histogram(mask))


def random_size(random: Random) -> tuple[int, int]:
    """Height and width."""
    return random.randint(*SIDES), random.randint(*SIDES)


@lru_cache(maxsize=1)  # the image is read first, then the mask
def draw(seed: str) -> tuple[Bytes, Bytes]:
    """Image and mask of one sample."""
    random = Random(seed)  # noqa: S311  not a secret
    height, width = random_size(random)
    y, x = np.mgrid[:height, :width]
    grey = random.randrange(40, 216)
    image = painted([grey + random.randint(-24, 24) for _ in range(3)], texture(random, y, x))
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.randint(2, 4)):
        label, radius = random.randint(1, len(OUTLINES)), random.randint(9, 18)
        row, column = random.randint(8, height - 8), random.randint(8, width - 8)
        inside = OUTLINES[label - 1](*turned(random, y - row, x - column), radius)
        usual = list(PALETTE.values())[label if random.randrange(8) else random.randint(1, len(OUTLINES))]
        color = [min(255, max(0, channel + random.randint(-30, 30))) for channel in usual]
        image[inside] = painted(color, texture(random, y, x))[inside]
        mask[inside] = label
    noise = np.frombuffer(random.randbytes(image.size), np.uint8).reshape(image.shape) >> 4
    return image + noise, with_ignored_border(mask)


def painted(color: list[int], pattern: Grid) -> Bytes:
    """`pattern` (H, W) in `color` (H, W, 3), with room above for noise."""
    return (np.array(color) * 13 // 16 + pattern[..., None]).astype(np.uint8)


def texture(random: Random, y: Grid, x: Grid) -> Grid:
    """Stripes of random width, angle and strength (H, W)."""
    across, down, strength = random.randint(-3, 3), random.randint(-3, 3), random.randint(0, 24)
    return ((across * x + down * y) // 8 % 2) * strength


def turned(random: Random, y: Grid, x: Grid) -> tuple[Grid, Grid]:
    """The coordinates turned by up to 20 degrees."""
    angle = math.radians(random.randint(-20, 20))
    sine, cosine = round(UNIT * math.sin(angle)), round(UNIT * math.cos(angle))
    return (cosine * y - sine * x) // UNIT, (sine * y + cosine * x) // UNIT


def with_ignored_border(mask: Bytes) -> Bytes:
    """`mask` with 255 where a pixel differs from the one above it or to its left."""
    border = np.zeros(mask.shape, bool)
    border[1:] |= mask[1:] != mask[:-1]
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return np.where(border, np.uint8(IGNORE), mask)


def circle(y: Grid, x: Grid, radius: int) -> NDArray[np.bool_]:
    return y * y + x * x <= radius * radius


def square(y: Grid, x: Grid, radius: int) -> NDArray[np.bool_]:
    return 8 * np.maximum(abs(y), abs(x)) <= 7 * radius


def triangle(y: Grid, x: Grid, radius: int) -> NDArray[np.bool_]:
    return (y <= radius) & (7 * abs(x) <= 4 * (y + radius))


def ring(y: Grid, x: Grid, radius: int) -> NDArray[np.bool_]:
    return circle(y, x, radius) & ~circle(y, x, radius // 2)


def cross(y: Grid, x: Grid, radius: int) -> NDArray[np.bool_]:
    return (np.maximum(abs(y), abs(x)) <= radius) & (3 * np.minimum(abs(y), abs(x)) <= radius)


# In the order of the train ids from 1 on; around the origin, y downwards, within `radius`.
OUTLINES: Final = (circle, square, triangle, ring, cross)
