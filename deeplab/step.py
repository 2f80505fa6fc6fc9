"""One step of training: forward, loss, backward, SGD. The host does not wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deeplab.config import Cell, TrainConfig
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.losses import Criterion
from deeplab.precision import autocast
from deeplab.ranks import ALONE, Ranks
from deeplab.store import IGNORE

Samples = tuple[Tensor, Tensor]  # images (N, 3, H, W) normalised, masks uint8 (N, H, W): the part of one process


def build_optimizer(network: nn.Module, train: TrainConfig) -> torch.optim.SGD:
    """SGD over every parameter that is trained, with one weight decay, in one fused kernel.

    `set_rate` sets the learning rate, in each group times its `factor`. Raises SettingsError when nothing is trained.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not named:
        raise SettingsError(f"freeze: got {list(train.freeze)}, expected at least one part that is trained")
    factors = {name: train.backbone_lr if name.startswith("backbone.") else 1.0 for name, _ in named}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in named if factors[name] == factor], "factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)
    # torch makes the momentum in the first step and does not write it when fp16 skips that step.
    for _, parameter in named:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def freeze(network: nn.Module, train: TrainConfig) -> None:
    """Exclude from training what `train` freezes; `training_mode` does the rest.

    Raises SettingsError for a part that the network does not have.
    """
    for module in frozen(network, train):
        module.requires_grad_(False)


def training_mode(network: nn.Module, train: TrainConfig) -> None:
    """Put `network` into training mode, except what `train` freezes: there no running statistic moves."""
    network.train()
    for module in frozen(network, train):
        module.eval()


def frozen(network: nn.Module, train: TrainConfig) -> Iterator[nn.Module]:
    """The modules of `network` that `train` freezes."""
    parts = dict(network.named_children())
    for name in train.freeze:
        if name not in parts:
            raise SettingsError(f"freeze: got {name!r}, but with auxiliary_channels 0 the network has none")
        yield parts[name]
    if train.freeze_norm:
        yield from (module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    samples: Samples,
    cell: Cell,
    ranks: Ranks = ALONE,
    criterion: Criterion | None = None,
) -> Tensor:
    """One step on the samples of this process. Returns the loss over the whole batch, a scalar on the device.

    `criterion` is made from the settings unless they ask for class weights, which come from the data.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = step_loss(network, samples, cell, ranks, criterion)
    scaler.scale(loss * ranks.world).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over the processes
    scaler.step(optimizer)
    scaler.update()
    return ranks.sum(loss.detach())


def valid_pixels(masks: Tensor) -> Tensor:
    """How many pixels of uint8 masks are not ignored, a scalar on their device."""
    return (masks != IGNORE).sum()


def step_loss(
    network: nn.Module, samples: Samples, cell: Cell, ranks: Ranks, criterion: Criterion | None = None
) -> Tensor:
    """The part of the loss of this process: over its own pixels, divided by the valid ones of the whole batch."""
    images, masks = samples
    count = ranks.sum(valid_pixels(masks))
    with autocast(cell.train.precision, images.device):
        output = network(images)
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    criterion = criterion or Criterion(cell.train, ranks)
    loss = criterion(logits, masks, count)
    for extra in auxiliary:
        loss = loss + cell.train.auxiliary_weight * criterion(extra, masks, count)
    return loss


def try_step(
    network: nn.Module,
    joined: nn.Module,
    samples: Samples,
    cell: Cell,
    ranks: Ranks,
    where: str,
    criterion: Criterion | None = None,
) -> None:
    """Go forward and backward once and undo every effect, so that a setting that cannot work fails now, not in hours.

    `joined`, which is called, shares the weights of `network`. Compiling, choosing kernels and growing the memory pools
    happen here too. Raises NonFiniteError with the text `where` for a loss or gradient that is not finite.
    """
    before = [buffer.clone() for buffer in network.buffers()]  # running statistics
    loss = step_loss(joined, samples, cell, ranks, criterion)
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


def rehearse(
    network: nn.Module,
    joined: nn.Module,
    samples: Samples,
    cell: Cell,
    ranks: Ranks,
    where: str,
    criterion: Criterion | None = None,
) -> None:
    """`try_step`. When it does not fit into memory, half as many samples are tried and so on, in a single process.

    Raises SettingsError with the number of samples that fit.
    """
    size = len(samples[1])
    halves = [size >> halved for halved in range(1, size.bit_length() - 1)]  # down to 2 or 3: one cannot be trained on
    for count in (size, *halves):
        try:
            try_step(network, joined, (samples[0][:count], samples[1][:count]), cell, ranks, where, criterion)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if ranks.world > 1:  # the others may have had enough, and wait
                raise out_of_memory(cell, samples[1].device, ranks) from None
        else:
            if count == size:
                return
            raise out_of_memory(cell, samples[1].device, ranks, fits=count)
        network.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()  # nothing without CUDA
    raise out_of_memory(cell, samples[1].device, ranks, fits=0)


@contextmanager
def memory_explained(cell: Cell, device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Raise SettingsError, which says what to change, when the block runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(cell, device, ranks) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: in torch's allocator, or in cuDNN, cuBLAS or a compiled kernel."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def out_of_memory(cell: Cell, device: torch.device, ranks: Ranks, fits: int | None = None) -> SettingsError:
    """The error that says what to change; `fits` is the largest batch that was tried and fits."""
    size, (height, width) = cell.recipe.batch_size // ranks.world, cell.recipe.crop
    found = "" if fits is None else f" ({fits or 'not even 2'} fit)"
    return SettingsError(
        f"batch_size: out of memory on {device} with {size} crops of {height}x{width} in {cell.train.precision}"
        f"{found}. Share the batch among more GPUs (runtime.gpus_per_cell: {2 * ranks.world}), or depart from the "
        f"recipe: train.precision bf16, output_stride 16, {f'batch_size {fits}' if fits else 'a smaller batch_size'}"
    )
