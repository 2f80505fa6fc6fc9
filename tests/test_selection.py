"""Which weights a training ends with: last, averaged, best, or early; and that a broken run ends the same way."""

import os
import signal
from dataclasses import replace
from itertools import count

import pytest
import torch

from deeplab.checkpoint import load_checkpoint
from deeplab.selection import Selection
from tests.fitting import PACE, assert_equal, run, small
from tests.forked import forked
from tests.test_ranks import plain, together
from tests.tiny import recipe_config, tiny_cell, train_config

pytestmark = pytest.mark.usefixtures("one_thread")
EAGER = replace(PACE, checkpoint_every=1e-9)  # a checkpoint after every step
SETTINGS = [
    {"ema": 0.9},
    {"keep": "best"},
    {"ema": 0.9, "keep": "best"},
    {"patience": 2},
    {"ema": 0.9, "keep": "best", "patience": 2},
]
EPOCHS, PER_EPOCH = 6, 3


def cell_of(settings):
    return tiny_cell(recipe=recipe_config(epochs=EPOCHS), train=train_config(**settings))


def score(network):
    """A validation that depends on the weights alone, and rises and falls."""
    network.eval()
    total = sum(float(value.abs().sum()) for value in network.state_dict().values() if value.is_floating_point())
    return 1 / (1 + total % 0.37)


class Falling:
    """Scores by call: 0.2, 0.3, then lower ones."""

    def __init__(self):
        self.scores, self.weights = [0.2, 0.3, 0.1, 0.29, 0.28, 0.27], []

    def __call__(self, network):
        self.weights.append({name: value.clone() for name, value in network.state_dict().items()})
        return self.scores[len(self.weights) - 1]


def outcome(folder, split, settings, validate=None, **options):
    """Weights, what was noted at the end, and the history."""
    ends = []
    options = {"validate": validate or score, "end": ends.append, **options}
    finished, weights, history, _ = run(folder, split, cell=cell_of(settings), **options)
    return finished, {name: value.clone() for name, value in weights.items()}, ends, history


def test_the_average_is_that_of_the_formula(split, tmp_path):
    """Against plain sums over the weights after each step, written out."""
    steps, network = [], small()
    original = Selection.update

    class Noting(Selection):
        def update(self, done):
            original(self, done)
            steps.append({name: value.clone() for name, value in network.state_dict().items()})

    first = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deeplab.training.Selection", Noting)
        _, found, _, _ = run(tmp_path / "ema", split, network, cell=cell_of({"ema": 0.8}))
    for name, value in found.items():
        mean = first[name]
        for done, step in enumerate(steps, start=1):
            decay = min(0.8, (1 + done) / (10 + done))
            mean = decay * mean + (1 - decay) * step[name] if value.is_floating_point() else step[name]
        torch.testing.assert_close(value, mean)
    assert len(steps) == EPOCHS * PER_EPOCH
    assert not found["head.weight"].equal(steps[-1]["head.weight"])


def test_an_average_leaves_the_training_itself_alone(split, tmp_path):
    run(tmp_path / "plain", split, cell=cell_of({}))
    run(tmp_path / "ema", split, cell=cell_of({"ema": 0.9}), pace=replace(PACE, validate_every=1), validate=score)
    plain_state, ema_state = (load_checkpoint(tmp_path / name) for name in ("plain", "ema"))
    assert_equal(ema_state["network"], plain_state["network"])
    assert_equal(ema_state["optimizer"]["state"], plain_state["optimizer"]["state"])


def test_what_is_validated_is_what_is_kept(split, tmp_path):
    scores = Falling()
    _, weights, (end,), history = outcome(tmp_path, split, {"ema": 0.9, "keep": "best"}, scores)
    assert_equal(weights, scores.weights[1])
    assert (end.steps, end.step, end.miou) == (18, 6, 0.3)
    written = [row.split(",")[4] for row in history.decode().splitlines()[1:]]
    assert [float(score) for score in written if score] == scores.scores


def test_patience_ends_the_training_with_the_last_weights(split, tmp_path):
    scores = Falling()
    finished, weights, (end,), history = outcome(tmp_path, split, {"patience": 2}, scores)
    assert finished
    assert len(scores.weights) == 4  # two without a higher score after the second
    assert_equal(weights, scores.weights[-1])
    assert (end.steps, end.step, end.miou) == (12, 12, None)
    assert history.decode().splitlines()[-1].startswith("12,")


def test_validations_that_only_watch_decide_nothing(split, tmp_path):
    """`runtime.validate_every` moves no number."""
    settings = {"keep": "best", "patience": 1, "validate_every": 2}
    expected = outcome(tmp_path / "a", split, settings)
    found = outcome(tmp_path / "b", split, settings, pace=replace(PACE, validate_every=1))
    assert_equal(found[1], expected[1])
    assert found[2] == expected[2]


def test_the_last_weights_are_validated_too(split, tmp_path):
    calls = []
    outcome(tmp_path, split, {"keep": "best", "validate_every": 4}, lambda network: calls.append(1) or len(calls))
    assert len(calls) == 2  # after epoch 4 of 6, and at the end


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("stop_after", [4, 9])
def test_a_stopped_run_ends_as_an_unbroken_one(split, tmp_path, settings, stop_after):
    expected = outcome(tmp_path / "unbroken", split, settings)
    calls = count(1)
    stopped = outcome(tmp_path / "stopped", split, settings, stop=lambda: next(calls) == stop_after)
    assert not stopped[0]
    assert stopped[2] == []
    assert_equal(outcome(tmp_path / "stopped", split, settings)[1:], expected[1:])


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=str)
@pytest.mark.parametrize("die_at", [7, 12])
def test_a_killed_run_ends_as_an_unbroken_one(split, tmp_path, settings, die_at):
    expected = outcome(tmp_path / "unbroken", split, settings)
    calls = count(1)

    def train():
        die = lambda: next(calls) == die_at and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        outcome(tmp_path / "killed", split, settings, pace=EAGER, stop=die)

    _, status = os.waitpid(forked(train), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL or expected[2][0].steps < die_at
    assert_equal(outcome(tmp_path / "killed", split, settings)[1:], expected[1:])


def test_a_finished_run_that_starts_again_trains_nothing_and_ends_the_same(split, tmp_path):
    """As after a kill between the last checkpoint and the file of weights."""
    settings = SETTINGS[-1]
    expected = outcome(tmp_path, split, settings, Falling())
    assert expected[2][0].steps < EPOCHS * PER_EPOCH
    assert_equal(outcome(tmp_path, split, settings, validate=lambda _: pytest.fail("validated"))[1:], expected[1:])


def test_processes_end_with_the_weights_of_one(split, tmp_path):
    settings = {"ema": 0.9, "keep": "best", "patience": 2}

    def work(ranks):
        scores, ends = Falling(), []
        _, weights, *_ = run(
            tmp_path / "run", split, plain(), ranks=ranks, cell=cell_of(settings), validate=scores, end=ends.append
        )
        return weights, [(end.steps, end.step, end.miou) for end in ends]

    (tmp_path / "run").mkdir()
    first, second = together(work, tmp_path)
    scores, ends = Falling(), []
    _, alone, *_ = run(tmp_path / "alone", split, plain(), cell=cell_of(settings), validate=scores, end=ends.append)
    torch.testing.assert_close(first[0], alone)
    torch.testing.assert_close(second[0], first[0], rtol=0, atol=0)
    assert first[1] == second[1] == [(12, 6, 0.3)]
