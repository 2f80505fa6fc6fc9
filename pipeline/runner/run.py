"""Run what DVC finds out of date, as many stages at a time as there are slots.

Each stage runs as `dvc repro --single-item`, so DVC skips, caches and records as ever. A stage that fails takes only
what needs it with it; the tables are filled with what there is. Ctrl-C lets the trainings save, and the same command
goes on from there. `python -m pipeline.runner.status` shows the cells from any other shell.
"""

import argparse
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deeplab.errors import DataError
from pipeline.cluster.engines import ENGINES, Engine, Order
from pipeline.errors import ParamsError, run_command
from pipeline.results.readme import stale
from pipeline.runner.board import LOCK, only_runner, plan_board
from pipeline.runner.checks import check_names
from pipeline.runner.graph import Stage, State, deepest_first, outdated, read_stages, shorten, verdict
from pipeline.runner.local import misses_cache
from pipeline.runner.lockparts import recover
from pipeline.runner.repair import mend
from pipeline.runner.screen import Screen
from pipeline.settings.messages import unknown
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.settings.stage_names import kind_and_name

LOGS = Path("runs/.logs")
TICK = 0.1  # seconds between two looks at what runs
TAIL = 8  # lines of a failed stage's log that are shown
LISTED = 60.0  # seconds between two tables in a log file
AT_ONCE = 60.0  # seconds; what fails sooner has hardly begun


def run(targets: Sequence[str], count: int | None = None, on: str = "here", address: str | None = None) -> int:
    """Bring `targets` (all of dvc.yaml when empty) up to date in `count` slots of the engine `on`; the exit code."""
    params = load_params()  # its mistakes are clearer than DVC's, and a name in it may be no path
    check_names(params)
    prepare_engine = ENGINES[on]
    with only_runner(LOCK) as lock:
        for line in mend():
            print(line, flush=True)
        recover()
        stages = read_stages(targets)
        reasons = outdated(stages)
        if not reasons:
            print(f"up to date: {len(stages)} stages")
            check_page(stages)
            return 0
        order = Order(
            params=params.runtime,
            stages=tuple(reasons),
            count=count,
            address=address,
            threads=most_threads(params, reasons),
            logs=LOGS,
            lock=lock,
        )
        engine = prepare_engine(order)
        print(f"{len(reasons)} of {len(stages)} stages to run {engine.place}; logs in {LOGS}", flush=True)
        wanted = {name: stages[name] for name in reasons}
        board = plan_board(engine.place, stages, reasons)
        with noted_signals() as stops, engine, Screen(board, LOGS / "grid.log", LISTED) as screen:
            states = walk(wanted, engine, stops, screen)
        code = conclude(states, engine, stops)
        if code == 0:
            check_page(stages)
        return code


def check_page(stages: Iterable[str], places: Places = Places()) -> None:
    """Raise DataError when the README does not show the tables. DVC does not watch it."""
    for stage in stages:
        kind, dataset = kind_and_name(stage)
        exist = kind == "readme" and places.table(dataset).exists() and places.readme.exists()
        if exist and (message := stale(dataset, places)):
            raise DataError(message)


def show_plan(targets: Sequence[str]) -> int:
    """Print what would run and why."""
    check_names(load_params())
    stages = read_stages(targets)
    reasons = outdated(stages)
    width = max(map(len, reasons), default=0)
    for name, reason in reasons.items():
        print(f"{name:{width}}  {reason}")
    print(f"{len(reasons)} of {len(stages)} stages to run" if reasons else f"up to date: {len(stages)} stages")
    return 0


def walk(stages: Mapping[str, Stage], engine: Engine, stops: Sequence[int], screen: Screen) -> dict[str, State]:
    """Run `stages`, each when what it needs has ended, until all have or a signal is in `stops`. Returns their ends."""
    order = deepest_first(stages)
    states: dict[str, State] = {}
    failures = Failures()
    told = False

    def end(name: str, state: State, text: str) -> None:
        states[name] = state
        screen.board.set(name, state, text.strip(" :") if state != "done" else "")
        screen.say(f"{state:7} {name}{text} ({len(states)} of {len(stages)})")

    while engine.running or (len(states) < len(stages) and not stops):
        for name in order if not stops else ():
            if name in states or name in engine.running:
                continue
            decision = verdict(name, stages, states)
            if decision == "skip":
                end(name, "skipped", because(stages[name], states))
            elif decision == "start" and (alike := failures.alike(name, len(engine.free) + len(engine.running))):
                end(name, "skipped", f": {alike}")
            elif decision == "start" and engine.free:
                engine.start(name)
                screen.board.set(name, "running")
                screen.say(f"start   {name}")
        if stops and not told:
            told = True
            screen.say("stop    what runs may save first; a second signal ends it at once")
        if len(stops) > 1:
            engine.kill()
        elif stops:
            engine.ask_to_stop()
        for name, code, seconds in engine.ended():
            if code == 0 and not misses_cache(engine.log(name)):
                failures.forget(name)
                end(name, "done", f" {seconds:.0f} s")
            elif stops:
                end(name, "stopped", f" after {seconds:.0f} s")
            else:
                lost = misses_cache(engine.log(name))
                message = "DVC's cache did not take the result" if lost else last_message(engine.log(name))
                failures.note(name, message, seconds)
                end(name, "failed", f" after {seconds:.0f} s: {message}")
        screen.show()
        time.sleep(TICK)
    return states


