"""Cross-entropy with a weight for each class, in chunks: the loss `cross_entropy` with `class_weights`."""

import torch
from torch import Tensor

from deeplab.losses.pixelwise import pixel_losses, upsampled_sum
from deeplab.ranks import Ranks


def weighted_cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None, ranks: Ranks) -> Tensor:
    """Cross-entropy of each valid pixel times the weight of its class, divided by the sum of these weights.

    logits (N, K, h, w), masks uint8 (N, H, W), weights (K,) -> scalar. The sum of the weights is over the pixels of all
    processes, so that the values of the processes add up to that of one. Equal to `F.cross_entropy(weight=...)`.
    """
    assert weights is not None  # `Criterion` has checked it
    table = by_label(weights)

    def formula(scores: Tensor, labels: Tensor) -> Tensor:
        return (pixel_losses(scores, labels) * table[labels.int()]).sum()

    total = upsampled_sum(logits, masks, formula)
    weight = torch.stack([table[mask.int()].sum() for mask in masks]).sum()
    return total / ranks.sum(weight).clamp(min=torch.finfo(weights.dtype).tiny)  # without a valid pixel 0, not NaN


def by_label(weights: Tensor) -> Tensor:
    """A weight for each value of a mask, (K,) -> (256,): 0 for ignored pixels."""
    return torch.cat([weights, weights.new_zeros(256 - len(weights))])
