"""Run cells on other machines and collect their results.

A cell runs there as `python -m pipeline.cluster.worker`, in a snapshot of the commit. When it has ended, `dvc repro`
takes the results of its stages from the cache into this folder. All other stages run here.
"""

import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

from deeplab.errors import WorkerError
from pipeline.cluster.snapshot import committed, keep_state
from pipeline.cluster.worker import STOP, note
from pipeline.errors import EXIT_CODES, BusyError, ParamsError, StoppedError
from pipeline.files import write_whole
from pipeline.process import cores
from pipeline.runner.dvc import has_result
from pipeline.runner.engine import Order
from pipeline.runner.local import Workers
from pipeline.settings.places import Places

CALLS = Places().runs / ".cells"  # a folder per call of the runner, on the file system that all machines share
CALL = "call.json"  # in such a folder: what was submitted
TRIES = 4  # of a cell whose worker was lost
POLL = 1.0  # seconds between two looks at the results
LATE = 10.0  # seconds that a file may need to appear on another machine
STOPPED, LOST = EXIT_CODES[StoppedError], EXIT_CODES[WorkerError]
NO_RESULT = (
    "error: the cache of DVC lacks the result of the worker, so the stage would run here again. Do all machines use "
    "the same cache (dvc cache dir), and was anything edited meanwhile? See docs/cluster.md."
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an engine runs: a command, in the current folder."""

    cell: str
    command: tuple[str, ...]


class Cells(Protocol):
    """What Ray and Slurm offer."""

    name: str  # after --on
    place: str

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue `tasks`."""

    def over(self) -> set[str]:
        """The submitted cells that no longer wait or run, by the engine's word."""

    def token(self, cell: str) -> str:
        """The name by which a later runner finds the submitted `cell`."""

    def recall(self, tokens: Mapping[str, str]) -> set[str]:
        """The cells of `tokens`, submitted by an earlier runner, that still wait or run. This one takes them over."""

    def ask_to_stop(self) -> None:
        """Withdraw what waits. What runs has been asked already. Can be called again."""

    def kill(self) -> None:
        """Withdraw what waits and end what runs."""

    def close(self) -> None:
        """Disconnect from the engine."""


@dataclass(kw_only=True)
class Unit:
    """A cell that was submitted."""

    kinds: tuple[str, ...]
    call: Path
    began: float = field(default_factory=time.monotonic)
    tries: int = 1
    over: float | None = None  # since when the engine has reported its end, without a result
    codes: dict[str, int] | None = None  # how its stages ended


class Remote:
    """An engine that trains and evaluates through `cells` and runs all other stages here."""

    def __init__(self, order: Order, cells: Cells) -> None:
        self.commit = committed(Path.cwd())
        self.order, self.cells = order, cells
        self.place = cells.place
        self.local = Workers([{} for _ in range(max(2, cores()))], order.logs, lock=order.lock)
        self.call = CALLS / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
        self.units: dict[str, Unit] = {}
        self.away: dict[str, Unit] = {}  # stages whose results are not collected yet
        self.fresh: list[str] = []  # cells to submit together
        self.looked = 0.0
        self.stopping = False

    def __enter__(self) -> "Remote":
        for call in sorted(CALLS.glob("*")):
            self.take_over(call)
        keep_state(Path(), self.call)
        self.local.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            (self.call / STOP).touch()
            self.cells.kill()
        self.local.__exit__(kind, error, at)
        self.cells.close()

    def take_over(self, call: Path) -> None:
        """Take over the cells that an earlier runner left running in `call`, or remove its folder.

        Raises BusyError when they run another commit, or stop, or may run on another engine.
        """
        try:
            earlier = json.loads((call / CALL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {"commit": self.commit, "cells": {}}
        tokens = {cell: token for cell, (token, _) in earlier["cells"].items()}
        if (engine := earlier.get("engine", self.cells.name)) != self.cells.name:
            require_ended(call, engine, tokens)
            tokens = {}
        alive = self.cells.recall(tokens)
        if not alive:
            shutil.rmtree(call, ignore_errors=True)
            return
        if earlier["commit"] != self.commit or (call / STOP).exists():
            jobs = ", ".join(f"{cell} ({earlier['cells'][cell][0]})" for cell in sorted(alive))
            raise BusyError(f"cells of another commit, or about to stop, still run: {jobs}. Wait for them or end them.")
        for cell in alive:
            self.units[cell] = Unit(kinds=tuple(earlier["cells"][cell][1]), call=call)

    def remember(self) -> None:
        """Write down what was submitted, for a later runner."""
        own = {cell: unit for cell, unit in self.units.items() if unit.call == self.call}
        cells = {cell: (self.cells.token(cell), unit.kinds) for cell, unit in own.items()}
        write_whole(self.call / CALL, json.dumps({"engine": self.cells.name, "commit": self.commit, "cells": cells}))

    @property
    def free(self) -> list[dict[str, str]]:
        """Slots for what runs here. A cell needs none."""
        return self.local.free

    @property
    def running(self) -> Collection[str]:
        """The stages that run, here or elsewhere."""
        return {*self.away, *self.local.running}

    def log(self, name: str) -> Path:
        """The file that gets the output of stage `name`, wherever it runs."""
        return self.local.log(name)

    def start(self, name: str) -> None:
        """Run stage `name`. The first stage of a cell submits the other one with it."""
        kind, _, cell = name.partition("@")
        if kind not in ("train", "evaluate"):
            self.local.start(name)
            return
        if cell not in self.units:
            kinds = tuple(each for each in ("train", "evaluate") if f"{each}@{cell}" in self.order.stages)
            self.units[cell] = Unit(kinds=kinds, call=self.call)
            self.fresh.append(cell)
            for each in kinds:
                self.log(f"{each}@{cell}").unlink(missing_ok=True)
        self.away[name] = self.units[cell]

    def ended(self) -> list[tuple[str, int, float]]:
        """Name, exit code and seconds of each stage that has ended since the last call."""
        if self.fresh and not self.stopping:
            self.cells.submit([self.task(cell) for cell in self.fresh])
            self.remember()
        self.fresh.clear()
        if time.monotonic() - self.looked > POLL:
            self.looked = time.monotonic()
            self.look()
        ends = []
        for name, unit in list(self.away.items()):
            if unit.codes is None:
                continue
            code = unit.codes.get(name.partition("@")[0], STOPPED)
            if not code and not self.local.free:
                continue
            del self.away[name]
            if code or not self.collect(name):
                ends.append((name, code or EXIT_CODES[OSError], time.monotonic() - unit.began))
        for name, code, seconds in self.local.ended():
            cell = name.partition("@")[2]
            since = self.units[cell].began if cell in self.units else time.monotonic() - seconds
            ends.append((name, code, time.monotonic() - since))
        return ends

    def look(self) -> None:
        """Read the results that cells have left, and submit those again whose worker was lost."""
        waiting = {cell: unit for cell, unit in self.units.items() if unit.codes is None}
        over = self.cells.over() if waiting else set()
        for cell, unit in waiting.items():
            result = unit.call / f"{cell}.json"
            if result.exists():
                unit.codes = json.loads(result.read_text(encoding="utf-8"))["codes"]
            elif cell not in over:
                unit.over = None
            elif self.stopping:
                unit.codes = dict.fromkeys(unit.kinds, STOPPED)
            else:
                unit.over = unit.over or time.monotonic()
                if time.monotonic() - unit.over > LATE:
                    self.submit_again(cell, unit)

    def submit_again(self, cell: str, unit: Unit) -> None:
        """Submit a cell whose worker was lost, or give it up."""
        log = self.log(f"{unit.kinds[0]}@{cell}")
        unit.over = None
        if unit.tries == TRIES:
            note(log, f"error: {cell}: its worker was lost {TRIES} times without a result")
            unit.codes = dict.fromkeys(unit.kinds, LOST)
            return
        unit.tries, unit.call = unit.tries + 1, self.call
        note(log, f"--- the worker of {cell} was lost; try {unit.tries} of {TRIES} resumes from the last checkpoint")
        self.fresh.append(cell)

    def task(self, cell: str) -> Task:
        """The command of a cell."""
        places = ("--commit", self.commit, "--call", str(self.units[cell].call), "--logs", str(self.order.logs))
        return Task(cell=cell, command=("-m", "pipeline.cluster.worker", cell, *self.units[cell].kinds, *places))

    def collect(self, name: str) -> bool:
        """Let `dvc repro` take the result of `name` from the cache. False, with an error in its log, without one."""
        if not has_result(name):
            note(self.log(name), NO_RESULT)
            return False
        note(self.log(name), "--- collected from DVC's cache")
        self.local.start(name, append=True)
        return True

    def ask_to_stop(self) -> None:
        """Ask what runs to save and stop."""
        if not self.stopping:
            self.stopping = True
            for call in {self.call, *(unit.call for unit in self.units.values())}:
                (call / STOP).touch()
        self.cells.ask_to_stop()

    def kill(self) -> None:
        """End what runs at once."""
        self.ask_to_stop()
        self.cells.kill()
        self.local.kill()


def require_ended(call: Path, engine: str, tokens: Mapping[str, str]) -> None:
    """Raise BusyError when cells of `call` may still run on another `engine`, which is not asked here."""
    left = [f"{cell} ({token})" for cell, token in tokens.items() if token and not (call / f"{cell}.json").exists()]
    if left and not (call / STOP).exists():
        raise BusyError(
            f"cells on {engine} may still run: {', '.join(left)}. Continue with --on {engine}, or end them and remove "
            f"{call}."
        )


def install_line(engine: str) -> ParamsError:
    """The error for an engine that is not installed."""
    return ParamsError(f"--on {engine}: not installed. Install it with: uv pip install {PACKAGES[engine]}")


# The same versions as in pyproject.toml.
PACKAGES = {"ray": "ray==2.60.0", "slurm": "submitit==1.5.4"}
