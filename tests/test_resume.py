"""A training that ends in the middle, however it ends, goes on to where an unbroken one ends, to the last bit."""

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deeplab import checkpoint
from deeplab.checkpoint import load_checkpoint
from tests.fitting import PACE, assert_equal, run
from tests.forked import forked

pytestmark = pytest.mark.usefixtures("one_thread")
EAGER = replace(PACE, checkpoint_every=1e-9)  # a checkpoint after every step


@pytest.fixture(scope="module")
def unbroken(split, tmp_path_factory):
    """Weights, optimizer and history of a run without a break."""
    torch.set_num_threads(1)
    return end(tmp_path_factory.mktemp("unbroken"), split)


def end(folder, split, pace=PACE):
    """Run to the end: weights, optimizer and history."""
    finished, weights, history, _ = run(folder, split, pace=pace)
    assert finished
    return weights, load_checkpoint(folder)["optimizer"]["state"], history


def killed(folder, split, pace, prepare, stop=lambda: False):
    """Train in a forked process that `prepare` has made to kill itself."""

    def train():
        prepare()
        run(folder, split, pace=pace, stop=stop)

    _, status = os.waitpid(forked(train), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(original, calls, number):
    """`original`, but the process is killed in front of call `number` of all that share `calls`."""

    def wrapped(*arguments, **options):
        if next(calls) == number:
            die()
        return original(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.fault(
    "kill",
    "a training is stopped",
    "SIGTERM noted at steps 1 to 5, 0 or 2 workers",
    "weights, optimizer and history end bit for bit as unbroken",
)
def test_a_stopped_run_goes_on(split, tmp_path, unbroken, stop_after, workers):
    calls = iter(range(1, 100))
    pace = replace(PACE, workers=workers)
    finished, *_ = run(tmp_path, split, pace=pace, stop=lambda: next(calls) >= stop_after)
    assert not finished
    assert load_checkpoint(tmp_path)["step"] == stop_after
    assert_equal(end(tmp_path, split), unbroken)


@pytest.mark.parametrize(("die_at", "workers"), [(1, 2), (3, 0), (5, 1)])
@pytest.mark.fault(
    "kill",
    "a training is killed",
    "kill -9 after steps 1, 3, 5",
    "weights, optimizer and history end bit for bit as unbroken",
)
def test_a_killed_run_goes_on(split, tmp_path, unbroken, die_at, workers):
    calls = iter(range(1, 100))
    pace = replace(EAGER, workers=workers)
    killed(tmp_path, split, pace, lambda: None, stop=lambda: next(calls) == die_at and die())
    assert_equal(end(tmp_path, split), unbroken)


@pytest.mark.parametrize("number", range(8, 13))  # in the third of its saves, the first that removes an old checkpoint
@pytest.mark.fault(
    "kill",
    "a training is killed while it saves",
    "kill -9 before each fsync, rename and removal of a save",
    "the old checkpoint or the new one is there; the end is bit for bit as unbroken",
)
def test_a_run_killed_while_a_checkpoint_is_written_goes_on(split, tmp_path, unbroken, number):
    def prepare():
        calls = itertools.count()
        for place, name in ((os, "fsync"), (Path, "rename"), (Path, "unlink")):
            setattr(place, name, dying(getattr(place, name), calls, number))

    workers = number % 3
    killed(tmp_path, split, replace(EAGER, workers=workers), prepare)
    assert load_checkpoint(tmp_path)["step"] == (2 if number < 11 else 3)
    assert_equal(end(tmp_path, split, replace(PACE, workers=(workers + 1) % 3)), unbroken)


@pytest.mark.fault(
    "kill",
    "a training is killed with half a checkpoint written",
    "kill -9",
    "the checkpoint before is used, the half one removed",
)
def test_a_run_killed_with_half_a_checkpoint_written_goes_on_and_leaves_nothing_behind(split, tmp_path, unbroken):
    def write_half(path, content):
        path.with_name(path.name + ".part").write_bytes(content[: len(content) // 2])
        die()

    killed(tmp_path, split, EAGER, lambda: setattr(checkpoint, "write_durably", write_half))
    assert list(tmp_path.glob("*.part"))
    assert_equal(end(tmp_path, split), unbroken)
    assert not list(tmp_path.glob("*.part"))
