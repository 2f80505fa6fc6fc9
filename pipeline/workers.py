"""Stages as child processes of this machine, at most one per slot.

Another engine has to offer what Workers does: `free`, `running`, `start`, `ended`, `ask_to_stop` and `kill`.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pipeline.guard import GRACE, ask_to_stop, kill, members

Slot = dict[str, str]  # what a slot adds to the environment of its stages


@dataclass(kw_only=True)
class Job:
    """A stage that runs."""

    process: subprocess.Popen[bytes]  # `dvc`, the leader of its process group
    slot: Slot
    began: float
    left: float | None = None  # when `dvc` ended and others of its group had not
    asked: set[int] = field(default_factory=set)


class Workers:
    """Runs each stage as `dvc repro --single-item`, so that skipping, run cache and dvc.lock stay DVC's own."""

    def __init__(self, slots: list[Slot], logs: Path) -> None:
        self.free, self.logs = list(slots), logs
        self.running: dict[str, Job] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Workers":
        guard = [sys.executable, "-m", "pipeline.guard"]
        self.guard = subprocess.Popen(guard, stdin=subprocess.PIPE, env=environment({}), start_new_session=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave nothing behind: the guard stops what an exception has left running."""
        self.guard.communicate()

    def start(self, name: str) -> None:
        """Run stage `name` in a free slot; what it prints goes to its log."""
        slot = self.free.pop(0)
        # --wait-for-lock: without it half of twelve calls at once fail. It has to stand before the verb.
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(slot),
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


def find_slots(count: int | None, device: str, threads: int) -> list[Slot]:
    """`count` slots; without a count one per visible GPU, or else as many as the cores hold `threads`.

    device: as `runtime.device` in params.yaml; one that names a single GPU gets a single slot.
    """
    if device not in ("auto", "cuda") or not (gpus := visible_gpus()):
        fitting = cores() // threads if device in ("auto", "cpu") else 1
        return [{} for _ in range(count or max(1, fitting))]
    return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(count or len(gpus))]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Torch would know, after six seconds."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    found: list[str] = []
    for name in re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)", listed):
        if name.startswith("MIG") and found and found[-1].startswith("GPU"):
            found.pop()  # a GPU that is cut into slices is used by its slices
        found.append(name)
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(slot: Slot) -> dict[str, str]:
    """This process's environment and the slot's; `python` in dvc.yaml is the python that runs this."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **slot}
