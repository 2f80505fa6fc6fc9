"""Focal loss (Lin et al., 2017, equation 5, over a softmax), in chunks: pixels that are right already count less."""

import torch
from torch import Tensor

from deeplab.losses.pixelwise import pixel_losses, upsampled_sum
from deeplab.losses.weighted_cross_entropy import by_label


def focal(logits: Tensor, masks: Tensor, count: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """(1 - p)^gamma (-log p), p the probability of the true class, summed over the valid pixels and divided by `count`.

    logits (N, K, h, w), masks uint8 (N, H, W) with 255 ignored, count the valid pixels of the whole batch -> scalar.
    weights (K,): alpha of the paper, a factor for the pixels of each class; it does not change the divisor.
    """
    table = None if weights is None else by_label(weights)

    def formula(scores: Tensor, labels: Tensor) -> Tensor:
        losses = pixel_losses(scores, labels)
        wrong = -torch.expm1(-losses)  # 1 - p
        wrong = wrong.clamp(min=torch.finfo(wrong.dtype).tiny)  # a power below 1 has no slope at 0
        losses = wrong**gamma * losses
        return (losses if table is None else losses * table[labels.int()]).sum()

    return upsampled_sum(logits, masks, formula) / count.clamp(min=1)
