"""What training minimises."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from deeplab.model import upsample
from deeplab.store import IGNORE

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy over the valid pixels of a batch, at the resolution of the masks.

    logits (N, K, h, w), masks uint8 (N, H, W) with 255 ignored -> scalar. A batch without a valid pixel gives 0 where
    the plain mean gives NaN.
    """
    labels = masks.long()
    full = upsample(logits.float(), *masks.shape[-2:])  # in fp32 also under autocast: a log-sum-exp over K classes
    total = F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
