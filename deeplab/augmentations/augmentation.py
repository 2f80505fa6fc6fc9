"""What an augmentation is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from deeplab.config import AugmentConfig


class Augmentation(NamedTuple):
    """A random change of the colours of an image, drawn for each sample and applied to a whole batch on the device."""

    draw: Callable[[Generator, AugmentConfig], NDArray[np.float32]]  # -> (columns,) float32, the change of one sample
    apply: Callable[[Tensor, Tensor], Tensor]  # (N, 3, H, W) RGB in 0..255, (N, columns) -> the same shape and range
    columns: int