class Failures:
    """Notices when all stages of a kind fail at once and alike, so that the runner need not try every cell."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}  # kind of stage -> messages since the last success

    def note(self, name: str, message: str, seconds: float) -> None:
        """Note the failure of a stage."""
        kind, cell = kind_and_name(name)
        if seconds < AT_ONCE:
            self.seen.setdefault(kind, []).append(message.replace(cell, "*") if cell else message)
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Start over: a stage of this kind got somewhere."""
        self.seen.pop(kind_and_name(name)[0], None)

    def alike(self, name: str, slots: int) -> str:
        """Why stage `name` is not worth a try, or nothing; every slot has to have failed once, two cells at least."""
        messages = self.seen.get(kind_and_name(name)[0], [])
        if len(messages) < max(2, slots) or len(set(messages)) > 1:
            return ""
        return f"not tried, for {len(messages)} others failed at once alike: {messages[0]}"


def because(stage: Stage, states: Mapping[str, State]) -> str:
    """What kept `stage` from running."""
    return ": " + shorten([f"{need} {states[need]}" for need in stage.needs if states.get(need, "done") != "done"])


def conclude(states: Mapping[str, State], engine: Engine, stops: Sequence[int]) -> int:
    """Print what failed, with the end of its log, and what can go on. Returns the exit code."""
    failed, stopped, done = ([name for name in states if states[name] == end] for end in ("failed", "stopped", "done"))
    for name in failed:
        log = engine.log(name)
        print(f"\n{name} failed ({log}):")
        print("\n".join(f"    {line}" for line in read_log(log).splitlines()[-TAIL:] if line.strip()))
        if misses_cache(log):
            print(f"    DVC's cache did not take the result. Free some space, then keep it with: dvc commit -f {name}")
    print(f"\n{len(done)} stages done" + f", {len(failed)} failed: {', '.join(failed)}" * bool(failed), flush=True)
    if stops:
        print(f"stopped {', '.join(stopped) or 'between two stages'}. The same command goes on from here.", flush=True)
        return 128 + stops[0]
    return 1 if failed else 0


def last_message(log: Path) -> str:
    """The line of a failed stage's log that says why: its own error, else what stands before DVC's."""
    lines = [line for line in read_log(log).splitlines() if line.strip() and not line.startswith("ERROR: failed to")]
    own = [line for line in lines if re.match(r"(error|\w*Error):", line)]
    return (own or lines or [""])[-1].strip()[:300]


def read_log(log: Path) -> str:
    """What stands in a log, if it was begun."""
    return log.read_text(errors="replace") if log.exists() else ""


def most_threads(params: Params, names: Mapping[str, object]) -> int:
    """The most threads that one of the stages `names` computes with."""
    cells = [params.cells[cell] for _, cell in map(kind_and_name, names) if cell in params.cells]
    return max((cell.train.threads for cell in cells), default=1)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals to stop that have come in so far, instead of dying of the first."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="stage, glob or examples/dvc.yaml, with all it needs; default: all"
    )
    parser.add_argument("--slots", type=int, help="stages at a time; default: one per GPU, else what the cores hold")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run and why")
    parser.add_argument("--keep-going", action="store_true", help="go on past a failed cell; this is always so")
    parser.add_argument("--on", default="here", metavar="ENGINE", help=f"where to run: {', '.join(ENGINES)}")
    parser.add_argument("--address", help="of a running Ray, as `ray start --head` prints it; default: one of its own")
    parser.add_argument("--doctor", action="store_true", help="only check locks, cache, GPUs, tracking and data")
    arguments = parser.parse_args()
    try:
        if arguments.on not in ENGINES:
            raise ParamsError(f"--on: {unknown(arguments.on, ENGINES)}")
        if arguments.slots is not None and arguments.slots < 1:
            raise ParamsError(f"--slots: got {arguments.slots}, expected 1 or more")
        if arguments.address and arguments.on != "ray":
            raise ParamsError(f"--address: got {arguments.address!r}, which belongs to --on ray")
        if arguments.doctor:
            from pipeline.cluster.doctor import examine

            sys.exit(examine(arguments.on, arguments.address))
        if arguments.dry_run:
            sys.exit(show_plan(arguments.targets))
        sys.exit(run(arguments.targets, arguments.slots, arguments.on, arguments.address))
    except KeyboardInterrupt:  # while planning: nothing runs yet
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run_command(main)
