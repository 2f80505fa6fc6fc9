"""The state of each cell: up to date, waiting, running (with step, speed, time left and mIoU so far), or failed.

It reads files of the runner and of the trainers, so it works at any time and from any shell of this folder.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pipeline.progress import duration
from pipeline.runner.board import BOARD, Board, Entry
from pipeline.runner.lock import LOCK, is_held
from pipeline.settings.params import load_params
from pipeline.settings.stage_names import kind_and_name

if TYPE_CHECKING:
    from rich.table import Table

RESUME = Path("runs/.resume")
METRICS = Path("reports/metrics")
RECENT = 20  # reports of speed whose median counts
WIDTH = 200  # of a line in a file
HEADS = {
    "cell": "cell", "state": "state", "step": "step", "speed": "images/s", "left": "left", "miou": "mIoU",
    "note": "note",
}  # fmt: skip
NUMBERS = ("step", "speed", "left", "miou")
COLORS = {"failed": "red", "training": "green", "evaluating": "green", "done": "bold", "stopped": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell as it is shown. An unknown field is empty."""

    cell: str
    state: str
    step: str = ""
    speed: str = ""
    left: str = ""
    miou: str = ""
    note: str = ""


def read_rows(board: Board, alive: bool, resume: Path = RESUME, metrics: Path = METRICS) -> list[Row]:
    """A row per cell. When the runner is not `alive`, a cell that it left running was interrupted."""
    return [read_row(cell, stages, alive, resume / cell, metrics) for cell, stages in board.cells().items()]


def read_row(cell: str, stages: dict[str, Entry], alive: bool, resume: Path, metrics: Path) -> Row:
    """The row of one cell, from its stages and the files of its trainer in `resume`."""
    state, note = summary(stages)
    if not alive and state in ("training", "evaluating", "waiting"):
        state, note = "interrupted" if state != "waiting" else "not begun", ""
    if state in ("up to date", "done"):
        return Row(cell=cell, state=state, miou=final_miou(metrics / f"{cell}.json"))
    if state == "waiting":
        note = ""  # the plan shows the reason
    return Row(cell=cell, state=state, note=note, **progress(resume, moving=state == "training"))


def summary(stages: dict[str, Entry]) -> tuple[str, str]:
    """One word for the stages of a cell, and its note."""
    states = {kind: entry.state for kind, entry in stages.items()}
    for word in ("failed", "stopped", "running", "skipped", "waiting"):
        for kind, state in states.items():
            if state == word:
                active = {"train": "training", "evaluate": "evaluating"}[kind]
                return (active if word == "running" else word), stages[kind].note
    return ("done" if "done" in states.values() else "up to date"), ""


def progress(folder: Path, moving: bool) -> dict[str, str]:
    """The progress of the trainer whose unfinished work is in `folder`: step, speed, left, miou."""
    seeds = sorted(folder.glob("seed*/facts.json"), key=lambda path: path.stat().st_mtime)
    if not seeds:
        return {}
    try:
        facts = json.loads(seeds[-1].read_text(encoding="utf-8"))
        total, batch = facts["iterations"], facts["settings"]["batch_size"]
    except (OSError, ValueError, KeyError):  # half-written, or of another version
        return {}
    points = rows_of(seeds[-1].with_name("speed.csv"))
    step = int(points[-1][0]) if points else 0
    seed = f" (seed {facts['seed']})" if len(seeds) > 1 or facts["seed"] else ""
    found = {"step": f"{step}/{total}{seed}"}
    if points and moving:
        speed = median(float(point[1]) for point in points[-RECENT:])
        found["speed"] = f"{speed:.1f}"
        found["left"] = duration((total - step) * batch / speed)
    head, *history = rows_of(seeds[-1].with_name("history.csv")) or [[]]
    if "val/mIoU" in head:
        scores = [row[head.index("val/mIoU")] for row in history]
        found["miou"] = next((f"{float(score):.2%}" for score in reversed(scores) if score), "")
    return found


def rows_of(path: Path) -> list[list[str]]:
    """The rows of a small CSV file, without a line that is still being written."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [line.split(",") for line in text[: text.rfind("\n") + 1].splitlines()]


def final_miou(path: Path) -> str:
    """The mIoU in a cell's metrics, or nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("mIoU")
    except (OSError, ValueError):
        return ""
    return f"{found:.2%}" if isinstance(found, int | float) else ""


def table(rows: Sequence[Row]) -> "Table":
    """`rows` as a table of rich, without the columns that are empty."""
    from rich.table import Table

    used = [field for field in HEADS if any(getattr(row, field) for row in rows)]
    drawn = Table(box=None, pad_edge=False)
    for field in used:
        drawn.add_column(HEADS[field], justify="right" if field in NUMBERS else "left", no_wrap=field != "note")
    for row in rows:
        drawn.add_row(*(getattr(row, field) for field in used), style=COLORS.get(row.state, ""))
    return drawn


def as_text(rows: Sequence[Row]) -> str:
    """The same for a file: no colors, one line per row."""
    from rich.console import Console

    console = Console(file=StringIO(), width=WIDTH, color_system=None, markup=False)
    console.print(table(rows))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def headline(board: Board, alive: bool) -> str:
    """One line about the whole call."""
    others = [name for name, entry in board.stages.items() if entry.state == "running" and is_other(name)]
    states = [entry.state for entry in board.stages.values()]
    counts = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    if alive:
        what = f"running for {duration(time.time() - board.began)} {board.engine} (process {board.process})"
    elif board.ended:
        what = f"ended {duration(time.time() - board.ended)} ago"
    else:
        what = f"the runner (process {board.process} on {board.host}) was killed. The same command continues from here"
    return f"{what}; stages: {counts}" + f"; now: {', '.join(others)}" * bool(others)


def is_other(name: str) -> bool:
    """Whether a stage belongs to no cell."""
    return kind_and_name(name)[0] not in ("train", "evaluate")


def without_runner() -> list[Row]:
    """A row per cell of params.yaml, for a project in which only `dvc repro` has trained."""
    found = []
    for cell in load_params().cells:
        running = is_held(RESUME / cell / ".lock")
        unfinished = any((RESUME / cell).glob("seed*"))
        state = "training" if running else "interrupted" if unfinished else "see grid plan"
        known = progress(RESUME / cell, moving=running) or {"miou": final_miou(METRICS / f"{cell}.json")}
        found.append(Row(cell=cell, state=state, **known))
    return found


def show() -> str:
    """The output of `grid status`."""
    board = Board.read(BOARD)
    if board is None:
        return "\n".join(
            ["no runner has worked here yet; `grid plan` shows what is out of date", as_text(without_runner())]
        )
    alive = is_held(LOCK)
    return "\n".join([headline(board, alive), as_text(read_rows(board, alive))])
