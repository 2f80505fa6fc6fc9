"""What a long piece of work shows: a bar on a terminal, elsewhere a line every ten seconds."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab.errors import naming

if TYPE_CHECKING:
    from deeplab.job import Plan, Progress

EVERY = 10.0  # seconds between two lines where there is no terminal

Item = TypeVar("Item")


class Display:
    """Work in progress: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, title: str, total: int | None, done: int = 0, unit: str = "it") -> None:
        from tqdm import tqdm  # takes a while to import

        self.title, self.terminal, self.printed = title, sys.stderr.isatty(), time.monotonic()
        scaled: dict[str, Any] = {"unit_scale": True} if unit == "B" else {}
        self.bar = tqdm(desc=title, total=total, initial=done, unit=unit, disable=not self.terminal, **scaled)

    def advance(self, count: int, line: str, always: bool = False) -> None:
        """Move the bar by `count`, or print `line` when the last one is old enough or `always` is set."""
        self.bar.update(count)
        if not self.terminal and (always or time.monotonic() - self.printed >= EVERY):
            self.printed = time.monotonic()
            print(f"{self.title}: {line}", flush=True)


def shown(items: Iterable[Item], title: str, unit: str = "image", total: int | None = None) -> Iterator[Item]:
    """Yield `items` unchanged and show how many are done. `total` defaults to their length."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    display = Display(title, total, unit=unit)
    with display.bar:
        for done, item in enumerate(items, start=1):
            yield item
            display.advance(1, f"{done}/{total} {unit}s")


@contextmanager
def meter(title: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how many bytes of `total` are done. Yields a function that counts more of them."""
    display = Display(title, total, done, unit="B")
    of = f" of {total / 1e6:,.0f}" if total else ""

    def advance(count: int) -> None:
        nonlocal done
        done += count
        display.advance(count, f"{done / 1e6:,.0f}{of} MB")

    with display.bar:
        yield advance


@contextmanager
def reporter(name: str, batch_size: int, speeds: Path, quiet: bool = False) -> Iterator[Callable[["Progress"], None]]:
    """Show each report of a training, the first and the last one always. Each one also adds a row to `speeds`."""
    if quiet:
        yield lambda _: None
        return
    display = Display(name, None)

    def report(progress: "Progress") -> None:
        with naming(speeds), speeds.open("a", encoding="utf-8") as file:
            file.write(f"{progress.step},{progress.images_per_second:.3f}\n")
        text = f"loss {progress.loss:.4f}, lr {progress.lr:.5f}, {progress.images_per_second:.1f} images/s"
        if progress.miou is not None:
            text += f", mIoU {progress.miou:.2%}"
        first, last = display.bar.total is None, progress.step == progress.steps
        display.bar.total = progress.steps
        display.bar.set_postfix_str(text)
        left = duration((progress.steps - progress.step) * batch_size / progress.images_per_second)
        line = f"{progress.step}/{progress.steps} iterations, {text}, {left} left"
        display.advance(int(progress.step - display.bar.n), line, always=first or last)

    with display.bar:
        yield report


def planner(name: str, path: Path, quiet: bool = False) -> Callable[["Plan"], None]:
    """A function that prints how long a training will take and the memory it uses, and writes the same to `path`."""
    from tqdm import tqdm

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
