"""A whole grid of two cells, killed again and again, ends byte for byte where an undisturbed one does."""

import random
import re
import signal
import time
from dataclasses import dataclass

import pytest

from tests.faults.small_grid import (
    DVC,
    GRID,
    REPAIR,
    below,
    end_all,
    finish,
    kill_group,
    left_after,
    make,
    output,
    record,
    results,
    send,
    start,
    strays,
)  # fmt: skip

SEED = 7
KILL, TERM = signal.SIGKILL, signal.SIGTERM


@dataclass
class Moment:
    """When to kill whom: so many seconds (at random, at most) after `phase` was seen."""

    phase: str  # a key of SEEN, or the name of a stage
    span: float
    number: signal.Signals
    whom: str  # command (dvc, or the runner), stage (the process of one), all

    def __str__(self):
        return f"{self.number.name} to {self.whom}, at most {self.span} s after {self.phase}"


def newer(paths, since):
    for path in paths:
        try:
            if path.stat().st_mtime > since:
                return True
        except FileNotFoundError:
            continue
    return False


STAGES = ("download", "prepare", "train", "evaluate", "tables", "compare", "readme", "report")
# Within a stage: what is seen in the folder after a time.
SEEN = {
    "the start": ("download", lambda folder, since: True),
    "a step": ("train", lambda folder, since: newer(folder.glob("runs/.resume/*/*/history.csv"), since)),
    "a checkpoint is written": (
        "train",
        lambda folder, since: newer(folder.glob("runs/.resume/*/*/step-*.part"), since),
    ),
    "the last step": ("train", lambda folder, since: any(folder.glob("runs/.resume/*/*/weights.safetensors*"))),
    "weights are published": ("train", lambda folder, since: newer(folder.glob("runs/*/run.json"), since)),
}


MOMENTS = [
    Moment("the start", 3, KILL, "all"),
    Moment("prepare", 2, KILL, "command"),
    Moment("prepare", 3, TERM, "all"),
    Moment("train", 4, KILL, "command"),
    Moment("a step", 0.2, KILL, "all"),
    Moment("a checkpoint is written", 0, KILL, "stage"),
    Moment("a checkpoint is written", 0, KILL, "all"),
    Moment("a step", 0.2, TERM, "all"),
    Moment("a step", 0.2, TERM, "command"),
    Moment("the last step", 0.1, KILL, "all"),
    Moment("weights are published", 0.5, KILL, "command"),
    Moment("evaluate", 6, KILL, "command"),
    Moment("evaluate", 8, KILL, "all"),
    Moment("a checkpoint is written", 0.05, KILL, "command"),
    Moment("the start", 12, KILL, "all"),
    Moment("tables", 6, KILL, "stage"),
    Moment("tables", 10, KILL, "all"),
    Moment("tables", 12, KILL, "command"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = finish(make(tmp_path_factory.mktemp("undisturbed") / "grid", **PACE), DVC)
    return results(folder), record(folder)


PACE = {"checkpoint_every": 0.1, "tracking_every": 0.5}


def seen(moment, folder, process):
    """Wait for the phase, or a later stage when a kill came too late for it; False when the command ends before.

    What stages of the run before, which save and end, write meanwhile is not meant.
    """
    stage, look = SEEN.get(moment.phase, (moment.phase, lambda folder, since: False))
    due, began, since = STAGES.index(stage), time.time(), None
    while process.poll() is None:
        words = " ".join(" ".join(child.cmdline()) for child in below(process.pid, "-m pipeline."))
        running = [number for number, name in enumerate(STAGES) if f"-m pipeline.{name} " in words]
        if any(number > due or (number == due and stage == moment.phase) for number in running):
            return True
        if due in running or moment.phase == "the start":
            since = since or time.time()
        for _ in range(10):
            if since and look(folder, since):
                return True
            time.sleep(0.003)
        assert time.time() - began < 600, f"{moment.phase} not seen: {output(folder).read_text()[-3000:]}"
    return False


def strike(moment, folder, process, pause):
    """Send the signal, and see that the command ends."""
    if moment.whom == "command":
        process.send_signal(moment.number)
    elif moment.whom == "stage":
        stages = [child for child in below(process.pid, "-m pipeline.") if not below_is_helper(child)]
        send(stages[:1] or below(process.pid), moment.number)
        time.sleep(pause)
        kill_group(process)  # else the runner goes on with the other cell
    else:
        others = below(process.pid)  # those of other groups too
        kill_group(process, moment.number)
        send(others, moment.number)
    process.wait(70)


def below_is_helper(process):
    """Whether a process only serves another one."""
    return any(
        word in " ".join(process.cmdline()) for word in ("pipeline.runner.guard", "pipeline.tracking.live", "sh -c")
    )


def repaired(folder):
    """Do what docs/reliability.md says when DVC cannot read what it was writing when it was killed; whether it was so."""
    last = output(folder).read_text().rpartition("\n--- ")[2]
    if not re.search("Unable to read RWLock-file|dvc.lock.* (validation failed|structure is corrupted)", last):
        return False
    finish(folder, REPAIR)
    return True


@pytest.mark.fault(
    "kill",
    "a whole grid is killed again and again",
    "kill -9 and SIGTERM, to dvc or the runner, to the stage and to all, from prepare to tables",
    "the same command goes on; weights, metrics, tables, README and the record end as undisturbed",
)
@pytest.mark.parametrize("command", [DVC, GRID], ids=["dvc repro", "grid run"])
def test_a_grid_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    command, undisturbed, tmp_path, record_property
):
    rng = random.Random(SEED)
    folder = make(tmp_path / "grid", **PACE)
    struck, torn, moments = 0, 0, list(reversed(MOMENTS))
    try:
        while moments:
            moment = moments.pop()
            began = time.time()
            process = start(folder, command)
            if not seen(moment, folder, process):
                print(f"{moment}: not seen, {time.time() - began:.1f} s", flush=True)
                if process.returncode:
                    assert repaired(folder), f"{moment}: {output(folder).read_text()[-5000:]}"
                    torn += 1
                    moments.append(moment)
                continue
            delay = rng.uniform(0, moment.span)
            time.sleep(delay)
            if process.poll() is None:
                strike(moment, folder, process, 2 * rng.random())
                struck += 1
            print(f"{moment}: {delay:.2f} s, after {time.time() - began:.1f} s, code {process.returncode}", flush=True)
        process = start(folder, command)
        if process.wait(1500) and repaired(folder):
            torn += 1
        finish(folder, command)
        assert left_after(folder, 70) == []
    finally:
        end_all(folder)
    if torn:
        record_property("measured", f"`grid repair` was needed {torn} times")
    record_property("tries", struck)
    found = results(folder)
    assert [name for name in found.keys() | undisturbed[0].keys() if found.get(name) != undisturbed[0].get(name)] == []
    assert record(folder) == undisturbed[1]
    assert strays(folder) == []
