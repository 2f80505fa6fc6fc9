"""One step of training: forward, loss, backward, SGD. The host does not wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deeplab.config import Cell, TrainConfig
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.losses import LOSSES
from deeplab.precision import autocast
from deeplab.ranks import ALONE, Ranks
from deeplab.store import IGNORE

Samples = tuple[Tensor, Tensor]  # images (N, 3, H, W) normalised, masks uint8 (N, H, W): the part of one process


def build_optimizer(network: nn.Module, train: TrainConfig) -> torch.optim.SGD:
    """SGD over every parameter with one weight decay, in one fused kernel; `set_rate` sets its learning rate."""
    return torch.optim.SGD(
        network.parameters(), lr=0.0, momentum=train.momentum, weight_decay=train.weight_decay, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    samples: Samples,
    cell: Cell,
    ranks: Ranks = ALONE,
) -> Tensor:
    """One step on the samples of this process. Returns the loss over the whole batch, a scalar on the device."""
    optimizer.zero_grad(set_to_none=True)
    loss = step_loss(network, samples, cell, ranks)
    scaler.scale(loss * ranks.world).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over the processes
    scaler.step(optimizer)
    scaler.update()
    return ranks.sum(loss.detach())


def valid_pixels(masks: Tensor) -> Tensor:
    """How many pixels of uint8 masks are not ignored, a scalar on their device."""
    return (masks != IGNORE).sum()


def step_loss(network: nn.Module, samples: Samples, cell: Cell, ranks: Ranks) -> Tensor:
    """The part of the loss of this process: over its own pixels, divided by the valid ones of the whole batch."""
    images, masks = samples
    count = ranks.sum(valid_pixels(masks))
    with autocast(cell.train.precision, images.device):
        output = network(images)
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    criterion = LOSSES[cell.train.loss]
    loss = criterion(logits, masks, count)
    for extra in auxiliary:
        loss = loss + cell.train.auxiliary_weight * criterion(extra, masks, count)
    return loss


def try_step(network: nn.Module, joined: nn.Module, samples: Samples, cell: Cell, ranks: Ranks, where: str) -> None:
    """Go forward and backward once and undo every effect, so that a setting that cannot work fails now, not in hours.

    `joined`, which is called, shares the weights of `network`. Compiling, choosing kernels and growing the memory pools
    happen here too. Raises NonFiniteError with the text `where` for a loss or gradient that is not finite.
    """
    before = [buffer.clone() for buffer in network.buffers()]  # running statistics
    loss = step_loss(joined, samples, cell, ranks)
    (loss * ranks.world).backward()  # type: ignore[no-untyped-call]
    numbers = [ranks.sum(loss.detach())]
    if cell.train.precision != "fp16":  # its gradients overflow until the scale is found
        numbers += [parameter.grad.sum() for parameter in network.parameters() if parameter.grad is not None]
    finite = bool(torch.stack(numbers).isfinite().all())
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)
    network.zero_grad(set_to_none=True)
    if not finite:
        raise NonFiniteError(where)


@contextmanager
def memory_explained(cell: Cell, device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Raise SettingsError, which says what to change, when the block runs out of memory."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        size, (height, width) = cell.recipe.batch_size // ranks.world, cell.recipe.crop
        raise SettingsError(
            f"batch_size: out of memory on {device} with {size} crops of {height}x{width} in {cell.train.precision}. "
            f"Share the batch among more GPUs (runtime.gpus_per_cell: {2 * ranks.world}), or depart from the recipe: "
            f"train.precision bf16, output_stride 16, a smaller batch_size"
        ) from None
