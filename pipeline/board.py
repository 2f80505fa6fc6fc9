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

from deeplab.errors import naming
from pipeline.address import kind_and_name
from pipeline.errors import BusyError
from pipeline.files import readable

LOCK = Path("runs/.grid.lock")
BOARD = Path("runs/.grid.json")


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
def only_runner(path: Path = LOCK) -> Iterator[None]:
    """Hold the runner's lock. The kernel frees it when the process ends, however that happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BusyError(
                f"{path}: another runner (process {file.read().strip()}) is at work here. Wait for it, or end it. "
                f"`python -m pipeline.status` shows what it does."
            ) from None
        with naming(path):
            file.truncate(0)
            os.write(file.fileno(), str(os.getpid()).encode())  # held in a buffer, it would fail again when that closes
        yield


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
