"""Stages as child processes of this machine, at most one per slot.

Another engine has to offer what Workers does: `free`, `running`, `start`, `ended`, `ask_to_stop`, `kill` and `log`.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pipeline.runner.fork import Fork, fork_stage
from pipeline.runner.guard import GRACE, ask_to_stop, kill, members
from pipeline.runner.lockparts import LockParts
from pipeline.runner.slots import Slot


@dataclass(kw_only=True)
class Job:
    """A stage that runs."""

    process: "subprocess.Popen[bytes] | Fork"  # `dvc`, the leader of its process group
    slot: Slot
    began: float
    left: float | None = None  # when `dvc` ended and others of its group had not
    asked: set[int] = field(default_factory=set)


class Workers:
    """Runs each stage as `dvc repro --single-item`, so that skipping, run cache and dvc.lock stay DVC's own."""

    def __init__(self, slots: list[Slot], logs: Path, folder: Path | None = None, lock: int | None = None) -> None:
        """`folder` is the workspace in which the stages run; None is the current one.

        `lock` is the file of a lock that is kept until the last stage has ended, also when this process is killed.
        """
        self.free, self.logs, self.folder = list(slots), logs, folder
        self.kept = () if lock is None else (lock,)
        self.place = f"here, {len(slots)} at a time"
        self.parts = LockParts() if folder is None else None  # a snapshot's dvc.lock is short
        self.running: dict[str, Job] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Workers":
        guard = [sys.executable, "-m", "pipeline.runner.guard"]
        self.guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, env=environment({}), start_new_session=True, pass_fds=self.kept
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave nothing behind: the guard stops what an exception has left running."""
        self.guard.communicate()
        if self.parts:
            self.parts.flush()

    def start(self, name: str, settings: Mapping[str, str] | None = None) -> None:
        """Run stage `name` in a free slot; what it prints goes to its log.

        `settings` are added to its environment, and its log is then gone on with.
        """
        slot = self.free.pop(0)
        variables = environment({**slot, **(settings or {})})
        process: subprocess.Popen[bytes] | Fork
        with self.log(name).open("ab" if settings else "wb") as log:
            if self.parts:
                assert self.guard.stdin is not None
                process = fork_stage(self.parts.begin(name), name, log.fileno(), variables, self.guard.stdin.fileno())
            else:
                process = subprocess.Popen(
                    # --wait-for-lock: without it half of twelve calls at once fail. It has to stand before the verb.
                    [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=variables,
                    process_group=0,  # so that Ctrl-C reaches the runner alone, which passes it on with care
                )
                self.tell_guard(process.pid)
        self.running[name] = Job(process=process, slot=slot, began=time.monotonic())

    def ended(self) -> list[tuple[str, int, float]]:
        """Name, exit code and seconds of each stage that has ended since the last call, with all its processes."""
        result = []
        for name, job in list(self.running.items()):
            code = job.process.poll()
            if code is None or self.leaves_any(job):
                continue
            del self.running[name]
            self.free.append(job.slot)
            self.tell_guard(job.process.pid)
            if self.parts:
                self.parts.end(name, well=code == 0)
            result.append((name, code, time.monotonic() - job.began))
        return result

    def ask_to_stop(self) -> None:
        """Ask what runs to save and stop. Call it again until nothing runs: a stage may be about to begin."""
        for job in self.running.values():
            ask_to_stop(job.process.pid, job.asked)

    def kill(self) -> None:
        """End what runs at once."""
        for job in self.running.values():
            kill(job.process.pid)

    def log(self, name: str) -> Path:
        """Where stage `name` writes what it prints."""
        return self.logs / f"{name.replace('/', '_')}.log"

    def leaves_any(self, job: Job) -> bool:
        """Whether processes of the group outlive a `dvc` that has ended, as when it was killed. Stop them if so."""
        group = job.process.pid
        if not members(group):
            return False
        job.left = job.left or time.monotonic()
        ask_to_stop(group, job.asked)
        if time.monotonic() - job.left > GRACE:
            kill(group)
        return True

    def tell_guard(self, group: int) -> None:
        """Say that `group` has begun, or has ended."""
        assert self.guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard; the stages can do without
            self.guard.stdin.write(b"%d\n" % group)
            self.guard.stdin.flush()


def misses_cache(log: Path) -> bool:
    """Whether DVC could not put an output into its cache. On a full disk it can say so and still exit with 0."""
    return re.search(r"^ERROR: .*(failed to transfer|not in cache)", log.read_text(errors="replace"), re.M) is not None


def environment(slot: Slot) -> dict[str, str]:
    """This process's environment and the slot's; `python` in dvc.yaml is the python that runs this."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **slot}
