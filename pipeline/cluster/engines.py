"""Where stages run: on this machine, or through Ray or Slurm on others."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pipeline.runner.local import Workers
from pipeline.runner.slots import find_slots
from pipeline.settings.schema import RuntimeConfig
from pipeline.settings.stage_names import kind_and_name


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an engine has to know before it begins."""

    params: RuntimeConfig
    stages: tuple[str, ...]  # all that is to run
    count: int | None  # stages at a time, if somebody said so
    address: str | None  # of a running cluster
    threads: int  # that a stage computes with on a CPU
    logs: Path
    lock: int | None  # the file of the runner's lock


class Engine(Protocol):
    """What the runner needs: `start` a stage by its name, then ask again and again which have `ended`."""

    place: str  # where and how many at a time, for a reader

    @property
    def free(self) -> Sequence[object]:
        """The slots that wait for a stage."""

    @property
    def running(self) -> Collection[str]:
        """The stages that run."""

    def __enter__(self) -> object: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave nothing behind."""

    def start(self, name: str) -> None:
        """Run stage `name`; there is a free slot."""

    def ended(self) -> list[tuple[str, int, float]]:
        """Name, exit code and seconds of each stage that has ended since the last call."""

    def ask_to_stop(self) -> None:
        """Ask what runs to save and stop; called again until nothing runs."""

    def kill(self) -> None:
        """End what runs at once."""

    def log(self, name: str) -> Path:
        """Where stage `name` writes what it prints."""


def here(order: Order) -> Engine:
    """Processes of this machine."""
    return Workers(local_slots(order), order.logs, lock=order.lock)


def local_slots(order: Order) -> list[dict[str, str]]:
    """The slots of this machine; a GPU is needed only where something trains or evaluates."""
    computes = any(kind_and_name(name)[0] in ("train", "evaluate") for name in order.stages)
    device = order.params.device if computes else "cpu"
    return find_slots(order.count, device, order.threads, order.params.gpus_per_cell)


def ray(order: Order) -> Engine:
    """Tasks of a Ray that runs already, or of one of its own."""
    from pipeline.cluster.cells import Remote
    from pipeline.cluster.ray import RayCells

    return Remote(order, RayCells(order))


def slurm(order: Order) -> Engine:
    """Jobs of Slurm, one per cell."""
    from pipeline.cluster.cells import Remote
    from pipeline.cluster.slurm import SlurmCells

    return Remote(order, SlurmCells(order))


ENGINES: dict[str, Callable[[Order], Engine]] = {"here": here, "ray": ray, "slurm": slurm}
