"""One training step as work to be timed: this project's, and the plain one of a tutorial with torchvision's network."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeplab.config import Cell
from deeplab.model import DeepLabV3
from deeplab.precision import autocast
from deeplab.step import build_optimizer, set_rate, train_step
from pipeline.training.device import choose_kernels_by_time, set_arithmetic

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19}  # of the real data sets, which need not be at hand


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step on one batch that stays the same."""

    run: Callable[[], Any]  # returns the loss
    flops: int  # of the network, forward and backward; two for a multiplication with its addition
    batch: int
    parameters: int
    network: nn.Module


def in_precision(cell: Cell, precision: str) -> Cell:
    """The cell in one of PRECISIONS."""
    tf32 = precision == "tf32"
    return replace(cell, train=replace(cell.train, precision="fp32" if tf32 else precision, tf32=tf32))


def our_step(cell: Cell, classes: int, device: torch.device, network: nn.Module | None = None) -> Step:
    """As the train stage does it, with random weights; `network` may be another one."""
    set_arithmetic(cell.train)
    choose_kernels_by_time(cell.train)
    torch.manual_seed(0)
    network = network or DeepLabV3(replace(cell.model, pretrained=False), classes)
    parameters, flops = count(network, cell)
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, cell.train)
    set_rate(optimizer, 0.01)
    scaler = torch.amp.GradScaler(device.type, enabled=cell.train.precision == "fp16")
    images, masks = batch(cell, classes, device)
    images = images.contiguous(memory_format=torch.channels_last)
    joined: Any = torch.compile(network) if cell.train.compile else network

    def run() -> Tensor:
        return train_step(joined, optimizer, scaler, (images, masks), cell)

    return Step(run=run, flops=flops, batch=len(masks), parameters=parameters, network=network)


def plain_step(cell: Cell, classes: int, device: torch.device, network: nn.Module) -> Step:
    """As a tutorial does it; `network`, torchvision's, interpolates its logits itself."""
    set_arithmetic(cell.train)
    choose_kernels_by_time(cell.train)
    parameters, flops = count(network, cell)
    network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, masks = batch(cell, classes, device)
    labels = masks.long()

    def run() -> Tensor:
        with autocast(cell.train.precision, device):
            output = network(images)
            loss = F.cross_entropy(output["out"], labels, ignore_index=255)
            loss = loss + 0.4 * F.cross_entropy(output["aux"], labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Step(run=run, flops=flops, batch=len(masks), parameters=parameters, network=network)


def batch(cell: Cell, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise as images (N, 3, H, W) and as masks (N, H, W), of which the first rows are ignored."""
    torch.manual_seed(0)
    shape = (cell.recipe.batch_size, *cell.recipe.crop)
    images = torch.randn(shape[0], 3, *shape[1:], device=device)
    masks = torch.randint(0, classes, shape, dtype=torch.uint8, device=device)
    masks[:, :8] = 255
    return images, masks


def count(network: nn.Module, cell: Cell) -> tuple[int, int]:
    """Parameters, and FLOPs of a step without its loss. Nothing is computed."""
    shapes = copy.deepcopy(network).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        output = shapes(torch.empty(cell.recipe.batch_size, 3, *cell.recipe.crop, device="meta"))
        outputs = output.values() if isinstance(output, dict) else output
        torch.stack([each.mean() for each in outputs]).sum().backward()
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops()
