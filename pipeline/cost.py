"""What a cell costs besides time: operations of one forward pass, and memory."""

import copy
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
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


def peak_memory(device: "torch.device") -> int:
    """The most bytes that tensors took on a GPU so far; on the CPU the most that the whole process took."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
