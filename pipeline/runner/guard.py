"""Stop the stages of a runner that has died, so that none keeps running unnoticed beside the next one.

The runner starts this process and writes to its stdin: `+GROUP` for each process group that it starts, `-GROUP` when
that has ended. The kernel closes the pipe when the runner dies, even by `kill -9`. The groups that are left are then
asked to save and stop. The file of the runner's lock is open here too, so that the next runner waits for them.
"""

import signal
import sys
import time

from pipeline.process import GRACE, SAVE_AND_STOP, ask_to_stop, kill, members


def main() -> None:
    for number in SAVE_AND_STOP:
        signal.signal(number, signal.SIG_IGN)  # a cluster signals all processes of a job; this one ends with the runner
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
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
