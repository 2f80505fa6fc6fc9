"""Dice loss (Milletari et al., 2016, with plain sums in the denominator), in chunks: each class counts the same."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab.losses.pixelwise import upsampled_parts, upsampled_sum
from deeplab.ranks import Ranks
from deeplab.store import IGNORE


def dice(logits: Tensor, masks: Tensor, *, ranks: Ranks, weights: Tensor | None = None) -> Tensor:
    """1 - 2 sum(p g) / (sum(p) + sum(g)), averaged over the classes that occur in the batch.

    p are the probabilities of a class and g its pixels, 0 or 1. The sums are over the valid pixels of the whole batch,
    of all processes; the values of the processes add up to that of one. logits (N, K, h, w), masks uint8 (N, H, W) with
    255 ignored, weights (K,) for a weighted average, or None -> scalar.

    The gradient of a pixel depends on the sums, so that the chunks are gone over twice.
    """
    sums = torch.stack(list(upsampled_parts(logits, masks, class_sums))).sum(0)  # (3, K)
    both, predicted, true = ranks.sum(sums)
    share = (true > 0).double() * (1.0 if weights is None else weights.double())
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    total = predicted + true
    value = (share * (1 - 2 * both / total.clamp(min=1e-12))).sum() / ranks.world
    # The slope of the loss over each sum; the sums of a process then stand for its own pixels.
    slopes = torch.stack([-2 * share / total.clamp(min=1e-12), 2 * share * both / total.clamp(min=1e-12) ** 2])
    near = (slopes * sums[:2]).sum()

    def formula(scores: Tensor, labels: Tensor) -> Tensor:
        linear: Tensor = (slopes * class_sums(scores, labels)[:2]).sum()
        return linear

    loss = upsampled_sum(logits, masks, formula)
    rest: Tensor = value - near
    return loss + rest.to(loss.dtype)


def class_sums(scores: Tensor, masks: Tensor) -> Tensor:
    """sum(p g), sum(p) and sum(g) of each class: (..., K) and uint8 (...) -> (3, K) in fp64."""
    classes = torch.arange(scores.shape[-1], device=masks.device)
    probabilities = F.softmax(scores, dim=-1) * (masks != IGNORE)[..., None]
    true = masks[..., None] == classes
    parts = (probabilities * true, probabilities, true)
    return torch.stack([part.flatten(0, -2).sum(0).double() for part in parts])
