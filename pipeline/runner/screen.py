"""The live view: a line per event and the table of cells, which stays below the lines on a terminal."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import Any

from pipeline.runner.board import Board
from pipeline.runner.status import Row, as_text, headline, read_rows, table


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

            self.live = Live(view(self.board), auto_refresh=False, redirect_stdout=False)
            self.live.start()
        self.board.save()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.board.ended = time.time()
        self.board.save()
        if self.live:
            self.live.update(view(self.board), refresh=True)
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
            self.live.update(view(self.board), refresh=True)
        if now - self.listed > self.every:
            self.listed = now
            lines = indent("\n".join([headline(self.board, True), as_text(self.rows())]), "    ")
            self.note(lines)
            if not self.live:
                print(lines, flush=True)

    def rows(self) -> list[Row]:
        """The cells that are neither up to date nor waiting, which a log of hours does not repeat."""
        rows = read_rows(self.board, alive=True)
        return [row for row in rows if row.state not in ("up to date", "waiting", "done")]


def view(board: Board) -> Any:
    """The cells, and a line about the whole below them."""
    from rich.console import Group
    from rich.text import Text

    return Group(table(read_rows(board, alive=True)), Text(headline(board, alive=board.ended is None)))
