"""Run what DVC finds out of date, as many stages at a time as there are slots.

Each stage runs as `dvc repro --single-item`, so DVC skips, caches and records as ever. A stage that fails takes only
what needs it with it; the tables are filled with what there is. Ctrl-C lets the trainings save, and the same command
goes on from there.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BusyError, ParamsError, run_command
from pipeline.params import Params, load_params
from pipeline.plan import Stage, State, deepest_first, outdated, read_stages, shorten, verdict
from pipeline.workers import Workers, find_slots

LOCK = Path("runs/.grid.lock")
LOGS = Path("runs/.logs")
TICK = 0.1  # seconds between two looks at what runs
TAIL = 8  # lines of a failed stage's log that are shown


def run(targets: Sequence[str], count: int | None = None, dry: bool = False) -> int:
    """Bring `targets` (all when empty) up to date in `count` slots, or only say what would run; the exit code."""
    if count is not None and count < 1:
        raise ParamsError(f"--slots: got {count}, expected 1 or more")
    params = load_params()  # its mistakes are clearer than DVC's, and a name in it may be no path
    if dry:
        return show_plan(targets)
    with only_runner(LOCK):
        stages = read_stages(targets)
        reasons = outdated(stages)
        if not reasons:
            print(f"up to date: {len(stages)} stages")
            return 0
        wanted = {name: stages[name] for name in reasons}
        slots = find_slots(count, params.runtime.device, most_threads(params, reasons))
        print(f"{len(reasons)} of {len(stages)} stages to run, {len(slots)} at a time; logs in {LOGS}", flush=True)
        with noted_signals() as stops, Workers(slots, LOGS) as workers:
            states = walk(wanted, workers, stops)
            return conclude(states, workers, stops)


def show_plan(targets: Sequence[str]) -> int:
    """Print what would run and why."""
    stages = read_stages(targets)
    reasons = outdated(stages)
    width = max(map(len, reasons), default=0)
    for name, reason in reasons.items():
        print(f"{name:{width}}  {reason}")
    print(f"{len(reasons)} of {len(stages)} stages to run" if reasons else f"up to date: {len(stages)} stages")
    return 0


def walk(stages: Mapping[str, Stage], workers: Workers, stops: Sequence[int]) -> dict[str, State]:
    """Run `stages`, each when what it needs has ended, until all have or a signal is in `stops`. Returns their ends."""
    order = deepest_first(stages)
    states: dict[str, State] = {}
    screen = Screen()
    told = False

    def end(name: str, state: State, text: str) -> None:
        states[name] = state
        screen.say(f"{state:7} {name}{text} ({len(states)} of {len(stages)})")

    while workers.running or (len(states) < len(stages) and not stops):
        for name in order if not stops else ():
            if name in states or name in workers.running:
                continue
            decision = verdict(name, stages, states)
            if decision == "skip":
                end(name, "skipped", because(stages[name], states))
            elif decision == "start" and workers.free:
                workers.start(name)
                screen.say(f"start   {name}")
        if stops and not told:
            told = True
            screen.say("stop    what runs may save first; a second signal ends it at once")
        if len(stops) > 1:
            workers.kill()
        elif stops:
            workers.ask_to_stop()
        for name, code, seconds in workers.ended():
            if code == 0 and not misses_cache(workers.log(name)):
                end(name, "done", f" {seconds:.0f} s")
            else:
                end(name, "stopped" if stops else "failed", f" after {seconds:.0f} s")
        screen.show([workers.log(name) for name in workers.running])
        time.sleep(TICK)
    return states


def because(stage: Stage, states: Mapping[str, State]) -> str:
    """What kept `stage` from running."""
    return ": " + shorten([f"{need} {states[need]}" for need in stage.needs if states.get(need, "done") != "done"])


def conclude(states: Mapping[str, State], workers: Workers, stops: Sequence[int]) -> int:
    """Print what failed, with the end of its log, and what can go on. Returns the exit code."""
    failed, stopped, done = ([name for name in states if states[name] == end] for end in ("failed", "stopped", "done"))
    for name in failed:
        log = workers.log(name)
        print(f"\n{name} failed ({log}):")
        print("\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-TAIL:] if line.strip()))
        if misses_cache(log):
            print(f"    DVC's cache did not take the result. Free some space, then keep it with: dvc commit -f {name}")
    print(f"\n{len(done)} stages done" + f", {len(failed)} failed: {', '.join(failed)}" * bool(failed), flush=True)
    if stops:
        print(f"stopped {', '.join(stopped) or 'between two stages'}. The same command goes on from here.", flush=True)
        return 128 + stops[0]
    return 1 if failed else 0


def misses_cache(log: Path) -> bool:
    """Whether DVC could not put an output into its cache. On a full disk it can say so and still exit with 0."""
    return re.search(r"^ERROR: .*(failed to transfer|not in cache)", log.read_text(errors="replace"), re.M) is not None


def most_threads(params: Params, names: Mapping[str, object]) -> int:
    """The most threads that one of the stages `names` computes with."""
    cells = [params.cells[cell] for cell in (name.partition("@")[2] for name in names) if cell in params.cells]
    return max((cell.train.threads for cell in cells), default=1)


class Screen:
    """One line per event; on a terminal also a last line that shows what the running stages said last."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.shown = 0.0

    def say(self, text: str) -> None:
        """Print `text` with the time."""
        print(f"{CLEAR if self.terminal else ''}{time.strftime('%H:%M:%S')} {text}", flush=True)

    def show(self, logs: Sequence[Path]) -> None:
        """Renew the last line, once a second."""
        if logs and self.terminal and time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            share = shutil.get_terminal_size().columns // len(logs) - len(" | ")
            print(CLEAR + " | ".join(last_line(log)[:share] for log in logs), end="", flush=True)


CLEAR = "\r\x1b[K"  # to the start of the line, and empty it


def last_line(log: Path) -> str:
    """What stands last in `log`."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 1000))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace").strip())
    return lines[-1]


@contextmanager
def only_runner(path: Path) -> Iterator[None]:
    """Hold the runner's lock. The kernel frees it when the process ends, however that happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BusyError(
                f"{path}: another runner (process {file.read().strip()}) is at work here. Wait for it, or end it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


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
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stage or glob, with all it needs; default: all")
    parser.add_argument("--slots", type=int, help="stages at a time; default: one per GPU, else what the cores hold")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run and why")
    arguments = parser.parse_args()
    try:
        sys.exit(run(arguments.targets, arguments.slots, arguments.dry_run))
    except KeyboardInterrupt:  # while planning: nothing runs yet
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run_command(main)
