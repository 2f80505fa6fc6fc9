"""Run the stages that DVC finds out of date, as many at a time as there are slots.

Each stage runs as `dvc repro --single-item`, so skipping, caching and recording stay with DVC. A stage that fails takes
only what needs it with it, and the tables are filled with what there is. Ctrl-C lets the trainings save, and the same
command continues from there. `grid status` shows the cells from any other shell.
"""

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from pipeline.errors import ParamsError
from pipeline.results.readme import check_pages
from pipeline.runner.board import only_runner, plan_board
from pipeline.runner.checks import check_markers, check_names, check_readme, uncommitted_line
from pipeline.runner.engine import Engine, EngineFactory, Order
from pipeline.runner.graph import Stage, State, deepest_first, outdated, read_stages, shorten, verdict
from pipeline.runner.local import dvc_command, environment, misses_cache
from pipeline.runner.repair import repair
from pipeline.runner.status import Screen
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.settings.stage_names import kind_and_name

LOGS = Path("runs/.logs")
CHECK = "check"  # the stage that all others need
TICK = 0.1  # seconds between two looks at what runs
TAIL = 8  # lines of the log of a failed stage that are shown
LISTED = 60.0  # seconds between two tables in a log file
AT_ONCE = 60.0  # seconds; a stage that fails sooner has hardly begun


def run(targets: Sequence[str], engine_of: EngineFactory, count: int | None = None, address: str | None = None) -> int:
    """Bring `targets` (by default all of dvc.yaml) up to date in `count` slots. Returns the exit code.

    Raises ParamsError for a mistake in params.yaml or the targets, BusyError while another runner works here, DataError
    when the README cannot show its tables, or shows something else.
    """
    params = load_settings()
    with only_runner() as lock:
        for line in repair():
            print(line, flush=True)
        stages = read_fresh_stages(targets, starts_after(params))
        reasons = outdated(stages)
        if reasons:
            check_markers(reasons)
            check_pages(params, Places())
            if line := uncommitted_line(reasons):
                print(line, flush=True)
            order = Order(
                params=params.runtime,
                stages=tuple(reasons),
                count=count,
                address=address,
                threads=most_threads(params, reasons),
                logs=LOGS,
                lock=lock,
            )
            code = run_stages(stages, reasons, engine_of(order))
        else:
            print(f"up to date: {len(stages)} stages")
            code = 0
        if code == 0:
            check_readme(stages)
        return code


def run_stages(stages: Mapping[str, Stage], reasons: Mapping[str, str], engine: Engine) -> int:
    """Run the stages in `reasons` on `engine`, with a live view. Returns the exit code."""
    print(f"{len(reasons)} of {len(stages)} stages to run {engine.place}; logs in {LOGS}", flush=True)
    board = plan_board(engine.place, stages, reasons)
    with noted_signals() as stops, engine, Screen(board, LOGS / "grid.log", LISTED) as screen:
        states = Walk({name: stages[name] for name in reasons}, engine, stops, screen).run()
    return conclude(states, engine, stops)


def load_settings() -> Params:
    """params.yaml, with all names checked: its errors are clearer than DVC's, and no odd name becomes a path."""
    places = Places()
    places.require_own(places.data, places.runs, places.reports)
    params = load_params()
    check_names(params)
    return params


def starts_after(params: Params) -> dict[str, str]:
    """What dvc.yaml cannot say for some rows only: the training of a cell that starts from another -> that training,
    and an evaluation on further splits -> what prepares them.
    """
    parents = {name: cell.init.cell for name, cell in params.cells.items() if cell.init and cell.init.cell}
    further = {name: cell.dataset for name, cell in params.cells.items() if cell.dataset in params.eval_splits}
    return {
        **{params.stage("train", name): params.stage("train", parent) for name, parent in parents.items()},
        **{params.stage("evaluate", name): params.stage("extend", dataset) for name, dataset in further.items()},
    }


