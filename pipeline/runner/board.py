"""The state of each stage, in a file that any other shell can read."""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.files import readable, write_whole
from pipeline.settings.stage_names import kind_and_name

BOARD = Path("runs/.grid.json")


@dataclass(kw_only=True)
class Entry:
    """A stage as the runner sees it."""

    state: str  # up to date, waiting, running, done, failed, skipped or stopped
    since: float = field(default_factory=time.time)
    note: str = ""  # why it runs, or how it failed


@dataclass(kw_only=True)
class Board:
    """All stages of one call of the runner."""

    engine: str  # where the stages run
    stages: dict[str, Entry]
    process: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    began: float = field(default_factory=time.time)
    ended: float | None = None

    def set(self, name: str, state: str, note: str = "") -> None:
        """Note that stage `name` is now in `state`."""
        self.stages[name] = Entry(state=state, note=note)

    def save(self, path: Path = BOARD) -> None:
        """Write the file. A full disk does not stop the runner."""
        with suppress(OSError):
            write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path = BOARD) -> "Board | None":
        """The content of the file; None when no runner has written one."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        with readable(path, "Remove it: the next run of the grid writes it again."):
            found = json.loads(text)
            stages = {name: Entry(**entry) for name, entry in found.pop("stages").items()}
            return cls(stages=stages, **found)

    def cells(self) -> dict[str, dict[str, Entry]]:
        """Cell -> those of its stages `train` and `evaluate` that belong to this call."""
        found: dict[str, dict[str, Entry]] = {}
        for name, entry in self.stages.items():
            kind, cell = kind_and_name(name)
            if kind in ("train", "evaluate"):
                found.setdefault(cell, {})[kind] = entry
        return found


def plan_board(engine: str, names: Iterable[str], reasons: Mapping[str, str]) -> Board:
    """The board before anything runs."""
    stages = {
        name: Entry(state="waiting", note=reasons[name]) if name in reasons else Entry(state="up to date")
        for name in names
    }
    return Board(engine=engine, stages=stages)
