"""Losses, speed and memory of a training."""

import math
import re
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from deeplab.errors import NonFiniteError

SPIKE = 3.0  # times the median of the last losses
WINDOW, ENOUGH = 100, 20  # the median is over at most and at least so many losses


class Losses:
    """The losses since the last report. On a GPU they are read together, so that no step waits for the one before."""

    def __init__(self, name_samples: Callable[[int], str], state: dict[str, Any] | None = None) -> None:
        """`name_samples`: step -> its samples, for a message. `state`: as from `state()`."""
        self.name_samples = name_samples
        state = state or {"values": [], "recent": [], "spikes": 0}
        self.values: list[float] = state["values"]
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.spikes: int = state["spikes"]
        self.waiting: list[tuple[Tensor, int, float]] = []

    def state(self) -> dict[str, Any]:
        """Everything that later rows of the history depend on."""
        return {"values": self.values, "recent": list(self.recent), "spikes": self.spikes}

    def add(self, loss: Tensor, step: int, lr: float, wait: bool) -> None:
        """Add the loss of a step. It is read and checked at once, or with `wait` at the next `check`."""
        self.waiting.append((loss, step, lr))
        if not wait:
            self.check()

    def check(self) -> None:
        """Read the waiting losses. Raises NonFiniteError at the first that is not finite."""
        values = torch.stack([loss for loss, *_ in self.waiting]).tolist() if self.waiting else []
        for value, (_, step, lr) in zip(values, self.waiting, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(not_finite(f"the loss is {value}", step, lr, self.name_samples(step)))
            self.spikes += len(self.recent) >= ENOUGH and value > SPIKE * median(self.recent)
            self.recent.append(value)
            self.values.append(value)
        self.waiting.clear()

    def take(self) -> tuple[float, int]:
        """Mean and number of spikes of the losses since the last call."""
        self.check()
        values, spikes = self.values, self.spikes
        self.values, self.spikes = [], 0
        return sum(values) / len(values), spikes


def not_finite(what: str, step: int, lr: float, samples: str) -> str:
    """The message of a NonFiniteError at a step; `what` says which number."""
    return (
        f"{what} at step {step} (lr {lr:.6f}, samples {samples}). The last good checkpoint is kept. Lower lr or look "
        f"at these samples; with fp16 try bf16."
    )


class Clock:
    """Images per second between reports, and the time since the last checkpoint."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.first, self.batch_size = step, batch_size
        self.save_time = time.monotonic()
        self.start(step)

    def start(self, step: int) -> None:
        """Start to measure, before `step`: the time until now was for preparation."""
        self.step, self.waited = step, 0.0
        self.began = self.reported = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as spent waiting for samples."""
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def waited_share(self) -> float:
        """The share of the time since `start` that was spent in `waiting`, 0..1."""
        return self.waited / max(time.monotonic() - self.began, 1e-9)

    def images_per_second(self, step: int) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        speed = (step - self.step) * self.batch_size / max(now - self.reported, 1e-9)
        self.step, self.reported = step, now
        return speed

    def mean_speed(self, step: int) -> float:
        """Images per second since `start`."""
        return (step - self.first) * self.batch_size / max(time.monotonic() - self.began, 1e-9)

    def saved(self) -> None:
        """Note that a checkpoint was written now."""
        self.save_time = time.monotonic()

    def since_save(self) -> float:
        """Seconds since the last checkpoint, or since this process began."""
        return time.monotonic() - self.save_time


def forget_peak(device: torch.device) -> None:
    """Begin `peak_memory` of a GPU again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The peak memory of this process in bytes: of tensors on a GPU since `forget_peak`, of everything on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage also counts the parent before the fork
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
