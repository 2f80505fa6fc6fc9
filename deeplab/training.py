"""The training loop: the schedule of the recipe, exact resume, and a stop at the first number that is not finite."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from numpy.random import SeedSequence
from torch import nn

from deeplab.augmentations import AUGMENTATIONS
from deeplab.checkpoint import History, State, load_checkpoint, save_checkpoint
from deeplab.config import RecipeConfig, TrainConfig
from deeplab.data import Batch, StepKeys, TrainingSamples, network_input, steps_per_epoch, training_loader
from deeplab.errors import NonFiniteError, SettingsError
from deeplab.job import Job, Plan, Progress, Watch
from deeplab.losses import Criterion
from deeplab.monitor import Clock, Losses, forget_peak, not_finite, peak_memory
from deeplab.ranks import Ranks
from deeplab.selection import Outcome, Selection
from deeplab.spots import Spots, planned
from deeplab.step import build_optimizer, freeze, memory_explained, rehearse, set_rate, train_step, training_mode

HISTORY = ("step", "epoch", "train/loss", "train/lr", "val/mIoU", "train/spikes")
DROPOUT = 2  # purpose of a random stream, beside ORDER and AUGMENT in deeplab/data.py
PLAN_AFTER = 20  # steps that are measured before the duration is estimated


def fit(job: Job, watch: Watch) -> bool:
    """Train for the whole schedule of the cell, starting from the newest checkpoint in the folder of the job.

    Returns False when `watch.stop` ended the run early, after a checkpoint. Raises NonFiniteError with step, learning
    rate and samples when the loss, or a weight that is to be saved, is NaN or infinite; the last good checkpoint stays.
    Raises SettingsError when the split is smaller than a batch, the batch does not divide among the ranks, the loss is
    unknown, or a step does not fit into memory.
    """
    run = Run(job)
    with memory_explained(job.cell, job.device, job.ranks):
        run.spots.keep(run.start, run.state)
        for step, batch in run.batches():
            run.train(step, batch)
            done = step + 1
            if run.is_measured(done):
                watch.plan(run.plan(done))
            if run.is_report_due(done, watch):
                watch.report(run.report(done, watch))
            run.spots.keep(done, run.state)  # before a checkpoint, from which it would not be made again
            stopping, saving = job.ranks.any(watch.stop(), run.is_checkpoint_due())
            over = run.is_over(done)
            if stopping or saving or over:
                run.save(done)
            if stopping and not over:
                job.ranks.agree(None)  # no process ends, and ends the others, before the state is saved
                return False
            if over:
                break
    watch.end(run.finish())
    return True


class Run:
    """A training in progress: everything that a checkpoint holds, and the clock.

    There is no random state to save: each step seeds its own.
    """

    def __init__(self, job: Job) -> None:
        """Put the network on its device and restore the newest checkpoint."""
        cell, ranks = job.cell, job.ranks
        self.job = job
        self.steps = total_steps(len(job.split), cell.recipe)
        self.per_epoch = steps_per_epoch(len(job.split), cell.recipe.batch_size)
        for name in cell.augment.transforms:
            require_known("augment.transforms", name, AUGMENTATIONS)
        if cell.train.compile and ranks.world > 1:
            raise SettingsError(
                "compile: got true with runtime.gpus_per_cell above 1, expected one of the two: torch.compile breaks "
                "at each batch normalisation that is synchronised, and has failed there. Set train.compile: false"
            )
        self.part = ranks.part(cell.recipe.batch_size, job.device)
        weights = torch.tensor(job.weights, device=job.device) if job.weights else None
        self.criterion = Criterion(cell.train, ranks, weights)
        self.network = job.network.to(job.device).to(memory_format=torch.channels_last)
        freeze(self.network, cell.train)
        training_mode(self.network, cell.train)
        self.optimizer = build_optimizer(self.network, cell.train)
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=cell.train.precision == "fp16")
        state = load_together(job.folder, ranks)
        if state:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        self.start: int = state["step"] if state else 0
        self.done = self.start  # at the last checkpoint
        self.selection = Selection(self.network, cell.train, state and state["selection"])
        self.joined = ranks.join(self.network, job.device)  # shares the weights of `network`
        if cell.train.compile:
            self.joined = torch.compile(self.joined)  # type: ignore[assignment]
        length = state["history_length"] if state else 0
        self.history = History(job.folder / "history.csv", HISTORY, length) if ranks.first else None
        self.losses = Losses(self.name_samples, state and state["losses"])
        self.spots = Spots(job.folder / "spots", planned(self.steps, job.pace.spots) if ranks.first else [])
        self.clock = Clock(self.start, cell.recipe.batch_size)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Each step that is left, and its samples."""
        job = self.job
        samples = TrainingSamples(job.split, job.cell.recipe, job.cell.augment, job.seed)
        pin = job.device.type == "cuda"
        start, stop, waiting = self.start, self.start if self.selection.is_over else self.steps, self.clock.waiting
        loader = training_loader(samples, start, stop, job.pace.workers, pin=pin, part=self.part, waiting=waiting)
        return enumerate(loader, start=start)

    def train(self, step: int, batch: Batch) -> None:
        """One step; before the first one, a rehearsal that leaves no trace."""
        job, lr = self.job, self.lr(step)
        samples = network_input(batch, job.cell, job.device)
        if step == self.start:
            where = not_finite("loss or gradient is NaN or infinite when tried", step, lr, self.name_samples(step))
            rehearse(self.network, self.joined, samples, job.cell, job.ranks, where, self.criterion)
            forget_peak(job.device)  # choosing kernels takes more memory than a step
            self.clock.start(step)
        torch.manual_seed(int(SeedSequence((job.seed, DROPOUT, step, job.ranks.rank)).generate_state(1)[0]))
        set_rate(self.optimizer, lr)
        loss = train_step(self.joined, self.optimizer, self.scaler, samples, job.cell, job.ranks, self.criterion)
        self.selection.update(step + 1)
        self.losses.add(loss, step, lr, wait=job.device.type == "cuda")

    def is_measured(self, done: int) -> bool:
        """Whether `plan` knows the speed after `done` steps."""
        return done == min(self.start + PLAN_AFTER, self.steps)

    def plan(self, done: int) -> Plan:
        """How long the rest takes."""
        self.losses.check()  # a GPU may still be computing
        speed = self.clock.mean_speed(done)
        return Plan(
            step=done,
            steps=self.steps,
            images_per_second=speed,
            seconds_left=(self.steps - done) * self.job.cell.recipe.batch_size / speed,
            waiting=self.clock.waited_share(),
            peak_memory=peak_memory(self.job.device),
        )

    def is_over(self, done: int) -> bool:
        """Whether the training ends after `done` steps."""
        return done == self.steps or self.selection.is_over

    def is_choice_due(self, done: int) -> bool:
        """Whether a validation after `done` steps decides which weights are kept, or when the training ends."""
        every = self.per_epoch * self.job.cell.train.validate_every
        return self.job.cell.train.validates and (done % every == 0 or done == self.steps)

    def is_validation_due(self, done: int, watch: Watch) -> bool:
        """Whether the network is validated after `done` steps."""
        every = self.per_epoch * self.job.pace.validate_every
        watched = watch.validate is not None and every > 0 and done % every == 0
        return watched or self.is_choice_due(done)

    def is_report_due(self, done: int, watch: Watch) -> bool:
        """Whether a row of the history follows `done` steps."""
        last = done == self.steps
        return done % self.job.pace.log_every == 0 or last or self.is_validation_due(done, watch)

    def report(self, done: int, watch: Watch) -> Progress:
        """Validate if it is due, and write a row of the history."""
        epoch, lr = (done - 1) // self.per_epoch, self.lr(done - 1)
        loss, spikes = self.losses.take()
        miou = None
        if self.is_validation_due(done, watch):
            assert watch.validate
            with self.selection.averaged() as network:
                miou = watch.validate(network)
                if self.is_choice_due(done):
                    self.selection.note(done, miou)
            training_mode(self.network, self.job.cell.train)
        if self.history:
            score = None if miou is None else f"{miou:.6f}"
            self.history.append((done, epoch, f"{loss:.6f}", f"{lr:.8f}", score, spikes))
        speed = self.clock.images_per_second(done)
        return Progress(step=done, steps=self.steps, epoch=epoch, loss=loss, lr=lr, images_per_second=speed, miou=miou)

    def is_checkpoint_due(self) -> bool:
        """Whether the last checkpoint is older than `checkpoint_every`."""
        return self.clock.since_save() >= self.job.pace.checkpoint_every

    def save(self, done: int) -> None:
        """Write a checkpoint. Raises NonFiniteError instead when a loss or a weight is not finite."""
        self.losses.check()
        if not all_finite(self.network):
            step = done - 1
            what = "the loss was finite, a weight is not"
            raise NonFiniteError(not_finite(what, step, self.lr(step), self.name_samples(step)))
        if self.history:
            save_checkpoint(self.job.folder, done, self.state(done) | {"history_length": self.history.sync()})
        self.clock.saved()
        self.done = done

    def finish(self) -> Outcome:
        """Give the network the weights that the training ends with."""
        return self.selection.finish(self.done)

    def state(self, done: int) -> State:
        """Everything after `done` steps that later ones depend on."""
        self.losses.check()
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": done,
            "losses": self.losses.state(),
            "selection": self.selection.state(),
        }

    def lr(self, step: int) -> float:
        """The learning rate of `step`."""
        return poly_lr(step, self.steps, self.job.cell.recipe, self.job.cell.train)

    def name_samples(self, step: int) -> str:
        """The ids of the samples of `step`, for a message."""
        job = self.job
        (keys,) = StepKeys(len(job.split), job.cell.recipe.batch_size, job.seed, step, step + 1)
        return ", ".join(job.split.records[index].id for _, index in keys)


