"""How long a piece of work takes, and what it holds, by the device's own clock where there is one."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch

Work = Callable[[], Any]


def milliseconds(work: Work, rounds: int, device: torch.device, warmup: int = 0) -> list[float]:
    """The time of each of `rounds` calls, after `warmup` others. On a GPU the host waits once, at the end."""
    for _ in range(warmup):
        work()
    if device.type != "cuda":
        found = []
        for _ in range(rounds):
            began = time.perf_counter()
            work()
            found.append(1e3 * (time.perf_counter() - began))
        return found
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize(device)
    return [one.elapsed_time(other) for one, other in pairwise(marks)]


def typical(work: Work, rounds: int, device: torch.device, warmup: int = 0) -> float:
    """The median of `milliseconds`."""
    return median(milliseconds(work, rounds, device, warmup))


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def held(work: Work, device: torch.device) -> int:
    """The peak of a GPU's memory in bytes during three calls, once kernels have been chosen."""
    work()
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        work()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device)


def profile(work: Work, device: torch.device, rows: int = 12) -> list[tuple[str, float, int]]:
    """The kernels of a GPU, or operators of the CPU, that one call spends its time on: name, milliseconds and calls."""
    with torch.profiler.profile() as recorded:
        work()
        synchronise(device)
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = [(each.key, getattr(each, own) / 1e3, each.count) for each in recorded.key_averages()]
    if device.type == "cuda":  # an operator has the time of its kernels once more
        found = [each for each in found if not each[0].startswith("aten::")]
    return sorted((each for each in found if each[1] > 0), key=lambda each: -each[1])[:rows]
