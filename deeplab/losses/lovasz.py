"""Lovász-softmax (Berman et al., 2018): a surrogate of the IoU itself, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab.losses.pixelwise import upsampled_sum
from deeplab.ranks import Ranks
from deeplab.store import IGNORE


def lovasz(logits: Tensor, masks: Tensor, *, ranks: Ranks, weights: Tensor | None = None) -> Tensor:
    """The Lovász extension of 1 - IoU, averaged over the classes that occur in an image, then over the images.

    It is `per_image=True` of the authors' code, because the pixels have to be sorted: those of a batch are spread over
    several processes, so that the number of GPUs would move a number. An image without a valid pixel counts as 0.
    logits (N, K, h, w), masks uint8 (N, H, W) with 255 ignored, weights (K,) for a weighted average over the classes,
    or None -> scalar.

    It holds the upsampled logits of one image and what autograd needs of them: 1/N of the plain form's memory. It waits
    for the device once per image, to learn which classes occur.
    """

    def formula(scores: Tensor, labels: Tensor) -> Tensor:
        return of_image(scores.flatten(0, -2), labels.flatten(), weights)

    return upsampled_sum(logits, masks, formula, whole_images=True) / (len(masks) * ranks.world)


def of_image(scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The loss of one image, (P, K) and uint8 (P,) -> scalar."""
    valid = labels != IGNORE
    probabilities = F.softmax(scores, dim=-1)
    total, shares = scores.new_zeros(()) * scores.sum(), scores.new_zeros(())
    for label in labels.unique().tolist():  # type: ignore[no-untyped-call]
        if label != IGNORE:
            true = labels == label
            errors = (true.to(scores.dtype) - probabilities[:, label]).abs().where(valid, 0)
            share = 1.0 if weights is None else weights[label]
            total = total + share * (errors * slopes(errors.detach(), true, valid)).sum()
            shares = shares + share
    return total / shares.clamp(min=torch.finfo(scores.dtype).tiny)


def slopes(errors: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """The gradient of the Lovász extension at `errors` (algorithm 1 of the paper), in the order of the pixels."""
    order = errors.argsort(descending=True)
    found, others = true[order].cumsum(0), (valid & ~true)[order].cumsum(0)  # integers: sums of floats differ on a GPU
    losses = 1 - (found[-1] - found) / (found[-1] + others).to(errors.dtype)
    steps = losses.diff(prepend=losses.new_zeros(1))
    return torch.empty_like(steps).scatter_(0, order, steps)
