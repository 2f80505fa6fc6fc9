"""The training loop: the recipe's schedule, exact resume, and a stop at the first number that is not one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.random import SeedSequence
from torch import nn

from deeplab.checkpoint import History, State, load_checkpoint, save_checkpoint
from deeplab.config import Cell, RecipeConfig, TrainConfig
from deeplab.data import StepKeys, TrainingSamples, network_input, steps_per_epoch, training_loader
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.loss import LOSSES
from deeplab.monitor import Clock, Losses, not_finite, peak_memory
from deeplab.ranks import ALONE, Ranks
from deeplab.step import build_optimizer, memory_explained, train_step, try_step
from deeplab.store import Split

HISTORY = ("step", "epoch", "train/loss", "train/lr", "val/mIoU", "train/spikes")
DROPOUT = 2  # purpose of a random stream, beside ORDER and AUGMENT of deeplab.data
PLAN_AFTER = 20  # steps


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What lies ahead, measured over the first PLAN_AFTER steps of this process."""

    step: int  # done so far
    steps: int  # in all
    images_per_second: float
    seconds_left: float
    waiting: float  # share of the time in which the step waited for its samples
    peak_memory: int  # bytes


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
    plan: Callable[[Plan], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    validate: Callable[[nn.Module], float] | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Train `network` in place for the whole of the cell's schedule, going on from the newest checkpoint in `folder`.

    Before the first step one is tried whose effects are undone. Writes `folder`/history.csv. Returns False when `stop`
    asked to end early; the state is saved then. Raises NonFiniteError naming step, learning rate and samples when the
    loss, or a weight that is to be saved, is NaN or infinite: the last good checkpoint stays. Raises SettingsError when
    the split is smaller than a batch, the batch does not divide among `ranks`, or a step does not fit into memory.
    """
    steps = total_steps(len(split), cell.recipe)
    if cell.train.loss not in LOSSES:
        raise SettingsError(f"train.loss: got {cell.train.loss!r}, expected one of {', '.join(LOSSES)}")
    part = ranks.part(cell.recipe.batch_size, device)
    on_gpu = device.type == "cuda"
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, cell.train)
    scaler = torch.amp.GradScaler(device.type, enabled=cell.train.precision == "fp16")
    state = load_together(folder, ranks)
    start = restore(state, network, optimizer, scaler)
    joined = ranks.join(network, device)
    if cell.train.compile:
        joined = torch.compile(joined)  # type: ignore[assignment]
    history = History(folder / "history.csv", HISTORY, state["history_length"] if state else 0) if ranks.first else None
    per_epoch = steps_per_epoch(len(split), cell.recipe.batch_size)

    def name_samples(step: int) -> str:
        (keys,) = StepKeys(len(split), cell.recipe.batch_size, seed, step, step + 1)
        return ", ".join(split.records[index].id for _, index in keys)

    losses = Losses(name_samples, state and state["losses"])
    clock = Clock(start, cell.recipe.batch_size)

    def save(step: int, lr: float) -> None:
        losses.check()
        if not all_finite(network):
            raise NonFiniteError(
                not_finite("the loss was finite, a weight is not", step - 1, lr, name_samples(step - 1))
            )
        if history:
            save_checkpoint(folder, step, snapshot(network, optimizer, scaler, step, losses, history))
        clock.saved()

    samples = TrainingSamples(split, cell.recipe, cell.augment, seed)
    loader = training_loader(samples, start, steps, pace.workers, pin=on_gpu, part=part)
    with memory_explained(cell, device, ranks):
        for step, batch in enumerate(clock.waiting_for(loader), start=start):
            images, masks = network_input(batch, cell.model, device)
            lr = poly_lr(step, steps, cell.recipe, cell.train)
            if step == start:
                where = not_finite("loss or gradient is NaN or infinite when tried", step, lr, name_samples(step))
                try_step(network, joined, images, masks, cell, ranks, where)
                clock.start(step)
            torch.manual_seed(int(SeedSequence((seed, DROPOUT, step, ranks.rank)).generate_state(1)[0]))
            losses.add(train_step(joined, optimizer, scaler, images, masks, cell, lr, ranks), step, lr, wait=on_gpu)
            done = step + 1
            if done == min(start + PLAN_AFTER, steps):
                losses.check()  # a GPU may still be at work
                speed = clock.mean_speed(done)
                plan(
                    Plan(
                        step=done,
                        steps=steps,
                        images_per_second=speed,
                        seconds_left=(steps - done) * cell.recipe.batch_size / speed,
                        waiting=clock.waited_share(),
                        peak_memory=peak_memory(device),
                    )
                )
            epoch_ends = done % per_epoch == 0
            due = pace.validate_every and epoch_ends and (done // per_epoch) % pace.validate_every == 0
            if done % pace.log_every == 0 or done == steps or (validate and due):
                mean, spikes = losses.take()
                miou = None
                if validate and due:
                    miou = validate(network)
                    network.train()
                epoch = step // per_epoch
                if history:
                    score = None if miou is None else f"{miou:.6f}"
                    history.append((done, epoch, f"{mean:.6f}", f"{lr:.8f}", score, spikes))
                speed = clock.images_per_second(done)
                report(
                    Progress(step=done, steps=steps, epoch=epoch, loss=mean, lr=lr, images_per_second=speed, miou=miou)
                )
            stopping, saving = ranks.any(stop(), clock.since_save() >= pace.checkpoint_every)
            if done == steps or saving or stopping:
                save(done, lr)
            if stopping and done < steps:
                ranks.agree(None)  # none ends, and has the others ended, before the state is saved
                return False
    return True


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


def load_together(folder: Path, ranks: Ranks) -> State | None:
    """The newest checkpoint, the same one in all processes; the first looks alone, for it sets damaged ones aside.

    Raises SettingsError when this process does not see the folder of the first one.
    """
    state = load_checkpoint(folder) if ranks.first else None
    step = ranks.agree(state["step"] if state else 0)
    if not ranks.first:
        state = load_checkpoint(folder)
        if (state["step"] if state else 0) != step:
            raise SettingsError(
                f"{folder}: the first process goes on from step {step} there. Share it among the hosts."
            )
    return state


def snapshot(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    losses: Losses,
    history: History,
) -> State:
    """All that the rest of the run depends on. There is no random state: each step seeds its own."""
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "step": step,
        "losses": losses.state(),
        "history_length": history.sync(),
    }


def restore(
    state: State | None, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> int:
    """Put `state` back; returns the next step."""
    if state is None:
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    step: int = state["step"]
    return step


def all_finite(network: nn.Module) -> bool:
    """Whether no weight or running statistic is NaN or infinite: their sums would be, and are quick to make."""
    return bool(torch.stack([value.sum().float() for value in network.state_dict().values()]).isfinite().all())
