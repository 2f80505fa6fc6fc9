"""A network as it leaves the project: from raw pixels to logits at their size."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deeplab.model import upsample

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter


class Deployable(nn.Module):
    """(N, 3, H, W) float32 RGB in 0..255 -> logits (N, K, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: "Segmenter") -> None:
        super().__init__()
        self.network = model.network
        self.register_buffer("mean", torch.tensor(model.settings.model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.settings.model.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network((images - self.mean) / self.std)
        return upsample(logits, images.shape[-2], images.shape[-1])
