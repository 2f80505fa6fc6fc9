"""What a training says while it runs, and how far an evaluation is."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tqdm import tqdm

from deeplab.errors import naming

if TYPE_CHECKING:
    from deeplab.training import Plan, Progress

EVERY = 10.0  # seconds between two lines where there is no terminal


@contextmanager
def reporter(name: str, batch_size: int, speeds: Path, quiet: bool = False) -> Iterator[Callable[["Progress"], None]]:
    """A progress bar on a terminal, else a line every ten seconds; each report also adds a row to `speeds`."""
    if quiet:
        yield lambda _: None
        return
    terminal = sys.stderr.isatty()
    bar = tqdm(desc=name, unit="it", disable=not terminal)
    said = float("-inf")

    def report(progress: "Progress") -> None:
        nonlocal said
        with naming(speeds), speeds.open("a", encoding="utf-8") as file:
            file.write(f"{progress.step},{progress.images_per_second:.3f}\n")
        text = f"loss {progress.loss:.4f}, lr {progress.lr:.5f}, {progress.images_per_second:.1f} images/s"
        if progress.miou is not None:
            text += f", mIoU {progress.miou:.2%}"
        bar.total = progress.steps
        bar.set_postfix_str(text)
        bar.update(progress.step - bar.n)
        last = progress.step == progress.steps
        if not terminal and (last or time.monotonic() - said >= EVERY):
            said = time.monotonic()
            left = duration((progress.steps - progress.step) * batch_size / progress.images_per_second)
            print(f"{name}: {progress.step}/{progress.steps} iterations, {text}, {left} left", flush=True)

    with bar:
        yield report


def planner(name: str, path: Path, quiet: bool = False) -> Callable[["Plan"], None]:
    """Print how long a training will take and what it holds, and write the same to `path`."""

    def plan(found: "Plan") -> None:
        if quiet:
            return
        left, memory = duration(found.seconds_left), found.peak_memory / 1e9
        text = f"{found.images_per_second:.1f} images/s, {left} left, {memory:.2f} GB of memory at the peak"
        text += f", {found.waiting:.0%} of the time spent waiting for samples"
        tqdm.write(f"{name}: {found.step}/{found.steps} iterations measured: {text}")
        facts = {
            "step": found.step,
            "steps": found.steps,
            "images_per_second": round(found.images_per_second, 3),
            "seconds_left": round(found.seconds_left, 1),
            "waiting": round(found.waiting, 4),
            "peak_memory": found.peak_memory,
        }
        with naming(path):
            path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    return plan


def duration(seconds: float) -> str:
    """As h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def median_speed(path: Path) -> float:
    """The median of the reported images per second."""
    return median(float(line.split(",")[1]) for line in path.read_text(encoding="utf-8").splitlines())


def shown(indices: range, title: str, unit: str = "image") -> Iterator[int]:
    """The same indices, with a progress bar on a terminal and a line now and then elsewhere."""
    terminal = sys.stderr.isatty()
    said = time.monotonic()
    for index in tqdm(indices, desc=title, unit=unit, disable=not terminal):
        yield index
        if not terminal and time.monotonic() - said >= EVERY:
            said = time.monotonic()
            print(f"{title}: {index + 1}/{len(indices)} {unit}s", flush=True)
