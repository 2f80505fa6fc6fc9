"""What a cell costs besides time and memory: the operations of one forward pass."""

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def forward_flops(network: "nn.Module", size: tuple[int, int]) -> int:
    """Floating-point operations of `network` on one image of `size` (height, width): two for each multiply-add.

    Counted by torch on a copy without numbers, as at inference: nothing is computed, no random number is drawn.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())
