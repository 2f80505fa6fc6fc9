"""What training minimizes: one file per loss. A loss takes logits, masks and the number of valid pixels."""

from collections.abc import Callable

from torch import Tensor

from deeplab.losses.cross_entropy import cross_entropy

# (logits (N, K, h, w), masks uint8 (N, H, W), valid pixels of the whole batch) -> scalar
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
