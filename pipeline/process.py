"""A stage as one process among others: its lock, its parent, and the signals that ask it to stop."""

import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from deeplab.errors import naming
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
    while not (file := take(path)):
        if time.monotonic() > deadline:
            holder = path.read_text().strip()
            raise BusyError(f"{name}: already being {doing} ({holder}). Wait for it, or end it.")
        time.sleep(0.2)
    with file:
        with naming(path):
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def take(path: Path) -> TextIO | None:
    """The file `path`, locked; None while another process has it, or has just removed it with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    file.close()
    return None


def die_with_parent() -> None:
    """End when the parent does, `dvc` say, which on `kill -9` leaves its command running (Linux).

    By SIGUSR2, which a trainer answers by saving: a group of processes that is sent SIGTERM is not sent it twice, which
    would end the trainer at once.
    """
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # what started it may ignore it, or block it as Ray does
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SAVE_AND_STOP)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR2)


def die_with_dvc() -> None:
    """`die_with_parent` for a command of a stage. It ends at once when DVC was killed before this could be said."""
    die_with_parent()
    if os.getppid() == 1 and os.getpgid(1) != os.getpgrp():  # not so where DVC itself is process 1, in a container
        os.kill(os.getpid(), signal.SIGUSR2)
