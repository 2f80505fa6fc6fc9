"""Which weights a training ends with: the last ones, their moving average, or the best on the validation split."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deeplab.config import TrainConfig

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished training ended with."""

    steps: int  # done
    step: int  # after which the weights were taken
    miou: float | None  # of these weights on the validation split; None when it decided nothing


class Selection:
    """`ema`, `keep` and `patience` of the settings. Its state is part of a checkpoint, so that resuming is exact."""

    def __init__(self, network: nn.Module, train: TrainConfig, state: dict[str, Any] | None) -> None:
        """`network` is on its device; `state` is as from `state()`."""
        self.network, self.train = network, train
        self.average = copy(network) if train.ema else None
        self.best_miou, self.best_step, self.since = -1.0, 0, 0
        self.best: Weights = {}
        if state:
            self.best_miou, self.best_step, self.since = state["best_miou"], state["best_step"], state["since"]
            self.best = state["best"]
            for name, value in (self.average or {}).items():
                value.copy_(state["average"][name])

    def state(self) -> dict[str, Any]:
        """Everything that the choice depends on."""
        return {
            "average": self.average,
            "best": self.best,
            "best_miou": self.best_miou,
            "best_step": self.best_step,
            "since": self.since,
        }

    def update(self, done: int) -> None:
        """Add the weights after `done` steps to the average.

        The decay is min(ema, (1 + done) / (10 + done)), as in TensorFlow, so that the first weights are forgotten. The
        running statistics of batch normalisation are averaged too.
        """
        if self.average is not None and self.train.ema:
            new = max(1 - self.train.ema, 9 / (10 + done))
            for mean, value in zip(self.average.values(), self.network.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, new)
                else:
                    mean.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network, within the block with the average as its weights if there is one."""
        if self.average is None:
            yield self.network
            return
        own = copy(self.network)
        self.network.load_state_dict(self.average)
        try:
            yield self.network
        finally:
            self.network.load_state_dict(own)

    def note(self, done: int, miou: float) -> None:
        """Take the weights after `done` steps if their validation is the best so far. Called within `averaged`."""
        self.since += 1
        if miou > self.best_miou:
            self.best_miou, self.best_step, self.since = miou, done, 0
            if self.train.keep == "best":
                self.best = {name: value.cpu() for name, value in copy(self.network).items()}

    @property
    def is_over(self) -> bool:
        """Whether `patience` is at its end."""
        return self.train.patience is not None and self.since >= self.train.patience

    def finish(self, done: int) -> Outcome:
        """Give the network the weights that the training ends with, after `done` steps."""
        if self.train.keep == "best":
            self.network.load_state_dict(self.best)
            return Outcome(steps=done, step=self.best_step, miou=self.best_miou)
        if self.average is not None:
            self.network.load_state_dict(self.average)
        return Outcome(steps=done, step=done, miou=None)


def copy(network: nn.Module) -> Weights:
    """Its weights and statistics, which later steps leave alone."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
