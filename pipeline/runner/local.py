"""Stages as child processes of this machine, one per slot: a group of GPUs, or a share of the cores."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pipeline.errors import ParamsError
from pipeline.process import GRACE, ask_to_stop, cores, kill, members

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
    """Runs each stage as `dvc repro --single-item`, so that skipping, run cache and dvc.lock stay with DVC."""

    def __init__(self, slots: list[Slot], logs: Path, folder: Path = Path(), lock: int | None = None) -> None:
        """`folder` is the project in which the stages run.

        `lock` is the file of a lock that is held until the last stage has ended, also when this process is killed.
        """
        self.free, self.logs, self.folder = list(slots), logs, folder
        self.kept = () if lock is None else (lock,)
        self.place = f"here, {len(slots)} at a time"
        self.running: dict[str, Job] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Workers":
        guard = [sys.executable, "-m", "pipeline.runner.guard"]
        self.guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, env=environment({}), start_new_session=True, pass_fds=self.kept
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave nothing running: the guard stops what an exception left."""
        self.guard.communicate()

    def start(self, name: str, settings: Mapping[str, str] | None = None, append: bool = False) -> None:
        """Run stage `name` in a free slot, with `settings` added to its environment. Its output goes to its log."""
        slot = self.free.pop(0)
        with self.log(name).open("ab" if append else "wb") as log:
            process = subprocess.Popen(
                dvc_command(name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment({**slot, **(settings or {})}),
                process_group=0,  # Ctrl-C reaches the runner alone, which passes it on with care
                # Called in the new process, so that the guard knows it even when the runner is killed right now.
                preexec_fn=(lambda: self.tell_guard(os.getpid())) if self.guard.poll() is None else None,
            )
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
            self.tell_guard(-job.process.pid)
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
        """The file that gets the output of stage `name`."""
        return self.logs / f"{name}.log"

    def leaves_any(self, job: Job) -> bool:
        """Whether processes of the group outlive a `dvc` that has ended, as when it was killed. Stops them."""
        group = job.process.pid
        if not members(group):
            return False
        job.left = job.left or time.monotonic()
        ask_to_stop(group, job.asked)
        if time.monotonic() - job.left > GRACE:
            kill(group)
        return True

    def tell_guard(self, group: int) -> None:
        """Tell the guard that `group` has begun, or with a minus that it has ended."""
        assert self.guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard; the stages work without it
            os.write(self.guard.stdin.fileno(), b"%+d\n" % group)


def dvc_command(stage: str) -> list[str]:
    """The command that runs one stage. Without --wait-for-lock half of twelve such commands at once fail."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]


def misses_cache(log: str) -> bool:
    """Whether DVC could not put an output into its cache. On a full disk it may say so and still exit with 0."""
    return re.search(r"^ERROR: .*(failed to transfer|not in cache)", log, re.M) is not None


def environment(slot: Slot) -> dict[str, str]:
    """The environment of this process and of the slot. `python` in dvc.yaml is the python that runs this.

    Without PYTHONDONTWRITEBYTECODE, which images of containers set: each stage would compile DVC and torch again.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **slot}


def find_slots(count: int | None, device: str, threads: int, gpus_per_cell: int = 1) -> list[Slot]:
    """`count` slots; by default one per `gpus_per_cell` visible GPUs, else one per `threads` cores.

    `device` is `runtime.device` of params.yaml; one that names a single GPU gets a single slot. Raises ParamsError for
    GPUs that are missing.
    """
    gpus = [] if device == "cpu" else visible_gpus()
    if not gpus and device not in ("cpu", "auto"):
        raise ParamsError(
            f"params.yaml: runtime.device: got {device!r}, but no GPU is visible here (nvidia-smi, "
            f"CUDA_VISIBLE_DEVICES). Say `auto` or `cpu`, or run where there is one."
        )
    if not gpus:
        return [{} for _ in range(count or max(1, cores() // threads))]
    if device.startswith("cuda:"):
        return [{} for _ in range(count or 1)]  # the stage picks the GPU itself
    if len(gpus) < gpus_per_cell:
        raise ParamsError(
            f"params.yaml: runtime.gpus_per_cell: got {gpus_per_cell}, but {len(gpus)} GPUs are visible here"
        )
    groups = [",".join(gpus[start : start + gpus_per_cell]) for start in range(0, len(gpus), gpus_per_cell)]
    groups = groups[: len(gpus) // gpus_per_cell]  # the rest is too few for a cell
    return [{"CUDA_VISIBLE_DEVICES": groups[index % len(groups)]} for index in range(count or len(groups))]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES. Asking torch takes six seconds."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    found: list[str] = []
    for name in re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)", listed):
        if name.startswith("MIG") and found and found[-1].startswith("GPU"):
            found.pop()  # a GPU that is divided into slices is used through them
        found.append(name)
    return found
