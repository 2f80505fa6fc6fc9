"""The live view: a line per event, and the table of cells; on a terminal the table stays in place below the lines."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.runner.board import Board
from pipeline.runner.status import HEADS, Row, as_lines, headline, read_rows

COLORS = {"failed": "red", "training": "green", "evaluating": "green", "done": "bold", "stopped": "yellow"}


class Screen:
    """Shows `board`: to a terminal by redrawing, to a file as plain lines. All goes to the log file `log` as well."""

    def __init__(self, board: Board, log: Path, every: float) -> None:
        self.board, self.every = board, every
        self.log = log.open("w", encoding="utf-8")
        self.live: Any = None
        self.drawn = self.listed = time.monotonic()
        self.saved = 0.0

    def __enter__(self) -> "Screen":
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(table(self.board), auto_refresh=False, redirect_stdout=False)
            self.live.start()
        self.board.save()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.board.ended = time.time()
        self.board.save()
        if self.live:
            self.live.update(table(self.board), refresh=True)
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
        """Add `text` to the log file. A full disk must not stop the runner, so that is passed over."""
        with suppress(OSError):
            print(text, file=self.log, flush=True)

    def show(self) -> None:
        """Renew the table: once a second on a terminal, every `every` seconds as lines."""
        now = time.monotonic()
        if self.live and now - self.drawn > 1:
            self.drawn = now
            self.live.update(table(self.board), refresh=True)
        if now - self.listed > self.every:
            self.listed = now
            lines = "\n".join(f"    {line}" for line in [headline(self.board, True), *as_lines(self.rows())])
            self.note(lines)
            if not self.live:
                print(lines, flush=True)

    def rows(self) -> list[Row]:
        """The cells that are not simply up to date or waiting: a log of hours should not repeat those."""
        rows = read_rows(self.board, alive=True)
        return [row for row in rows if row.state not in ("up to date", "waiting", "done")]


def table(board: Board) -> Any:
    """The cells as a table of rich, and a line about the whole below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for head in HEADS:
        drawn.add_column(head, justify="right" if head in ("step", "images/s", "left", "mIoU") else "left")
    for row in read_rows(board, alive=True):
        drawn.add_row(
            row.cell, row.state, row.step, row.speed, row.left, row.miou, row.note, style=COLORS.get(row.state, "")
        )
    return Group(drawn, Text(headline(board, alive=board.ended is None)))
