"""Show each cell of the grid: up to date, waiting, running (with step, speed, time left and mIoU so far), or failed.

Reads what the runner and the trainers write down, so it can be called at any time and from any shell of this folder.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from pipeline.errors import run_command
from pipeline.progress import duration
from pipeline.runner.board import BOARD, LOCK, Board, Entry, is_held
from pipeline.settings.params import EXAMPLES, load_params
from pipeline.settings.stage_names import kind_and_name

RESUME = Path("runs/.resume")
METRICS = Path("reports/metrics")  # the examples have one of their own
RECENT = 20  # reports of speed whose median counts
HEADS = ("cell", "state", "step", "images/s", "left", "mIoU", "note")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell as it is shown. A field that says nothing is empty."""

    cell: str
    state: str
    step: str = ""
    speed: str = ""
    left: str = ""
    miou: str = ""
    note: str = ""


def read_rows(board: Board, alive: bool, resume: Path = RESUME, metrics: Path = METRICS) -> list[Row]:
    """A row per cell. When the runner is not `alive`, what it left as running has been interrupted."""
    return [read_row(cell, stages, alive, resume / cell, metrics) for cell, stages in board.cells().items()]


def read_row(cell: str, stages: dict[str, Entry], alive: bool, resume: Path, metrics: Path) -> Row:
    """The row of one cell, from its stages and what its trainer has written to `resume`."""
    state, note = summary(stages)
    if not alive and state in ("training", "evaluating", "waiting"):
        state, note = "interrupted" if state != "waiting" else "not begun", ""
    if state in ("up to date", "done"):
        return Row(cell=cell, state=state, miou=final_miou(metrics / f"{cell}.json"))
    if state == "waiting":
        note = ""  # the reason is for the plan
    return Row(cell=cell, state=state, note=note, **progress(resume, moving=state == "training"))


def summary(stages: dict[str, Entry]) -> tuple[str, str]:
    """One word for the stages of a cell, and the note that belongs to it."""
    states = {kind: entry.state for kind, entry in stages.items()}
    for word in ("failed", "stopped", "running", "skipped", "waiting"):
        for kind, state in states.items():
            if state == word:
                active = {"train": "training", "evaluate": "evaluating"}[kind]
                return (active if word == "running" else word), stages[kind].note
    return ("done" if "done" in states.values() else "up to date"), ""


def progress(folder: Path, moving: bool) -> dict[str, str]:
    """How far the trainer that keeps its unfinished work in `folder` has come: step, speed, left, miou."""
    seeds = sorted(folder.glob("seed*/facts.json"), key=lambda path: path.stat().st_mtime)
    if not seeds:
        return {}
    try:
        facts = json.loads(seeds[-1].read_text(encoding="utf-8"))
        total, batch = facts["iterations"], facts["settings"]["batch_size"]
    except (OSError, ValueError, KeyError):  # being written, or of another version
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
    """The rows of a small CSV file; a line that is still being written is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [line.split(",") for line in text[: text.rfind("\n") + 1].splitlines()]


def final_miou(path: Path) -> str:
    """The mIoU in a cell's metrics, or nothing."""
    try:
        path = path if path.exists() else EXAMPLES / path
        found = json.loads(path.read_text(encoding="utf-8")).get("mIoU")
    except (OSError, ValueError):
        return ""
    return f"{found:.2%}" if isinstance(found, int | float) else ""


def as_lines(rows: Sequence[Row]) -> list[str]:
    """`rows` as aligned text, for a file or a terminal of any kind."""
    table = [HEADS, *(astuple(row) for row in rows)]
    used = [column for column in range(len(HEADS)) if any(row[column] for row in table[1:])]
    widths = {column: max(len(row[column]) for row in table) for column in used}
    return ["  ".join(f"{row[column]:{widths[column]}}" for column in used).rstrip() for row in table]


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
        what = f"the runner (process {board.process} on {board.host}) was killed. The same command goes on from here"
    return f"{what}; stages: {counts}" + f"; now: {', '.join(others)}" * bool(others)


def is_other(name: str) -> bool:
    """Whether a stage belongs to no cell."""
    return kind_and_name(name)[0] not in ("train", "evaluate")


def without_runner() -> list[Row]:
    """A row per cell of params.yaml, when no runner has written down more: `dvc repro` trains too.

    Of the examples those that were begun.
    """
    params, found = load_params(), []
    for cell, settings in params.cells.items():
        alive = is_held(RESUME / cell / ".lock")
        unfinished = any((RESUME / cell).glob("seed*"))
        state = "training" if alive else "interrupted" if unfinished else "see --dry-run"
        known = progress(RESUME / cell, moving=alive) or {"miou": final_miou(METRICS / f"{cell}.json")}
        if settings.dataset not in params.examples or state != "see --dry-run" or any(known.values()):
            found.append(Row(cell=cell, state=state, **known))
    return found


def show() -> str:
    """What the command prints."""
    board = Board.read(BOARD)
    if board is None:
        text = "no runner was here yet; `python -m pipeline.runner.run --dry-run` says what is out of date"
        return "\n".join([text, *as_lines(without_runner())])
    alive = is_held(LOCK)
    return "\n".join([headline(board, alive), *as_lines(read_rows(board, alive))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(show())


if __name__ == "__main__":
    run_command(main)
