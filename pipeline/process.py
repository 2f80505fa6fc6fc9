"""Processes: the signals that ask one to stop, the death of its parent, and the group that it leads."""

import contextlib
import ctypes
import getpass
import os
import signal
import sys
from collections.abc import Callable, Iterator

import psutil  # type: ignore[import-untyped]

SAVE_AND_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # SIGUSR2 is how submitit announces the end of a job
PR_SET_PDEATHSIG = 1
GRACE = 60.0  # seconds that a stage has to save its state


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """Note the first request to stop instead of dying of it. A second one ends the process at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in SAVE_AND_STOP}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SAVE_AND_STOP)  # Ray blocks SIGINT in everything it starts
    try:
        yield lambda: bool(received)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """End when the parent does, for example `dvc`, which leaves its command running on `kill -9` (Linux only).

    The signal is SIGUSR2, which a trainer answers by saving. SIGTERM to the whole group would reach the trainer twice,
    and the second one ends it at once.
    """
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # the parent may ignore it, or block it as Ray does
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SAVE_AND_STOP)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR2)


def die_with_dvc() -> None:
    """`die_with_parent` for the command of a stage. Ends at once when DVC was killed before this call."""
    die_with_parent()
    if os.getppid() == 1 and os.getpgid(1) != os.getpgrp():  # in a container DVC itself may be process 1
        os.kill(os.getpid(), signal.SIGUSR2)


def ask_to_stop(group: int, asked: set[int]) -> None:
    """Interrupt each process of `group` that is not yet in `asked`, except its leader, `dvc`.

    The leader waits for its command and records what has finished. Interrupted, it would lose a result that is already
    there. It starts no other stage.
    """
    for process in members(group) - {group} - asked:
        asked.add(process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGINT)


def kill(group: int) -> None:
    """End every process of `group` at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def members(group: int) -> set[int]:
    """The living processes of `group`, without zombies."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def is_alive(process: int, then: float) -> bool:
    """Whether the process that had the number `process` at the time `then` still lives, and not another one since."""
    try:
        found = psutil.Process(process)
        return bool(found.create_time() <= then and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def name_user() -> None:
    """Set USER for this process and its children when the user has no name, as in a container that runs as any uid.

    DVC, MLflow and torch ask for the name, and fail without one.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter since Python 3.13
        os.environ["USER"] = f"uid{os.getuid()}"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
