"""What the runner knows of each stage, in a file that any other shell can read."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from deeplab.errors import naming
from pipeline.errors import BusyError
from pipeline.files import readable
from pipeline.runner.guard import GRACE, is_alive
from pipeline.settings.stage_names import kind_and_name

LOCK = Path("runs/.grid.lock")
BOARD = Path("runs/.grid.json")
PATIENCE = GRACE + 10.0  # seconds to wait for the stages of a runner that has ended; its guard ends them before
LOOK = 0.2  # seconds between two looks at the lock meanwhile


@dataclass(kw_only=True)
class Entry:
    """A stage as the runner sees it."""

    state: str  # up to date, waiting, running, done, failed, skipped or stopped
    since: float = field(default_factory=time.time)
    note: str = ""  # why it runs, or why it did not end well


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
        """Write the file, whole or not at all. A full disk must not stop the runner, so that is passed over."""
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_text(json.dumps(asdict(self)), encoding="utf-8")
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path = BOARD) -> "Board | None":
        """What stands in the file; None when no runner has written one."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        with readable(path, "Remove it: the next run of the grid writes it anew."):
            found = json.loads(text)
            stages = {name: Entry(**entry) for name, entry in found.pop("stages").items()}
            return cls(stages=stages, **found)

    def cells(self) -> dict[str, dict[str, Entry]]:
        """Cell -> its stages `train` and `evaluate`, as far as they belong to this call."""
        found: dict[str, dict[str, Entry]] = {}
        for name, entry in self.stages.items():
            kind, cell = kind_and_name(name)
            if kind in ("train", "evaluate"):
                found.setdefault(cell, {})[kind] = entry
        return found


def plan_board(engine: str, names: Iterable[str], reasons: dict[str, str]) -> Board:
    """The board before anything runs."""
    stages = {
        name: Entry(state="waiting", note=reasons[name]) if name in reasons else Entry(state="up to date")
        for name in names
    }
    return Board(engine=engine, stages=stages)


@contextmanager
def only_runner(path: Path = LOCK) -> Iterator[int]:
    """Hold the runner's lock, and give its file to share with a guard: it is free when both have ended.

    The kernel frees it, however they end. What a runner that was killed has left at work is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        wait_for_lock(file, path)
        with naming(path):
            file.truncate(0)
            os.write(file.fileno(), str(os.getpid()).encode())  # held in a buffer, it would fail again when that closes
        yield file.fileno()


def wait_for_lock(file: TextIO, path: Path) -> None:
    """Lock `file`. BusyError when its runner is at work, or has ended and its stages do not end."""
    deadline, told = time.monotonic() + PATIENCE, False
    while not lock(file):
        file.seek(0)
        runner = file.read().strip()
        if not runner or is_alive(int(runner), os.fstat(file.fileno()).st_mtime):
            raise BusyError(
                f"{path}: another runner (process {runner}) is at work here. Wait for it, or end it. "
                f"`python -m pipeline.runner.status` shows what it does."
            )
        if time.monotonic() > deadline:
            raise BusyError(
                f"{path}: the runner that was process {runner} has ended, but what it ran has not after "
                f"{PATIENCE:.0f} s. Wait for it, or end it."
            )
        if not told:
            told = True
            print(f"the runner before (process {runner}) has ended, its stages save; waiting for them", flush=True)
        time.sleep(LOOK)


def lock(file: TextIO) -> bool:
    """Whether `file` could be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether another process holds the lock `path`."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
