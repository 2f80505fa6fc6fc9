"""Photometric distortion: random brightness, contrast, saturation and hue."""

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from deeplab.augmentations.augmentation import Augmentation
from deeplab.config import AugmentConfig
from deeplab.transforms import per_channel

# Columns of a distortion vector. Contrast comes before or after the colour changes, each half of the time.
BRIGHTNESS, CONTRAST_BEFORE, SATURATION, HUE, CONTRAST_AFTER = range(5)
NO_DISTORTION = (0.0, 1.0, 1.0, 0.0, 1.0)


def draw_distortion(rng: Generator, augment: AugmentConfig) -> NDArray[np.float32]:
    """The colour changes of one sample as a vector (5,), see BRIGHTNESS and its neighbours."""
    values = np.array(NO_DISTORTION, dtype=np.float32)
    contrast = CONTRAST_BEFORE if rng.random() < 0.5 else CONTRAST_AFTER
    ranges = (
        (BRIGHTNESS, (-augment.brightness, augment.brightness)),
        (contrast, augment.contrast),
        (SATURATION, augment.saturation),
        (HUE, (-augment.hue, augment.hue)),
    )
    for column, (low, high) in ranges:
        if rng.random() < augment.photometric:
            values[column] = rng.uniform(low, high)
    return values


def distort(images: Tensor, distortions: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue; (N, 3, H, W) RGB in 0..255 and (N, 5) -> the same shape and
    range.
    """
    d = distortions[:, :, None, None, None].unbind(1)
    x = ((images + d[BRIGHTNESS]).clamp(0, 255) * d[CONTRAST_BEFORE]).clamp(0, 255)
    x = turn_colours(x, d[SATURATION], d[HUE])
    return (x * d[CONTRAST_AFTER]).clamp(0, 255)


def turn_colours(images: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale the saturation and turn the hue (180 is the whole circle) in HSV; (N, 3, H, W) in 0..255."""
    red, green, blue = images.unbind(1)
    value, brightest = images.max(dim=1)
    chroma = value - images.amin(dim=1)
    safe = chroma.clamp(min=1e-6)
    sector = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    sector = sector.gather(1, brightest[:, None]) + hue / 30  # (N, 1, H, W), in sixths of the circle
    strength = ((chroma / value.clamp(min=1e-6))[:, None] * saturation).clamp(0, 1) * value[:, None]
    corner = per_channel((5.0, 3.0, 1.0), images.device)
    place = (corner + sector) % 6
    return value[:, None] - strength * torch.minimum(place, 4 - place).clamp(0, 1)


photometric = Augmentation(draw_distortion, distort, columns=len(NO_DISTORTION))
