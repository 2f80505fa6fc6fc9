"""Any loss over pixels, in chunks: what is summed is written as a plain formula on upsampled logits."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deeplab.losses.chunks import chunks, fp32_products, interpolation, rows_at_once
from deeplab.store import IGNORE

# (upsampled logits (n, r, W, K), masks uint8 (n, r, W)) -> scalar
Formula = Callable[[Tensor, Tensor], Tensor]


def upsampled_sum(logits: Tensor, masks: Tensor, formula: Formula, whole_images: bool = False) -> Tensor:
    """The sum of `formula` over chunks of pixels at the resolution of the masks, or over images one by one.

    logits (N, K, h, w), masks uint8 (N, H, W) -> scalar, in fp32 also for logits in half precision. The gradient of a
    chunk is made by autograd in the same pass, and its upsampled logits are freed before those of the next.
    """
    with torch.autocast(logits.device.type, enabled=False):
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total: Tensor = UpsampledSum.apply(full, masks, formula, whole_images)
        return total


@torch.no_grad()
def upsampled_parts(logits: Tensor, masks: Tensor, formula: Formula) -> Iterator[Tensor]:
    """`formula` of each chunk, in the order of the pixels and without a gradient."""
    with torch.autocast(logits.device.type, enabled=False), fp32_products():
        small = logits.to(torch.promote_types(logits.dtype, torch.float32)).permute(0, 2, 3, 1).contiguous()
        down, across = matrices(small, masks)
        count, height, width = masks.shape
        for samples, rows in chunks(count, height, rows_at_once(small.shape[3] * width, small.device)):
            tall = torch.einsum("rh,nhwk->nrwk", down[rows], small[samples])
            yield formula(across @ tall, masks[samples, rows])


def pixel_losses(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of each pixel, 0 where it is ignored: (..., K) and uint8 (...) -> (...).

    Written with `gather`, because the loss of torch has no deterministic kernel on a GPU.
    """
    valid = masks != IGNORE
    labels = masks.where(valid, 0).long()[..., None]
    return -F.log_softmax(scores, dim=-1).gather(-1, labels).squeeze(-1).where(valid, 0)


def matrices(small: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The products that upsample logits (N, h, w, K) to the rows and columns of the masks."""
    height, width = masks.shape[-2:]
    return interpolation(height, small.shape[1], small), interpolation(width, small.shape[2], small)


class UpsampledSum(torch.autograd.Function):
    """(N, K, h, w), uint8 (N, H, W), formula -> scalar."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, formula: Formula, whole_images: bool) -> Tensor:
        """Add up the values of all chunks, and their gradients."""
        (height, width), classes = masks.shape[-2:], logits.shape[1]
        small = logits.permute(0, 2, 3, 1).contiguous()  # (N, h, w, K)
        gradient = torch.zeros_like(small)
        down, across = matrices(small, masks)
        total = small.new_zeros(())
        at_once = height if whole_images else rows_at_once(classes * width, small.device)
        with fp32_products():
            for samples, rows in chunks(len(small), height, at_once):
                tall = torch.einsum("rh,nhwk->nrwk", down[rows], small[samples])
                scores = (across @ tall).requires_grad_()  # (n, r, W, K)
                with torch.enable_grad():
                    value = formula(scores, masks[samples, rows])
                    (change,) = torch.autograd.grad(value, scores)
                total += value.detach()
                gradient[samples] += torch.einsum("rh,nrwk->nhwk", down[rows], across.T @ change)
        ctx.save_for_backward(gradient.permute(0, 3, 1, 2))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the gradient that `forward` made."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None
