"""What the runner asks of an engine: a way to run stages, on this machine or on others."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pipeline.settings.schema import RuntimeConfig


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


EngineFactory = Callable[[Order], Engine]
