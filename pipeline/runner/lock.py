"""The lock that one runner of a project holds."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from deeplab.errors import naming
from pipeline.errors import BusyError
from pipeline.process import GRACE, is_alive

LOCK = Path("runs/.grid.lock")
PATIENCE = GRACE + 10.0  # seconds to wait for the stages of a runner that has ended; its guard ends them before
LOOK = 0.2  # seconds between two looks at the lock


@contextmanager
def only_runner(path: Path = LOCK) -> Iterator[int]:
    """Hold the lock of the runner. Yields its file, to share with a guard: the lock is free when both have ended.

    Waits for the stages that a killed runner left running. Raises BusyError while another runner works.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        wait_for_lock(file, path)
        with naming(path):
            file.truncate(0)
            os.write(file.fileno(), str(os.getpid()).encode())  # unbuffered: a buffer would fail again when it closes
        yield file.fileno()


def wait_for_lock(file: TextIO, path: Path) -> None:
    """Lock `file`. Raises BusyError when its runner works, or has ended and its stages do not end."""
    deadline, told = time.monotonic() + PATIENCE, False
    while not take(file):
        file.seek(0)
        runner = file.read().strip()
        if not runner or is_alive(int(runner), os.fstat(file.fileno()).st_mtime):
            raise BusyError(
                f"{path}: another runner (process {runner}) works here. Wait for it, or end it. `grid status` shows "
                f"what it does."
            )
        if time.monotonic() > deadline:
            raise BusyError(
                f"{path}: the previous runner (process {runner}) has ended, but its stages have not after "
                f"{PATIENCE:.0f} s. Wait for them, or end them."
            )
        if not told:
            told = True
            print(f"the previous runner (process {runner}) has ended and its stages save; waiting for them", flush=True)
        time.sleep(LOOK)


def take(file: TextIO) -> bool:
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
