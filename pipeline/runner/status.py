"""The cells of the grid: up to date, waiting, running (with step, speed, time left and mIoU so far), or failed.

Reads what the runner and the trainers write, so `grid status` works at any time and in any shell of this folder.
"""

import io
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from textwrap import indent
from types import TracebackType
from typing import TYPE_CHECKING, Any

from deeplab.errors import DataError
from pipeline.files import is_locked
from pipeline.progress import duration
from pipeline.runner.board import LOCK, Board, Entry
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.stage_names import kind_and_name
from pipeline.training.curves import read_curves
from pipeline.training.facts import read_facts

if TYPE_CHECKING:
    from rich.table import Table

RECENT = 20  # reports of speed whose median counts
HEADS = ("cell", "state", "step", "images/s", "left", "mIoU", "note")
NUMBERS = ("step", "images/s", "left", "mIoU")
COLORS = {"failed": "red", "training": "green", "evaluating": "green", "done": "bold", "stopped": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell as it is shown. A field without content is empty."""

    cell: str
    state: str
    step: str = ""
    speed: str = ""
    left: str = ""
    miou: str = ""
    note: str = ""


def show(places: Places = Places()) -> str:
    """The cells of the last run, or of params.yaml before the first one."""
    title, rows, _ = look(places)
    return "\n".join([title, as_text(rows)])


def watch(places: Places = Places()) -> None:
    """Show the cells, redrawn every second, until nothing runs any more."""
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            title, rows, busy = look(places)
            live.update(view(title, rows), refresh=True)
            if not busy:
                return
            time.sleep(1)


def look(places: Places) -> tuple[str, list[Row], bool]:
    """A line about the whole, a row per cell, and whether something runs."""
    board = Board.read()
    if board is None:
        title = "the runner has not run here yet; `grid plan` shows what is out of date"
        rows = without_runner(places)
        return title, rows, any(row.state == "training" for row in rows)
    alive = is_locked(LOCK)
    return headline(board, alive), read_rows(board, alive, places), alive


def view(title: str, rows: Sequence[Row]) -> Any:
    """`rows` and the line `title` below them, for rich."""
    from rich.console import Group
    from rich.text import Text

    return Group(table(rows), Text(title))


def read_rows(board: Board, alive: bool, places: Places = Places()) -> list[Row]:
    """A row per cell. If the runner is not `alive`, its running stages have been interrupted."""
    return [read_row(cell, stages, alive, places) for cell, stages in board.cells().items()]


def read_row(cell: str, stages: dict[str, Entry], alive: bool, places: Places) -> Row:
    """The row of one cell, from its stages and the files of its trainer."""
    state, note = summary(stages)
    if not alive and state in ("training", "evaluating", "waiting"):
        state, note = "interrupted" if state != "waiting" else "not begun", ""
    if state in ("up to date", "done"):
        return Row(cell=cell, state=state, miou=final_miou(places.metrics(cell)))
    if state == "waiting":
        note = ""  # `grid plan` shows the reason
    return Row(cell=cell, state=state, note=note, **progress(places.resume(cell), moving=state == "training"))


def summary(stages: dict[str, Entry]) -> tuple[str, str]:
    """One word for the stages of a cell, and the note that belongs to it."""
    for word in ("failed", "stopped", "running", "skipped", "waiting"):
        for kind, entry in stages.items():
            if entry.state == word:
                active = {"train": "training", "evaluate": "evaluating"}[kind]
                return (active if word == "running" else word), entry.note
    return ("done" if any(entry.state == "done" for entry in stages.values()) else "up to date"), ""


def progress(folder: Path, moving: bool) -> dict[str, str]:
    """The step, speed, left and miou of a training, from its unfinished work in `folder`. Nothing for what cannot be
    read: the runner shows it, and does not end because of a view.
    """
    try:
        seeds = sorted(folder.glob("seed*/facts.json"), key=lambda path: path.stat().st_mtime)
        facts = read_facts(seeds[-1]) if seeds else None
        if not facts:
            return {}
        points = read_curves(seeds[-1].with_name("speed.csv"), columns=("step", "speed"))
        history = read_curves(seeds[-1].with_name("history.csv"))
    except (DataError, OSError):  # of another version, torn by a full disk, or removed at this moment
        return {}
    step = points[-1][0] if points else 0
    seed = f" (seed {facts.seed})" if len(seeds) > 1 or facts.seed else ""
    found = {"step": f"{step}/{facts.iterations}{seed}"}
    if points and moving:
        speed = median(values["speed"] for _, values in points[-RECENT:])
        found["speed"] = f"{speed:.1f}"
        found["left"] = duration((facts.iterations - step) * facts.settings["batch_size"] / speed)
    if scores := [values["val/mIoU"] for _, values in history if "val/mIoU" in values]:
        found["miou"] = f"{scores[-1]:.2%}"
    return found


def final_miou(path: Path) -> str:
    """The mIoU in a cell's metrics, or nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("mIoU")
    except (OSError, ValueError):
        return ""
    return f"{found:.2%}" if isinstance(found, int | float) else ""


def without_runner(places: Places) -> list[Row]:
    """A row per cell of params.yaml, for a project that only `dvc repro` has run in."""
    found = []
    for cell in load_params(places.params).cells:
        folder = places.resume(cell)
        alive = is_locked(folder / ".lock")
        state = "training" if alive else "interrupted" if any(folder.glob("seed*")) else "see `grid plan`"
        known = progress(folder, moving=alive) or {"miou": final_miou(places.metrics(cell))}
        found.append(Row(cell=cell, state=state, **known))
    return found


def headline(board: Board, alive: bool) -> str:
    """One line about the whole run."""
    running = [name for name, entry in board.stages.items() if entry.state == "running"]
    others = [name for name in running if kind_and_name(name)[0] not in ("train", "evaluate")]
    states = [entry.state for entry in board.stages.values()]
    counts = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    if alive:
        what = f"running for {duration(time.time() - board.began)} {board.engine} (process {board.process})"
    elif board.ended:
        what = f"ended {duration(time.time() - board.ended)} ago"
    else:
        what = f"the runner (process {board.process} on {board.host}) was killed. The same command continues from here"
    return f"{what}; stages: {counts}" + (f"; now: {', '.join(others)}" if others else "")


def table(rows: Sequence[Row]) -> "Table":
    """`rows` for rich, without the columns that no cell has."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False)
    heads = zip((field.name for field in fields(Row)), HEADS, strict=True)
    used = [(name, head) for name, head in heads if any(getattr(row, name) for row in rows)]
    for _, head in used:
        drawn.add_column(head, justify="right" if head in NUMBERS else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(getattr(row, name)) for name, _ in used), style=COLORS.get(row.state, ""))
    return drawn


def as_text(rows: Sequence[Row]) -> str:
    """`rows` as aligned lines for a file, however long."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=1000, color_system=None).print(table(rows))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class Screen:
    """Shows `board`: on a terminal by redrawing, in a file as plain lines. Everything goes to the file `log` too."""

    def __init__(self, board: Board, log: Path, every: float) -> None:
        self.board, self.every = board, every
        self.log = log.open("w", encoding="utf-8")
        self.live: Any = None
        self.drawn = self.listed = time.monotonic()

    def __enter__(self) -> "Screen":
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(self.view(), auto_refresh=False, redirect_stdout=False)
            self.live.start()
        self.board.save()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.board.ended = time.time()
        self.board.save()
        if self.live:
            self.live.update(self.view(), refresh=True)
            self.live.stop()
        with suppress(OSError):
            self.log.close()

    def say(self, text: str) -> None:
        """Print `text` with the time."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        self.note(line)
        if self.live:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)
        self.board.save()

    def note(self, text: str) -> None:
        """Add `text` to the log file. A full disk does not stop the runner."""
        with suppress(OSError):
            print(text, file=self.log, flush=True)

    def show(self) -> None:
        """Show the table again: after a second on a terminal, after `every` seconds as lines."""
        now = time.monotonic()
        if self.live and now - self.drawn > 1:
            self.drawn = now
            self.live.update(self.view(), refresh=True)
        if now - self.listed > self.every:
            self.listed = now
            lines = indent("\n".join([headline(self.board, True), as_text(self.rows())]), "    ")
            self.note(lines)
            if not self.live:
                print(lines, flush=True)

    def view(self) -> Any:
        """All cells, and a line about the whole below them."""
        return view(headline(self.board, self.board.ended is None), read_rows(self.board, alive=True))

    def rows(self) -> list[Row]:
        """The cells that are neither up to date nor waiting, which a log of hours does not repeat."""
        rows = read_rows(self.board, alive=True)
        return [row for row in rows if row.state not in ("up to date", "waiting", "done")]
