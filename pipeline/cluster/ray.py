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

    def __init__(self, order: Order) -> None:
        try:
            import ray
        except ImportError:
            raise install_line("ray") from None
        self.ray: Any = ray
        self.waiting: dict[Any, str] = {}  # reference of a task -> its cell
        self.connect(order.address)
        total = ray.cluster_resources()
        gpus = self.gpus_per_cell(order, total)
        needs = {"num_gpus": gpus, "num_cpus": 0} if gpus else {"num_cpus": order.threads}
        # By default Ray ends its process after each task with a GPU (max_calls=1): 12 tasks took 39 s instead of 2.
        # Ray tries again when a worker is lost, and not when a cell fails.
        options = {**needs, "max_calls": 0, "max_retries": RETRIES, "retry_exceptions": False}
        self.run = ray.remote(**options)(run_task)
        size = int(total["GPU"]) // gpus if gpus else int(total.get("CPU", 1)) // order.threads
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.place = f"on Ray, {order.count or max(1, size)} cells at a time on {nodes} node{'s' * (nodes != 1)}"

    def connect(self, address: str | None) -> None:
        """Connect to the Ray at `address`, or start one that ends with this process. Raises ParamsError on failure."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if address and (place := re.fullmatch(r"([\w.-]+):(\d+)", address)):
                # Ray itself ends this process without a useful message.
                socket.create_connection((place[1], int(place[2])), timeout=10).close()
            self.ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ParamsError(
                f"--address: no Ray answers at {address!r} ({str(error).splitlines()[0]}). `ray status` and "
                f"`ray start --head` print the address of one that runs."
            ) from None

    def gpus_per_cell(self, order: Order, total: dict[str, float]) -> int:
        """How many GPUs a cell gets. Raises ParamsError when it asks for more than Ray has."""
        device, wanted, available = order.params.device, order.params.gpus_per_cell, int(total.get("GPU", 0))
        if device == "cpu" or (device == "auto" and not available):
            return 0
        if available < wanted:
            raise ParamsError(
                f"params.yaml: runtime.device: got {device!r} with gpus_per_cell {wanted}, "
                f"but this Ray has {available} GPUs"
            )
        return wanted

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue `tasks`."""
        for task in tasks:
            reference = self.run.remote(str(Path.cwd()), task.command, os.environ.get("MLFLOW_TRACKING_URI"))
            self.waiting[reference] = task.cell

    def over(self) -> set[str]:
        """The cells whose task has ended in any way."""
        if not self.waiting:
            return set()
        done, _ = self.ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=0)
        again = {cell for reference, cell in self.waiting.items() if reference not in set(done)}
        return {self.waiting[reference] for reference in done} - again

    def token(self, cell: str) -> str:  # noqa: ARG002
        """An empty name: a task ends with the runner that queued it."""
        return ""

    def recall(self, tokens: Mapping[str, str]) -> set[str]:  # noqa: ARG002
        """No cells: those of an earlier runner have ended with it."""
        return set()

    def ask_to_stop(self) -> None:
        """Do nothing: a task that starts later sees at once that it has to stop."""

    def kill(self) -> None:
        """End the processes of all tasks."""
        for reference in self.waiting:
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
