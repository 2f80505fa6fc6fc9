"""Cross-entropy at the resolution of the masks, without the upsampled logits.

The logits are upsampled and compared a few rows at a time, and their gradient is made in the same pass. For the 150
classes of ADE20k at 512x512 and batch 16 the whole would be 2.5 GB in fp32, several times over, and slower. On a GPU a
fused kernel does the same where it is faster (deeplab/losses/choice.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deeplab.losses.choice import fastest
from deeplab.losses.chunks import chunks, fp32_products, interpolation, rows_at_once
from deeplab.store import IGNORE


def cross_entropy(logits: Tensor, masks: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy at the resolution of the masks, summed over the valid pixels and divided by `count`.

    logits (N, K, h, w), masks uint8 (N, H, W) with 255 ignored, count the valid pixels of the whole batch -> scalar, in
    fp32 also for logits in half precision. Equal, to rounding, to bilinear interpolation (align_corners=False) and the
    mean.
    """
    with torch.autocast(logits.device.type, enabled=False):
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a log-sum-exp over K classes
        total: Tensor = UpsampledCrossEntropy.apply(full, masks)
        return total / count.clamp(min=1)  # without a valid pixel 0, not NaN


class UpsampledCrossEntropy(torch.autograd.Function):
    """The cross-entropy summed over the valid pixels: (N, K, h, w) and uint8 (N, H, W) -> scalar."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        """Make the gradient too, in the form that is the fastest here."""
        small = logits.permute(0, 2, 3, 1).contiguous()  # (N, h, w, K)
        total, gradient = fastest(in_chunks, small, masks)(small, masks)
        ctx.save_for_backward(gradient.permute(0, 3, 1, 2))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient that `forward` made."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None


def in_chunks(small: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and its gradient, (N, h, w, K) and uint8 (N, H, W) -> scalar, (N, h, w, K).

    Goes over chunks of pixels whose K values are contiguous, so that upsampling is a product of matrices.
    """
    classes, (height, width) = small.shape[3], masks.shape[-2:]
    gradient = torch.zeros_like(small)
    down, across = interpolation(height, small.shape[1], small), interpolation(width, small.shape[2], small)
    total = small.new_zeros(())
    with fp32_products():
        for samples, rows in chunks(len(small), height, rows_at_once(classes * width, small.device)):
            labels = masks[samples, rows].long()  # (n, r, W)
            valid = labels != IGNORE
            labels = labels.where(valid, 0)[..., None]
            tall = torch.einsum("rh,nhwk->nrwk", down[rows], small[samples])
            scores = F.log_softmax(across @ tall, dim=-1)  # (n, r, W, K)
            total -= scores.gather(-1, labels).squeeze(-1).where(valid, 0).sum()
            change = scores.exp_().scatter_add_(-1, labels, -torch.ones_like(labels, dtype=scores.dtype))
            change *= valid[..., None]
            gradient[samples] += torch.einsum("rh,nrwk->nhwk", down[rows], across.T @ change)
    return total, gradient