def require_known(setting: str, name: str, choices: Mapping[str, object]) -> None:
    """SettingsError when `name` is not one of `choices`."""
    if name not in choices:
        raise SettingsError(f"{setting}: got {name!r}, expected one of {', '.join(choices)}")


def total_steps(count: int, recipe: RecipeConfig) -> int:
    """K = epochs x floor(images / batch), the length of the schedule."""
    if count < recipe.batch_size:
        raise SettingsError(
            f"batch_size: got {recipe.batch_size}, but {recipe.train_split!r} has only {count} images"
            f"{' outside a fold' if recipe.folds else ''}; expected at most as many"
        )
    return recipe.epochs * steps_per_epoch(count, recipe.batch_size)


def poly_lr(step: int, steps: int, recipe: RecipeConfig, train: TrainConfig) -> float:
    """The learning rate of a step in [0, steps): from lr to min_lr by the poly policy (DeepLabv3, section 4.1)."""
    decay: float = (1 - step / steps) ** train.poly_power
    return (recipe.lr - train.min_lr) * decay + train.min_lr


def load_together(folder: Path, ranks: Ranks) -> State | None:
    """The newest checkpoint, the same in all processes. The first one reads alone, because it renames damaged ones.

    Raises SettingsError when this process does not see the folder of the first one.
    """
    state = load_checkpoint(folder) if ranks.first else None
    step = ranks.agree(state["step"] if state else 0)
    if not ranks.first:
        state = load_checkpoint(folder)
        if (state["step"] if state else 0) != step:
            raise SettingsError(
                f"{folder}: the first process resumes from step {step} there. Share the folder among the hosts."
            )
    return state


def all_finite(network: nn.Module) -> bool:
    """Whether no weight or running statistic is NaN or infinite. Checks their sums, which is fast."""
    return bool(torch.stack([value.sum().float() for value in network.state_dict().values()]).isfinite().all())
