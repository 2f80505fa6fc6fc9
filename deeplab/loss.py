"""What training minimises.

The logits are upsampled and compared a few rows at a time, and their gradient is made in the same pass. All of ADE20k's
150 classes at 512x512 and batch 16 would be 2.5 GB in fp32, several times over, and slower.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deeplab.store import IGNORE

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Upsampled logits held at once: what stays in a CPU's cache; on a GPU few launches of large kernels.
CHUNK = {"cpu": 2**20, "cuda": 2**25}


def cross_entropy(logits: Tensor, masks: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy at the resolution of the masks, summed over the valid pixels and divided by `count`.

    logits (N, K, h, w), masks uint8 (N, H, W) with 255 ignored, count as from `valid_pixels` -> scalar, in fp32 also
    for logits in half precision. To rounding equal to bilinear interpolation (corners not aligned) and the mean.
    """
    with torch.autocast(logits.device.type, enabled=False):
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a log-sum-exp over K classes
        total: Tensor = UpsampledCrossEntropy.apply(full, masks)
        return total / count.clamp(min=1)  # without any valid pixel 0, not NaN


def valid_pixels(masks: Tensor) -> Tensor:
    """How many pixels of uint8 masks are not ignored, a scalar on their device."""
    return (masks != IGNORE).sum()


class UpsampledCrossEntropy(torch.autograd.Function):
    """The cross-entropy summed over the valid pixels: (N, K, h, w) and uint8 (N, H, W) -> scalar."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        """Go over chunks of pixels whose K values lie side by side; upsampling is then a product of matrices."""
        classes, (height, width) = logits.shape[1], masks.shape[-2:]
        small = logits.permute(0, 2, 3, 1).contiguous()  # (N, h, w, K)
        gradient = torch.zeros_like(small)
        down, across = interpolation(height, small.shape[1], small), interpolation(width, small.shape[2], small)
        total = small.new_zeros(())
        rows_at_once = max(1, CHUNK.get(small.device.type, CHUNK["cuda"]) // (classes * width))
        with fp32_products():
            for samples, rows in chunks(len(small), height, rows_at_once):
                labels = masks[samples, rows].long()  # (n, r, W)
                valid = labels != IGNORE
                labels = labels.where(valid, 0)[..., None]
                tall = torch.einsum("rh,nhwk->nrwk", down[rows], small[samples])
                scores = F.log_softmax(across @ tall, dim=-1)  # (n, r, W, K)
                total -= scores.gather(-1, labels).squeeze(-1).where(valid, 0).sum()
                change = scores.exp_().scatter_add_(-1, labels, -torch.ones_like(labels, dtype=scores.dtype))
                change *= valid[..., None]
                gradient[samples] += torch.einsum("rh,nrwk->nhwk", down[rows], across.T @ change)
        ctx.save_for_backward(gradient.permute(0, 3, 1, 2))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        """The gradient was made on the way."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None


def interpolation(size: int, small: int, like: Tensor) -> Tensor:
    """The matrix (size, small) that resizes a line bilinearly, corners not aligned, in `like`'s type and place."""
    double, device = torch.float64, like.device  # made where it is used: a copy would wait for the device
    place = (torch.arange(size, dtype=double, device=device) + 0.5) * small / size - 0.5
    distance = place.clamp(min=0, max=small - 1)[:, None] - torch.arange(small, dtype=double, device=device)
    return (1 - distance.abs()).clamp(min=0).to(like.dtype)


def chunks(samples: int, height: int, rows_at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and of rows: several whole samples, or a part of one, with about that many rows in all."""
    together, rows = max(1, rows_at_once // height), min(rows_at_once, height)
    for first in range(0, samples, together):
        for top in range(0, height, rows):
            yield slice(first, first + together), slice(top, top + rows)


@contextmanager
def fp32_products() -> Iterator[None]:
    """Products of fp32 matrices in fp32, whatever `train.tf32` says."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
