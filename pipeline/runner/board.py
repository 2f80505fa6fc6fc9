"""What other shells see of a runner: the state of each stage, in a file, and the lock that only one runner holds."""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from pipeline.errors import BusyError
from pipeline.files import readable, sign, take, write_whole
from pipeline.process import GRACE, is_alive
from pipeline.settings.stage_names import kind_and_name

BOARD = Path("runs/.grid.json")
LOCK = Path("runs/.grid.lock")
PATIENCE = GRACE + 10.0  # seconds to wait for the stages of a runner that has ended; its guard ends them before
LOOK = 0.2  # seconds between two looks at the lock


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


@contextmanager
def only_runner(path: Path = LOCK) -> Iterator[int]:
    """Hold the lock of the runner. Yields its file, to share with a guard: the lock is free when both have ended.

    Waits for the stages that a killed runner left running. Raises BusyError while another runner works.
    """
    with wait_for(path) as file:
        sign(file, path, f"{os.getpid()} on {socket.gethostname()}")
        yield file.fileno()


def wait_for(path: Path) -> TextIO:
    """The file `path`, locked. Raises BusyError when its runner works, or has ended and its stages do not end."""
    deadline, printed = time.monotonic() + PATIENCE, False
    while not (file := take(path)):
        runner, _, host = path.read_text().strip().partition(" on ")
        if host not in ("", socket.gethostname()):
            runner = f"{runner} on {host}"  # whose processes are not to be seen here
        if not runner.isdecimal() or is_alive(int(runner), path.stat().st_mtime):
            raise BusyError(
                f"{path}: another runner (process {runner}) works here. Wait for it, or end it. `grid status` shows "
                f"what it does."
            )
        if time.monotonic() > deadline:
            raise BusyError(
                f"{path}: the previous runner (process {runner}) has ended, but its stages have not after "
                f"{PATIENCE:.0f} s. Wait for them, or end them."
            )
        if not printed:
            print(f"the previous runner (process {runner}) has ended and its stages save; waiting for them", flush=True)
        printed = True
        time.sleep(LOOK)
    return file
