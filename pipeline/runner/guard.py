"""Stop the stages of a runner that has died, so that none keeps running unnoticed beside the next one.

Each process group that begins writes `+GROUP` to the stdin of this process, and the runner writes `-GROUP` when the
group has ended. The kernel closes the pipe when the runner dies, even by `kill -9`. The groups that are left are then
asked to save and stop. The file of the runner's lock is open here too, so that the next runner waits for them.
"""

import signal
import sys
import time
from collections.abc import Iterable

from pipeline.process import GRACE, SAVE_AND_STOP, ask_to_stop, kill, members


def main() -> None:
    """Wait until the runner has ended, then stop its stages."""
    for number in SAVE_AND_STOP:
        signal.signal(number, signal.SIG_IGN)  # a cluster signals all processes of a job; this one ends with the runner
    stop(read_groups(sys.stdin))


def read_groups(lines: Iterable[str]) -> set[int]:
    """The groups that have begun and not ended."""
    groups: set[int] = set()
    for number in map(int, lines):
        if number > 0:
            groups.add(number)
        else:
            groups.discard(-number)
    return groups


def stop(groups: set[int]) -> None:
    """Ask `groups` to save and stop, and end what is left after GRACE."""
    deadline = time.monotonic() + GRACE
    asked: set[int] = set()
    while any(members(group) for group in groups):
        for group in groups:
            ask_to_stop(group, asked)
            if time.monotonic() > deadline:
                kill(group)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
