"""A stage as one process among others: its lock, its parent, and the signals that ask it to stop."""

import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BusyError

SAVE_AND_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # SIGUSR2 is how submitit announces the end of a job
LOCK_PATIENCE = 10.0  # seconds; data workers of a killed run hold its lock for about one
PR_SET_PDEATHSIG = 1


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """Note the first request to stop instead of dying of it; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in SAVE_AND_STOP}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SAVE_AND_STOP)  # Ray blocks SIGINT in all that it starts
    try:
        yield lambda: bool(received)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def locked(path: Path, name: str, doing: str = "trained") -> Iterator[None]:
    """Hold the lock of what is being `doing`. The kernel frees it when the process ends, however that happens."""
    deadline = time.monotonic() + LOCK_PATIENCE
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise BusyError(
                        f"{name}: already being {doing} ({file.read().strip()}). Wait for it, or end it."
                    ) from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when `dvc` is killed, which otherwise leaves its command running (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
