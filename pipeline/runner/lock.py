"""The lock that one runner of a project holds."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.errors import BusyError
from pipeline.files import sign, take
from pipeline.process import GRACE, is_alive

LOCK = Path("runs/.grid.lock")
PATIENCE = GRACE + 10.0  # seconds to wait for the stages of a runner that has ended; its guard ends them before
LOOK = 0.2  # seconds between two looks at the lock


@contextmanager
def only_runner(path: Path = LOCK) -> Iterator[int]:
    """Hold the lock of the runner. Yields its file, to share with a guard: the lock is free when both have ended.

    Waits for the stages that a killed runner left running. Raises BusyError while another runner works.
    """
    with wait_for(path) as file:
        sign(file, path, str(os.getpid()))
        yield file.fileno()


def wait_for(path: Path) -> TextIO:
    """The file `path`, locked. Raises BusyError when its runner works, or has ended and its stages do not end."""
    deadline, printed = time.monotonic() + PATIENCE, False
    while not (file := take(path)):
        runner = path.read_text().strip()
        if not runner or is_alive(int(runner), path.stat().st_mtime):
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
