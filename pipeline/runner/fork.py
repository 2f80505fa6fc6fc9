"""A stage in a fork of the runner, which has imported DVC already: its own start would take most of a short stage."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pipeline.runner.lockparts import run_stage


class Fork:
    """A forked child, as far as it is like subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def fork_stage(part: Path, name: str, log: int, environment: Mapping[str, str], guard: int) -> Fork:
    """Run DVC on stage `name` with `part` for its dvc.lock, in a process group of its own, its output in `log`.

    It tells the pipe `guard` of its group itself: the runner may be killed in between, and nothing would stop it then.
    """
    import dvc.cli.parser
    import dvc.commands.repro
    import dvc.repo.reproduce  # noqa: F401

    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        run_child(part, name, log, environment, guard)
    with contextlib.suppress(OSError):  # the child does it too, and one of them is the first
        os.setpgid(pid, pid)
    return Fork(pid)


def run_child(part: Path, name: str, log: int, environment: Mapping[str, str], guard: int) -> NoReturn:
    """Be the child."""
    code = 255
    try:
        os.setpgid(0, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(guard, b"%d\n" % os.getpid())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Above all the runner's lock and the pipe to its guard, by which they notice that the runner is gone.
        os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        from dvc.logger import setup

        for logger in ("dvc", "dvc_objects", "dvc_data"):  # they write to what was stdout when DVC was imported
            logging.getLogger(logger).handlers.clear()
        setup()
        code = run_stage(part, name)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
