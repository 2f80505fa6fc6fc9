"""DeepLabv3 (Chen et al. 2017, arXiv 1706.05587)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.backbone import build_backbone
from deeplab.config import ModelConfig


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (DeepLabv3, section 3.3).

    (N, C, h, w) -> (N, D, h, w), where h = H / output_stride.
    """

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...], projection_kernel: int = 1) -> None:
        super().__init__()
        self.point = conv_bn_relu(in_channels, channels, kernel=1)
        self.atrous = nn.ModuleList(conv_bn_relu(in_channels, channels, kernel=3, rate=rate) for rate in rates)
        self.image = conv_bn_relu(in_channels, channels, kernel=1)
        self.project = conv_bn_relu((len(rates) + 2) * channels, channels, kernel=projection_kernel)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))  # also if autocast
        image = self.image(mean)  # (N, D, 1, 1)
        image = image.expand(-1, -1, *x.shape[2:])  # equals bilinear resizing from 1x1
        image = image.contiguous(memory_format=torch.channels_last)  # else `cat` takes the layout of its strides of 0
        branches = [self.point(x), *(conv(x) for conv in self.atrous), image]
        fused: Tensor = self.project(torch.cat(branches, dim=1))
        return fused


class AuxiliaryHead(nn.Sequential):
    """A small fully convolutional head on layer3, used only in training.

    (N, C, h, w) -> (N, K, h, w).
    """

    def __init__(self, in_channels: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__(
            conv_bn_relu(in_channels, channels, kernel=3), nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1)
        )


class DeepLabV3(nn.Module):
    """DeepLabv3 for K classes.

    Evaluating: (N, 3, H, W) normalised RGB -> logits (N, K, h, w), where h = ceil(H / output_stride).
    Training: the same and, when there is an auxiliary head, its logits (N, K, h', w').
    """

    def __init__(self, config: ModelConfig, classes: int, weights: Path | None = None) -> None:
        super().__init__()
        self.backbone, (low, high) = build_backbone(config, weights)
        rates = tuple(rate * 16 // config.output_stride for rate in config.aspp_rates)  # section 4.2.3: doubled at 8
        self.aspp = ASPP(high, config.aspp_channels, rates, config.projection_kernel)
        width = config.aspp_channels
        self.head = conv_bn_relu(width, width, kernel=3) if config.head_convolution else nn.Identity()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, classes, 1)
        channels = config.auxiliary_channels
        self.auxiliary = AuxiliaryHead(low, channels, classes, config.dropout) if channels else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle, last = self.backbone(images)
        logits: Tensor = self.classifier(self.dropout(self.head(self.aspp(last))))
        if self.training and self.auxiliary is not None:
            return logits, self.auxiliary(middle)
        return logits


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, rate: int = 1) -> nn.Sequential:
    """(N, C, h, w) -> (N, D, h, w): convolution without bias, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def upsample(logits: Tensor, height: int, width: int) -> Tensor:
    """(N, K, h, w) -> (N, K, H, W), bilinearly, corners not aligned."""
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
