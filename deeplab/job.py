"""What a training is given, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deeplab.config import Cell
from deeplab.ranks import ALONE, Ranks
from deeplab.selection import Outcome
from deeplab.store import Split


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a run is logged, saved and fed with samples; none of it changes a number."""

    workers: int  # processes that make samples
    log_every: int  # steps
    checkpoint_every: float  # seconds
    validate_every: int  # epochs; 0 is never
    spots: int = 0  # pairs of states that are kept to check the training by


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and where."""

    network: nn.Module  # trained in place
    split: Split
    cell: Cell
    seed: int
    device: torch.device
    folder: Path  # gets checkpoints and history.csv
    pace: Pace
    ranks: Ranks = ALONE
    weights: tuple[float, ...] | None = None  # of the classes, if `train.class_weights` asks for them


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is reported after each `log_every` steps."""

    step: int  # done so far
    steps: int  # in all
    epoch: int
    loss: float  # mean since the last report
    lr: float
    images_per_second: float
    miou: float | None  # of the validation after this step, if there was one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the rest of the run takes, measured over the first steps of this process."""

    step: int  # done so far
    steps: int  # in all
    images_per_second: float
    seconds_left: float
    waiting: float  # share of the time in which the step waited for its samples
    peak_memory: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The functions through which a run reports, validates and is stopped."""

    report: Callable[[Progress], None]
    plan: Callable[[Plan], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False
    validate: Callable[[nn.Module], float] | None = None  # network -> mIoU; required by settings that choose by it
    end: Callable[[Outcome], None] = lambda _: None
