"""Run cells as tasks of Ray."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster.cells import Task, install_line
from pipeline.errors import ParamsError
from pipeline.runner.engine import Order

RETRIES = 3  # Ray's own, when a worker or a node is lost


class RayCells:
    """Queues cells in Ray, which gives each its GPUs or cores and restarts it when its worker is lost."""

    name = "ray"

    def __init__(self, order: Order) -> None:
        try:
            import ray
        except ImportError:
            raise install_line("ray") from None
        self.ray: Any = ray
        self.most = order.count  # cells at a time, if somebody said so
        self.held: list[Task] = []  # until fewer cells run
        self.cells: set[str] = set()  # that were submitted
        self.tasks: dict[Any, str] = {}  # reference of a task -> its cell; of a cell that was lost, several
        self.connect(order.address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus, cores = ([int(node.get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
        wanted = self.gpus_per_cell(order, max(gpus, default=0))
        threads = max(1, min(order.threads, max(cores, default=0)))  # a task that fits no node would wait for ever
        needs = {"num_gpus": wanted, "num_cpus": 0} if wanted else {"num_cpus": threads}
        # By default Ray ends its process after each task with a GPU (max_calls=1): 12 tasks took 39 s instead of 2.
        # Ray tries again when a worker is lost, and not when a cell fails.
        options = {**needs, "max_calls": 0, "max_retries": RETRIES, "retry_exceptions": False}
        self.run = ray.remote(**options)(run_task)
        size = sum(each // wanted for each in gpus) if wanted else sum(each // threads for each in cores)
        count = order.count or max(1, size)
        self.place = f"on Ray, {count} cells at a time on {len(nodes)} node{'s' * (len(nodes) != 1)}"

    def connect(self, address: str | None) -> None:
        """Connect to the Ray at `address`, or start one that ends with this process. Raises ParamsError on failure."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if address and (place := re.fullmatch(r"([\w.-]+):(\d+)", address)):
                # Ray itself ends this process without a useful message.
                socket.create_connection((place[1], int(place[2])), timeout=10).close()
            self.ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, OverflowError, OSError) as error:
            raise ParamsError(
                f"--address: no Ray answers at {address!r} ({str(error).splitlines()[0]}). `ray status` and "
                f"`ray start --head` print the address of one that runs."
            ) from None

    def gpus_per_cell(self, order: Order, available: int) -> int:
        """How many GPUs a cell gets. Raises ParamsError when it asks for more than a node has: `available`."""
        device, wanted = order.params.device, order.params.gpus_per_cell
        if device == "cpu" or (device == "auto" and not available):
            return 0
        if available < wanted:
            raise ParamsError(
                f"params.yaml: runtime.device: got {device!r} with gpus_per_cell {wanted}, "
                f"but no node of this Ray has more than {available} GPUs"
            )
        return wanted

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue `tasks`; those beyond the number of cells at a time once others have ended."""
        self.held += tasks
        self.cells |= {task.cell for task in tasks}
        self.release()

    def release(self) -> set[str]:
        """Give to Ray what is held, as far as it may run. Returns the cells whose task waits there or runs."""
        left = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)[1] if self.tasks else []
        busy = {self.tasks[reference] for reference in left}
        while self.held and (self.most is None or len(busy) < self.most):
            task = self.held.pop(0)
            reference = self.run.remote(str(Path.cwd()), task.command, os.environ.get("MLFLOW_TRACKING_URI"))
            self.tasks[reference] = task.cell
            busy.add(task.cell)
        return busy

    def over(self) -> set[str]:
        """The cells whose task has ended in any way, or was withdrawn."""
        return self.cells - self.release() - {task.cell for task in self.held}

    def token(self, cell: str) -> str:  # noqa: ARG002
        """An empty name: a task ends with the runner that queued it."""
        return ""

    def recall(self, tokens: Mapping[str, str]) -> set[str]:  # noqa: ARG002
        """No cells: those of an earlier runner have ended with it."""
        return set()

    def ask_to_stop(self) -> None:
        """Withdraw what is held. A task that waits in Ray sees at once that it has to stop."""
        self.held.clear()

    def kill(self) -> None:
        """End the processes of all tasks."""
        self.held.clear()
        for reference in self.tasks:
            self.ray.cancel(reference, force=True)

    def close(self) -> None:
        """Disconnect from Ray, which ends if it was started here."""
        self.ray.shutdown()


def run_task(folder: str, command: tuple[str, ...], tracking: str | None) -> int:
    """Run `command` of this python in `folder`, from a process of Ray. Returns the exit code."""
    variables = {**os.environ}
    variables.pop("OMP_NUM_THREADS", None)  # set by Ray; another number of threads can change the bits
    if tracking:
        variables["MLFLOW_TRACKING_URI"] = tracking
    return subprocess.run([sys.executable, *command], cwd=folder, env=variables, check=False).returncode