def read_fresh_stages(targets: Sequence[str], after: Mapping[str, str] = MappingProxyType({})) -> dict[str, Stage]:
    """The stages of `targets`, after the stage `check` is up to date; `after` as in `read_stages`.

    It writes the hashes of the code, on which all others depend: a comment would otherwise leave every stage waiting
    for it. Raises ParamsError when it fails.
    """
    stages = read_stages(targets, after)
    if CHECK not in stages or not stages[CHECK].changes:
        return stages
    done = subprocess.run(dvc_command(CHECK), env=environment({}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParamsError(last_message(done.stdout + done.stderr).removeprefix("error: "))
    stages = read_stages(targets, after)
    return stages | {CHECK: replace(stages[CHECK], changes="")}  # of a project outside the code it always has changes


class Walk:
    """Runs stages in an engine, each when everything it needs has ended, until all have or a signal comes."""

    def __init__(self, stages: Mapping[str, Stage], engine: Engine, stops: Sequence[int], screen: Screen) -> None:
        """`stops` collects the signals that ask to stop."""
        self.stages, self.engine, self.stops, self.screen = stages, engine, stops, screen
        self.order = deepest_first(stages)
        self.states: dict[str, State] = {}
        self.failures = Failures()
        self.is_stopping = False

    def run(self) -> dict[str, State]:
        """Run all. Returns how each stage ended."""
        while self.engine.running or (len(self.states) < len(self.stages) and not self.stops):
            if self.stops:
                self.stop()
            else:
                self.start()
            for name, code, seconds in self.engine.ended():
                self.note(name, code, seconds)
            self.screen.show()
            time.sleep(TICK)
        return self.states

    def start(self) -> None:
        """Start every stage that is ready, and skip those that cannot run."""
        for name in self.order:
            if name in self.states or name in self.engine.running:
                continue
            decision = verdict(name, self.stages, self.states)
            slots = len(self.engine.free) + len(self.engine.running)
            if decision == "skip":
                self.end(name, "skipped", because(self.stages[name], self.states))
            elif decision == "start" and (alike := self.failures.alike(name, slots)):
                self.end(name, "skipped", f": {alike}")
            elif decision == "start" and self.engine.free:
                self.engine.start(name)
                self.screen.board.set(name, "running")
                self.screen.say(f"start   {name}")

    def stop(self) -> None:
        """Ask what runs to save and stop; after a second signal end it at once."""
        if not self.is_stopping:
            self.is_stopping = True
            self.screen.say("stop    running stages save first; a second signal ends them at once")
        if len(self.stops) > 1:
            self.engine.kill()
        else:
            self.engine.ask_to_stop()

    def note(self, name: str, code: int, seconds: float) -> None:
        """Note how a stage has ended."""
        log = read_log(self.engine.log(name))
        if code == 0 and not misses_cache(log):
            self.failures.forget(name)
            self.end(name, "done", f" {seconds:.0f} s" + (" from cache" if came_from_cache(log) else ""))
        elif self.stops:
            self.end(name, "stopped", f" after {seconds:.0f} s")
        else:
            message = "DVC could not cache the result" if misses_cache(log) else last_message(log)
            self.failures.note(name, message, seconds)
            self.end(name, "failed", f" after {seconds:.0f} s: {message}")

    def end(self, name: str, state: State, text: str) -> None:
        """Note the final state of a stage, and show it."""
        self.states[name] = state
        self.screen.board.set(name, state, text.strip(" :") if state != "done" else "")
        self.screen.say(f"{state:7} {name}{text} ({len(self.states)} of {len(self.stages)})")


class Failures:
    """Notices when all cells fail at once and alike, so that not every cell is tried.

    Data sets are all tried: when two of them lack their archives, a third one may have them.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}  # kind of stage -> messages since the last success

    def note(self, name: str, message: str, seconds: float) -> None:
        """Note the failure of a stage."""
        kind, cell = kind_and_name(name)
        if kind in ("train", "evaluate") and seconds < AT_ONCE:
            self.seen.setdefault(kind, []).append(message.replace(cell, "*"))
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Start over: a stage of this kind made progress."""
        self.seen.pop(kind_and_name(name)[0], None)

    def alike(self, name: str, slots: int) -> str:
        """Why stage `name` is not worth a try, or "": each slot, and at least two cells, must have failed."""
        messages = self.seen.get(kind_and_name(name)[0], [])
        if len(messages) < max(2, slots) or len(set(messages)) > 1:
            return ""
        return f"not tried, because {len(messages)} others failed at once alike: {messages[0]}"


def because(stage: Stage, states: Mapping[str, State]) -> str:
    """What kept `stage` from running, as text."""
    return ": " + shorten([f"{need} {states[need]}" for need in stage.needs if states.get(need, "done") != "done"])


def conclude(states: Mapping[str, State], engine: Engine, stops: Sequence[int]) -> int:
    """Print what failed, with the end of its log, and how to continue. Returns the exit code."""
    failed, stopped, done = ([name for name in states if states[name] == end] for end in ("failed", "stopped", "done"))
    for name in failed:
        log = read_log(engine.log(name))
        print(f"\n{name} failed ({engine.log(name)}):")
        print("\n".join(f"    {line}" for line in log.splitlines()[-TAIL:] if line.strip()))
        if misses_cache(log):
            print(f"    DVC could not cache the result. Free some space, then keep it with: dvc commit -f {name}")
    failures = f", {len(failed)} failed: {', '.join(failed)}" if failed else ""
    print(f"\n{len(done)} stages done{failures}", flush=True)
    if stops:
        where = ", ".join(stopped) or "between two stages"
        print(f"stopped {where}. The same command continues from here.", flush=True)
        return 128 + stops[0]
    return 1 if failed else 0


def last_message(text: str) -> str:
    """The line of the output of a failed stage that says why: its own error, else the line before DVC's."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("ERROR: failed to")]
    own = [line for line in lines if re.match(r"(error|\w*Error):", line)]
    return (own or lines or [""])[-1].strip()[:300]


def came_from_cache(log: str) -> bool:
    """Whether DVC took the result of a stage from its run cache instead of running it."""
    return "' is cached - skipping run" in log


def read_log(log: Path) -> str:
    """The content of a log, "" when there is none."""
    return log.read_text(errors="replace") if log.exists() else ""


def most_threads(params: Params, names: Mapping[str, object]) -> int:
    """The largest number of threads that one of the stages `names` computes with."""
    cells = [params.cells[cell] for _, cell in map(kind_and_name, names) if cell in params.cells]
    return max((cell.train.threads for cell in cells), default=1)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop, instead of dying of the first."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
