"""The training loop: the recipe's schedule, exact resume, and a stop at the first number that is not one."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.random import SeedSequence
from torch import Tensor, nn

from deeplab.checkpoint import History, State, load_checkpoint, save_checkpoint
from deeplab.config import Cell, RecipeConfig, TrainConfig
from deeplab.data import Batch, TrainingSamples, network_input, steps_per_epoch, training_loader
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.loss import LOSSES
from deeplab.precision import autocast
from deeplab.store import Split

HISTORY = ("step", "epoch", "train/loss", "train/lr", "val/mIoU")
DROPOUT = 2  # purpose of a random stream, beside ORDER and AUGMENT of deeplab.data


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a run is logged, saved and interrupted; nothing here can move a number."""

    workers: int
    log_every: int  # steps
    checkpoint_every: float  # seconds
    validate_every: int  # epochs; 0 is never


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is reported after each `log_every` steps."""

    step: int  # done so far
    steps: int  # in all
    epoch: int
    loss: float  # mean since the last report
    lr: float
    images_per_second: float
    miou: float | None  # of the validation that followed this step, if one did


def fit(
    network: nn.Module,
    split: Split,
    cell: Cell,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    pace: Pace,
    report: Callable[[Progress], None],
    stop: Callable[[], bool] = lambda: False,
    validate: Callable[[nn.Module], float] | None = None,
) -> bool:
    """Train `network` in place for the whole of the cell's schedule, going on from the newest checkpoint in `folder`.

    Writes `folder`/history.csv. Returns False when `stop` asked to end early; the state is saved then. Raises
    NonFiniteError naming step, learning rate and samples when the loss is NaN or infinite: the last good checkpoint
    stays. Raises SettingsError when the split is smaller than a batch.
    """
    steps = total_steps(len(split), cell.recipe)
    if cell.train.loss not in LOSSES:
        raise SettingsError(f"train.loss: got {cell.train.loss!r}, expected one of {', '.join(LOSSES)}")
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=cell.recipe.lr, momentum=cell.train.momentum, weight_decay=cell.train.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=cell.train.precision == "fp16")
    start, pending, length = restore(load_checkpoint(folder), network, optimizer, scaler)
    history = History(folder / "history.csv", HISTORY, length)
    per_epoch = steps_per_epoch(len(split), cell.recipe.batch_size)
    samples = TrainingSamples(split, cell.recipe, cell.augment, seed)
    losses = Losses(pending)
    clock = Clock(start, cell.recipe.batch_size)

    def save(step: int) -> None:
        losses.check()
        save_checkpoint(folder, step, snapshot(network, optimizer, scaler, step, losses.values, history.length))
        clock.saved()

    loader = training_loader(samples, start, steps, pace.workers, pin=device.type == "cuda")
    for step, batch in enumerate(loader, start=start):
        lr = poly_lr(step, steps, cell.recipe, cell.train)
        torch.manual_seed(int(SeedSequence((seed, DROPOUT, step)).generate_state(1)[0]))
        loss = train_step(network, optimizer, scaler, batch, cell, lr, device)
        losses.add(loss, step, lr, batch.samples, wait=device.type == "cuda")
        done = step + 1
        epoch_ends = done % per_epoch == 0
        validating = validate and pace.validate_every and epoch_ends and (done // per_epoch) % pace.validate_every == 0
        if done % pace.log_every == 0 or done == steps or validating:
            mean = losses.mean()
            miou = None
            if validate and validating:
                miou = validate(network)
                network.train()
            epoch = step // per_epoch
            history.append((done, epoch, f"{mean:.6f}", f"{lr:.8f}", None if miou is None else f"{miou:.6f}"))
            speed = clock.images_per_second(done)
            report(Progress(step=done, steps=steps, epoch=epoch, loss=mean, lr=lr, images_per_second=speed, miou=miou))
        if done < steps and stop():
            save(done)
            return False
        if done == steps or clock.since_save() >= pace.checkpoint_every:
            save(done)
    return True


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Batch,
    cell: Cell,
    lr: float,
    device: torch.device,
) -> Tensor:
    """One step of SGD on one batch; returns the loss, a scalar on `device` that nobody has waited for."""
    images, masks = network_input(batch, cell.model, device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    with autocast(cell.train.precision, device):
        output = network(images)
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    criterion = LOSSES[cell.train.loss]
    loss = criterion(logits, masks)
    for extra in auxiliary:
        loss = loss + cell.train.auxiliary_weight * criterion(extra, masks)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def total_steps(count: int, recipe: RecipeConfig) -> int:
    """K = epochs x floor(images / batch), the length of the schedule."""
    if count < recipe.batch_size:
        raise SettingsError(
            f"batch_size: got {recipe.batch_size}, but {recipe.train_split!r} has only {count} images; "
            f"expected at most as many"
        )
    return recipe.epochs * steps_per_epoch(count, recipe.batch_size)


def poly_lr(step: int, steps: int, recipe: RecipeConfig, train: TrainConfig) -> float:
    """The learning rate of a step in [0, steps): from lr to min_lr by the poly policy (DeepLabv3, section 4.1)."""
    decay: float = (1 - step / steps) ** train.poly_power
    return (recipe.lr - train.min_lr) * decay + train.min_lr


def snapshot(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    pending: list[float],
    history_length: int,
) -> State:
    """All that the rest of the run depends on. There is no random state: each step seeds its own."""
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "step": step,
        "pending": pending,
        "history_length": history_length,
    }


def restore(
    state: State | None, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[int, list[float], int]:
    """Put `state` back; returns the next step, the losses not yet reported, and the history's length in bytes."""
    if state is None:
        return 0, [], 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return state["step"], state["pending"], state["history_length"]


class Losses:
    """The losses since the last report. On a GPU they are read together, so that no step waits for the one before."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.waiting: list[tuple[Tensor, int, float, Tensor]] = []

    def add(self, loss: Tensor, step: int, lr: float, indices: Tensor, wait: bool) -> None:
        """Take a step's loss; without `wait` it is read and checked at once."""
        self.waiting.append((loss, step, lr, indices))
        if not wait:
            self.check()

    def check(self) -> None:
        """Read the waiting losses; raises NonFiniteError at the first that is not finite."""
        values = torch.stack([loss for loss, *_ in self.waiting]).tolist() if self.waiting else []
        for value, (_, step, lr, indices) in zip(values, self.waiting, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the loss is {value} at step {step} (lr {lr:.6f}, samples {indices.tolist()}). The last good "
                    f"checkpoint is kept. Lower lr or look at these samples; with fp16 try bf16."
                )
            self.values.append(value)
        self.waiting.clear()

    def mean(self) -> float:
        """The mean since the last call; starts the next interval."""
        self.check()
        values, self.values = self.values, []
        return sum(values) / len(values)


class Clock:
    """Images per second between reports, and the time since the last checkpoint."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.step, self.batch_size = step, batch_size
        self.reported = self.save_time = time.monotonic()

    def images_per_second(self, step: int) -> float:
        """Since the last call."""
        now = time.monotonic()
        speed = (step - self.step) * self.batch_size / max(now - self.reported, 1e-9)
        self.step, self.reported = step, now
        return speed

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self.save_time = time.monotonic()

    def since_save(self) -> float:
        """Seconds."""
        return time.monotonic() - self.save_time
