"""Stop the stages of a runner that has died, so that none goes on unseen beside the next one.

The runner starts this process and names on its stdin each process group that it begins, and again when that has ended.
The kernel closes the pipe when the runner dies, even by `kill -9`; what is left is then asked to save and stop.
The file of the runner's lock is open here too, so that the next runner waits until nothing is left.
"""

import contextlib
import os
import signal
import sys
import time

import psutil  # type: ignore[import-untyped]

GRACE = 60.0  # seconds to save what there is


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a cluster signals all processes of a job; this one ends with the runner
    groups: set[int] = set()
    for line in sys.stdin:
        groups ^= {int(line)}
    deadline = time.monotonic() + GRACE
    asked: set[int] = set()
    while any(members(group) for group in groups):
        for group in groups:
            ask_to_stop(group, asked)
            if time.monotonic() > deadline:
                kill(group)
        time.sleep(0.1)


def ask_to_stop(group: int, asked: set[int]) -> None:
    """Interrupt each process of `group` that is not yet in `asked`, but for `dvc` itself, its leader.

    The leader waits for its command and then records what has been finished. Interrupted while it does, it would lose a
    result that is already there. It goes on to no other stage.
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
    """The processes of `group` that are alive. One that nobody waits for stays a zombie, and is not."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def is_alive(process: int, then: float) -> bool:
    """Whether what had the number `process` at the time `then` is still alive; another one that has it since is not."""
    try:
        found = psutil.Process(process)
        return bool(found.create_time() <= then and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
