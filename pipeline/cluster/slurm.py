"""Run cells as jobs of Slurm, submitted by submitit. Cells that are ready together become one array."""

import getpass
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster.cells import STOPPED, Task, install_line
from pipeline.cluster.worker import STOP
from pipeline.errors import ParamsError
from pipeline.runner.engine import Order
from pipeline.settings.places import Places

FOLDER = Places().runs / ".slurm"  # the scripts and logs of submitit
ASK = 5.0  # seconds between two calls of squeue, or of scancel
TAKEN_AWAY = 300.0  # seconds until Slurm ends a preempted job
TIMEOUTS = 1000  # how often a job that runs out of time is queued again: it resumes from its checkpoint


class SlurmCells:
    """Queues cells in Slurm. Files say how they end, because not every cluster keeps accounts (`sacct`)."""

    name = "slurm"

    def __init__(self, order: Order) -> None:
        try:
            from submitit import SlurmExecutor
        except ImportError:
            raise install_line("slurm") from None
        if not shutil.which("sbatch"):
            raise ParamsError("--on slurm: sbatch not found. Run the command on a login node of the cluster.")
        settings = order.params.slurm
        parameters: dict[str, Any] = {
            "job_name": "deeplab",
            "time": settings.time,
            "cpus_per_task": settings.cpus,
            "array_parallelism": order.count or 256,
            "additional_parameters": {"requeue": True, "open-mode": "append", **settings.options},
        }
        if settings.partition:
            parameters["partition"] = settings.partition
        if order.params.device != "cpu":
            parameters["gpus_per_node"] = order.params.gpus_per_cell
        self.executor = SlurmExecutor(FOLDER, max_num_timeout=TIMEOUTS, python=sys.executable)
        self.executor.update_parameters(**parameters)
        self.jobs: dict[str, str] = {}  # cell -> id of its last job
        self.listed: dict[str, str] = {}  # id -> state, of all jobs of this user
        self.asked = self.killed = float("-inf")
        self.place = "on Slurm, a job per cell"

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue `tasks`, as one array if they are several."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with self.executor.batch():
                jobs = [self.executor.submit(Job(), str(Path.cwd()), task.command) for task in tasks]
        except (FailedJobError, FailedSubmissionError) as error:
            raise ParamsError(f"params.yaml: runtime.slurm: Slurm refuses the job: {message(error)}") from None
        self.jobs.update({task.cell: str(job.job_id) for task, job in zip(tasks, jobs, strict=True)})
        self.asked = float("-inf")

    def over(self) -> set[str]:
        """The cells whose job Slurm no longer lists."""
        if time.monotonic() - self.asked > ASK:
            command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
            asked = subprocess.run(command, capture_output=True, text=True, check=False)
            if asked.returncode:  # the controller does not answer
                return set()
            self.listed = dict(line.split() for line in asked.stdout.splitlines())
            self.asked = time.monotonic()
        return {cell for cell, job in self.jobs.items() if job not in self.listed}

    def token(self, cell: str) -> str:
        """The id of the job of `cell`."""
        return self.jobs[cell]

    def recall(self, tokens: Mapping[str, str]) -> set[str]:
        """The cells of an earlier runner whose jobs still wait or run. They are watched from now on."""
        before = self.jobs
        self.jobs, self.asked = dict(tokens), float("-inf")
        alive = set(tokens) - self.over()
        self.jobs = {**before, **{cell: tokens[cell] for cell in alive}}
        return alive

    def ask_to_stop(self) -> None:
        """Withdraw the jobs that have not begun, once for each time that Slurm lists them."""
        self.over()
        if waiting := [job for job in self.jobs.values() if self.listed.get(job) == "PENDING"]:
            subprocess.run(["scancel", "--state=PENDING", *waiting], capture_output=True, check=False)
            self.listed.update(dict.fromkeys(waiting, "WITHDRAWN"))

    def kill(self) -> None:
        """End all jobs. The runner calls this ten times a second, and Slurm is asked every ASK seconds."""
        if self.jobs and time.monotonic() - self.killed > ASK:
            self.killed = time.monotonic()
            subprocess.run(["scancel", *self.jobs.values()], capture_output=True, check=False)

    def close(self) -> None:
        """Do nothing: there is no connection."""


class Job:
    """What submitit runs, and runs again when the job is queued again."""

    def __call__(self, folder: str, command: tuple[str, ...]) -> int:
        """Run `command` of this python in `folder`. Returns the exit code."""
        code = subprocess.run([sys.executable, *command], cwd=folder, check=False).returncode
        stop = Path(folder, command[command.index("--call") + 1], STOP)
        if code == STOPPED and not stop.exists():
            # Slurm has signalled all processes of the job and is about to queue it again. Returning now would report
            # an end.
            time.sleep(TAKEN_AWAY)
        return code

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit queues again when the time is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def message(error: Exception) -> str:
    """The message of sbatch, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith("sbatch: ")]
    return " ".join(lines).replace("sbatch: ", "") or str(error).strip().partition("\n")[0]
