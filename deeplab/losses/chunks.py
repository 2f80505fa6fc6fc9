"""What losses share: logits are upsampled in chunks, as a product of matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Upsampled logits held at once: what fits into the cache of a CPU; on a GPU few launches of large kernels.
CHUNK = {"cpu": 2**20, "cuda": 2**25}


def rows_at_once(width: int, device: torch.device) -> int:
    """How many rows of `width` numbers a chunk has."""
    return max(1, CHUNK.get(device.type, CHUNK["cuda"]) // width)


def interpolation(size: int, small: int, like: Tensor) -> Tensor:
    """The matrix (size, small) of bilinear resizing (align_corners=False), in the type of `like`, on its device."""
    double, device = torch.float64, like.device  # made on the device: a copy would wait for it
    place = (torch.arange(size, dtype=double, device=device) + 0.5) * small / size - 0.5
    distance = place.clamp(min=0, max=small - 1)[:, None] - torch.arange(small, dtype=double, device=device)
    return (1 - distance.abs()).clamp(min=0).to(like.dtype)


def chunks(samples: int, height: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and of rows: several whole samples, or a part of one, with about `at_once` rows in all."""
    together, rows = max(1, at_once // height), min(at_once, height)
    for first in range(0, samples, together):
        for top in range(0, height, rows):
            yield slice(first, first + together), slice(top, top + rows)


@contextmanager
def fp32_products() -> Iterator[None]:
    """Products of fp32 matrices in fp32, whatever `train.tf32` says."""
    if not torch.backends.cuda.matmul.allow_tf32:  # setting it to what it is makes torch.compile compile again
        yield
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True
