"""Online hard example mining: cross-entropy of the pixels that the network finds hard (Shrivastava et al., 2016).

As BiSeNet uses it for segmentation (Yu et al., 2018): a threshold on the loss, and at least a share of the pixels.
"""

import math

import torch
from torch import Tensor

from deeplab.losses.cross_entropy import cross_entropy
from deeplab.losses.pixelwise import pixel_losses, upsampled_parts
from deeplab.losses.weighted_cross_entropy import weighted_cross_entropy
from deeplab.ranks import Ranks
from deeplab.store import IGNORE


def ohem(
    logits: Tensor,
    masks: Tensor,
    count: Tensor,
    *,
    threshold: float,
    min_share: float,
    ranks: Ranks,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean cross-entropy of the pixels whose true class has a probability below `threshold`.

    When these are less than `min_share` of the valid pixels, that share is taken, the pixels with the largest losses;
    pixels as hard as the last of them are taken too. Both are decided over the whole batch, exactly and for
    any number of processes. logits (N, K, h, w), masks uint8 (N, H, W) with 255 ignored, count the valid pixels of the
    whole batch, weights (K,) or None -> scalar.

    Beside a chunk it holds the loss of each pixel and their sorted form: about 20 bytes for each pixel, where one
    tensor of upsampled logits has 4 K.
    """
    losses = torch.cat([part.flatten() for part in upsampled_parts(logits, masks, pixel_losses)])
    losses = losses.float().abs().masked_fill_((masks == IGNORE).flatten(), -1.0)
    fewest = (count.double() * min_share).long().clamp(min=1)
    least, infinite = losses.new_full((), -math.log(threshold)), losses.new_full((), math.inf)
    limit = torch.minimum(least.nextafter(infinite), kth_largest(losses, fewest, ranks))
    hard = (losses >= limit).view(masks.shape)
    masks = masks.where(hard, IGNORE)
    if weights is not None:
        return weighted_cross_entropy(logits, masks, weights, ranks)
    return cross_entropy(logits, masks, ranks.sum(hard.sum()))


def kth_largest(values: Tensor, k: Tensor, ranks: Ranks) -> Tensor:
    """The k-th largest of the non-negative fp32 `values` of all processes, (P,) -> scalar; 0 when there are fewer.

    Negative values are left out. The bits of such numbers have their order, so 15 and then 16 bits are found by
    counting, without a message for each pixel and without waiting for the device.
    """
    ordered = values.view(torch.int32).sort().values
    found = torch.zeros((), dtype=torch.int32, device=values.device)
    for bits, shift in ((15, 16), (16, 0)):
        edges = found + (torch.arange(2**bits, dtype=torch.int32, device=values.device) << shift)
        reached = ranks.sum(len(ordered) - torch.searchsorted(ordered, edges))  # how many are at least this large
        found = found + (((reached >= k).sum() - 1).clamp(min=0).int() << shift)
    return found.view(torch.float32)
