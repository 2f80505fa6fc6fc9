"""From a stored image to network input: random geometry on the CPU, normalisation batched on the device.

The geometry is fused: size, crop and flip are drawn first, and only the region of the source that ends up in the crop
is read and resized. Compared with resizing the whole image and cropping it, rounding that region to whole pixels shifts
the picture by less than half a source pixel. Image and mask use the same region. Evaluation resizes whole images.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from deeplab.config import AugmentConfig, RecipeConfig
from deeplab.store import IGNORE, Bytes

SPARSE = 16  # every SPARSE-th pixel is looked at to guess a frequent class


@dataclass(frozen=True)
class Region:
    """Rows [top, bottom) and columns [left, right) of a source, and the size (height, width) they are resized to."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int


def fitted_size(height: int, width: int, resize: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """(height, width) fitted into the box `resize` (long side, short side), aspect kept, times `scale`."""
    factor = scale * min(max(resize) / max(height, width), min(resize) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def draw_region(
    rng: Generator, mask: Bytes, recipe: RecipeConfig, augment: AugmentConfig, out: Bytes | None = None
) -> Region:
    """Draw a scale, then crops until no class covers `max_class_share` of the valid pixels, or tries run out.

    Writes the region of the mask into the upper left corner of `out`, (H, W) of the recipe's crop.
    """
    out = np.empty(recipe.crop, dtype=np.uint8) if out is None else out
    scale = rng.uniform(*augment.scale)
    size = fitted_size(mask.shape[0], mask.shape[1], recipe.resize, scale)
    for _ in range(augment.crop_tries):
        region = draw_crop(rng, mask.shape, size, recipe.crop)
        part = cut(mask, region, cv2.INTER_NEAREST, out)
        if augment.max_class_share == 1 or not one_class_covers(part, augment.max_class_share):
            break
    return region


def draw_crop(rng: Generator, source: tuple[int, ...], size: tuple[int, int], crop: tuple[int, int]) -> Region:
    """A crop, uniform over its places in an image of `size`, as a region of `source` (both height, width)."""
    edges: list[int] = []
    lengths: list[int] = []
    for stored, resized, wanted in zip(source, size, crop, strict=True):
        length = min(resized, wanted)
        start = int(rng.integers(0, resized - length + 1))
        low = min(round(start * stored / resized), stored - 1)
        edges += [low, max(low + 1, round((start + length) * stored / resized))]
        lengths.append(length)
    return Region(*edges, *lengths)


def cut(source: Bytes, region: Region, interpolation: int, out: Bytes | None = None) -> Bytes:
    """The region of `source` (H, W) or (H, W, 3) at the region's size; nearest for masks, linear for images.

    With `out`, which is at least as large, writes into its upper left corner and returns that corner.
    """
    part = source[region.top : region.bottom, region.left : region.right]
    corner = np.empty((region.height, region.width, *source.shape[2:]), np.uint8) if out is None else out
    corner = corner[: region.height, : region.width]
    if interpolation == cv2.INTER_NEAREST and source.ndim == 2:
        take_nearest(part, corner)
    else:
        cv2.resize(part, (region.width, region.height), dst=corner, interpolation=interpolation)
    return corner


def take_nearest(part: Bytes, out: Bytes) -> None:
    """cv2.resize(part, dst=out, interpolation=INTER_NEAREST) of one channel, in half the time.

    Copies whole rows; columns are copied as rows of the transposed image.
    """
    rows, columns = nearest(part.shape[0], out.shape[0]), nearest(part.shape[1], out.shape[1])
    shrinks = len(rows) < len(part)  # then select rows first, which leaves less to do
    wide = cv2.transpose(cv2.transpose(part[rows] if shrinks else part)[columns])
    if shrinks:
        out[:] = wide
    else:
        np.take(wide, rows, axis=0, out=out, mode="clip")


@lru_cache(maxsize=256)
def nearest(stored: int, resized: int) -> NDArray[np.uint16]:
    """For each of `resized` pixels of a row which of `stored` pixels it shows, by OpenCV's rule."""
    row = np.arange(stored, dtype=np.uint16)[None]
    places: NDArray[np.uint16] = cv2.resize(row, (resized, 1), interpolation=cv2.INTER_NEAREST)[0]
    places.flags.writeable = False
    return places


def one_class_covers(mask: Bytes, share: float) -> bool:
    """Whether a class covers `share` or more of the valid pixels: largest_share(mask) >= share, decided faster.

    A few pixels suggest a class, and all pixels are counted for that class alone. When the rest is less than `share`,
    no other class can cover it.
    """
    few = np.bincount(mask[::SPARSE, ::SPARSE].reshape(-1), minlength=IGNORE + 1)[:IGNORE]
    covered = count(mask, int(few.argmax()))
    if covered / mask.size >= share:
        return True
    valid = max(1, mask.size - count(mask, IGNORE))
    if covered / valid >= share:
        return True
    if (valid - covered) / valid < share:
        return False
    return largest_share(mask) >= share


def count(mask: Bytes, label: int) -> int:
    """The number of pixels with that label."""
    return int(np.count_nonzero(mask == label))  # a Python int: numpy's would make all pixels 64 bits wide


def largest_share(mask: Bytes) -> float:
    """The share of the valid pixels in the most frequent class, 0..1; 0 when no pixel is valid."""
    counts = np.bincount(mask.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / max(1, counts.sum()))  # type: ignore[operator, unused-ignore]  # numpy 2.5


def normalise(images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """(N, 3, H, W) RGB in 0..255 -> zero mean and unit deviation per channel."""
    return (images - per_channel(mean, images.device)) / per_channel(std, images.device)


@cache
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as (1, 3, 1, 1), cached: copying a list to the device makes the host wait."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def clear_padding(images: Tensor, sizes: Tensor) -> Tensor:
    """Set to 0 what is outside of each image; (N, 3, H, W) and (N, 2) heights and widths."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < sizes[:, :1]  # (N, H)
    columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # (N, W)
    return images * (rows[:, None, :, None] & columns[:, None, None, :])
