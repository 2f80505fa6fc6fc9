"""Mirror a training into MLflow while it runs, from a process of its own: no server can slow or stop the trainer."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deeplab.errors import DataError, SettingsError
from pipeline.process import die_with_parent
from pipeline.settings.params import load_params
from pipeline.tracking.client import (
    Experiment,
    TrackingError,
    identity_tags,
    open_experiment,
    origin_tags,
    run_name,
    start_time,
    training_tags,
)
from pipeline.training.curves import read_curves
from pipeline.training.facts import Facts, read_facts


@contextmanager
def mirror(folder: Path, every: float) -> Iterator[None]:
    """Mirror `folder` every `every` seconds while the block runs. Never raises, and never keeps the block waiting."""
    command = [sys.executable, "-m", "pipeline.tracking.live", str(folder), str(every), str(os.getpid())]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
    except OSError as error:
        print(f"warning: no live curves in MLflow: {error}", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        child.kill()  # it writes in transactions, and `tables` records what has not arrived
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)


def follow(folder: Path, every: float, parent: int) -> None:
    """Send what is new in `folder` every `every` seconds, until process `parent` has ended."""
    warned = False
    while os.getppid() == parent:
        time.sleep(every)  # before anything costly, so that a short training does not pay for it
        try:
            facts = read_facts(folder / "facts.json")
            if not facts:
                continue
            with open_experiment(facts.dataset, timeout=5) as experiment:
                run = live_run(experiment, folder, facts)
                while os.getppid() == parent:
                    send(experiment, run, folder)
                    time.sleep(every)
        except (TrackingError, DataError, SettingsError, OSError) as error:
            if not warned:
                print(f"warning: no live curves in MLflow for now: {error}", file=sys.stderr)
            warned = True


def live_run(experiment: Experiment, folder: Path, facts: Facts) -> str:
    """The run of the training in `folder`. Continues the run from before an interruption, if there is one."""
    identity = identity_tags(facts.cell, facts.seed, facts.fingerprint)
    tags = origin_tags(facts.dataset, facts) | training_tags(facts)
    tags |= {"host": socket.gethostname(), "folder": str(folder.resolve())}
    begun = [
        run.info for run in experiment.runs(**identity, complete="0") if run.data.tags.get("folder") == tags["folder"]
    ]
    if begun:
        run: str = begun[0].run_id
        experiment.client.update_run(run, status="RUNNING")
        experiment.set_tags(run, tags)
    else:
        overrides = load_params().overrides.get(facts.cell, "")
        run = experiment.create(run_name(facts.cell, facts.seed, overrides), tags, start_time(facts))
    experiment.set_params(run, facts.settings)
    return run


def send(experiment: Experiment, run: str, folder: Path) -> None:
    """Send the points that are new."""
    now = int(1000 * time.time())
    for name, columns in (("history.csv", None), ("speed.csv", ("step", "train/images_per_second"))):
        experiment.add_curves(run, read_curves(folder / name, columns=columns), lambda _: now)


if __name__ == "__main__":  # as `mirror` starts it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    os.nice(10)
    die_with_parent()
    follow(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
