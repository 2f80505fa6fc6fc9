"""Several processes that share each batch: gloo on the CPU, without batch normalisation, against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from deeplab.data import StepKeys
from deeplab.errors import SettingsError
from deeplab.losses import choice
from deeplab.losses.choice import fastest
from deeplab.ranks import ALONE, Ranks
from deeplab.step import build_optimizer, step_loss, train_step
from pipeline.errors import StoppedError
from pipeline.training.launch import launch
from tests.fitting import run
from tests.forked import forked
from tests.tiny import recipe_config, tiny_cell, tiny_params, write_store

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


class Plain(nn.Module):
    """Two outputs, no batch normalisation, no dropout."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8), nn.ReLU())
        self.head, self.extra = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = self.features(x)
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


def plain():
    torch.manual_seed(0)
    return Plain()


def together(work, folder, world=2):
    """Run `work(ranks)` in so many forked processes that form a group; returns what each gave back."""

    def take_part(rank):
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
        torch.save(work(Ranks(rank, world)), folder / f"rank{rank}.pt")
        dist.destroy_process_group()

    children = [forked(take_part, rank) for rank in range(world)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_processes_see_together_what_one_process_sees(world):
    whole = list(StepKeys(23, 8, seed=1, start=1, stop=5))
    parts = [list(StepKeys(23, 8, 1, 1, 5, Ranks(rank, world).part(8, CPU))) for rank in range(world)]
    assert [[key for part in keys for key in part] for keys in zip(*parts, strict=True)] == whole


def test_gradients_and_loss_are_those_of_one_process_however_the_valid_pixels_are_spread(tmp_path):
    torch.manual_seed(1)
    images, masks = torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4, 32, 32), dtype=torch.uint8)
    masks[:2, 3:] = 255  # the first process has far fewer pixels than the second

    def work(ranks):
        part, network = ranks.part(4, CPU), plain()
        joined = ranks.join(network, CPU)
        loss = step_loss(joined, (images[part], masks[part]), tiny_cell(), ranks)
        (loss * ranks.world).backward()
        return ranks.sum(loss.detach()), [parameter.grad for parameter in network.parameters()]

    expected = work(ALONE)
    for found in together(work, tmp_path):
        torch.testing.assert_close(found, expected)


def test_a_whole_training_is_that_of_one_process_to_rounding(split, tmp_path):
    def work(ranks):
        _, weights, history, reports = run(tmp_path / "run", split, plain(), ranks=ranks)
        return weights, history.decode(), [(report.loss, report.lr) for report in reports]

    (tmp_path / "run").mkdir()
    first, second = together(work, tmp_path)
    _, weights, history, reports = run(tmp_path / "alone", split, plain())
    torch.testing.assert_close(first[0], weights)
    torch.testing.assert_close(second[0], first[0], rtol=0, atol=0)
    for found in (first[2], second[2]):
        assert [lr for _, lr in found] == [report.lr for report in reports]
        assert [loss for loss, _ in found] == pytest.approx([report.loss for report in reports], rel=1e-4)
    assert len(first[1].splitlines()) == len(history.decode().splitlines())  # one process writes
    assert len(list((tmp_path / "run").glob("step-*.pt"))) == 1


def test_all_processes_stop_when_one_is_asked_to_and_go_on_together(split, tmp_path):
    def work(ranks):
        calls = iter(range(1, 100))
        return run(tmp_path / "run", split, plain(), ranks=ranks, stop=lambda: ranks.rank == 1 and next(calls) == 3)[:2]

    (tmp_path / "run").mkdir()
    assert [finished for finished, _ in together(work, tmp_path)] == [False, False]
    again = tmp_path / "again"
    again.mkdir()
    (finished, weights), _ = together(lambda ranks: run(tmp_path / "run", split, plain(), ranks=ranks)[:2], again)
    assert finished
    torch.testing.assert_close(weights, run(tmp_path / "alone", split, plain())[1])


def test_dropout_differs_between_the_processes_and_is_the_same_every_time(split, tmp_path):
    masks = []

    class Noisy(Plain):
        def forward(self, x):
            masks.append(torch.rand(3))
            return super().forward(x)

    def work(ranks):
        masks.clear()
        torch.manual_seed(0)
        run(tmp_path / str(ranks.world), split, Noisy(), ranks=ranks, cell=tiny_cell(recipe=recipe_config(epochs=1)))
        return torch.stack(masks[1:])  # the first is the step that is tried

    (tmp_path / "2").mkdir()
    first, second = together(work, tmp_path)
    assert not first.equal(second)
    assert first.equal(work(ALONE))


@pytest.mark.parametrize(("faster", "taken"), [((True, True), "kernel"), ((True, False), "reference")])
def test_the_processes_take_the_same_form_of_the_loss(faster, taken, tmp_path, monkeypatch):
    def reference(*_):
        return "reference"

    def work(ranks):
        kernel = (lambda *_: "kernel") if faster[ranks.rank] else None
        monkeypatch.setattr(choice, "faster_kernel", lambda *_: kernel)
        small = SimpleNamespace(device=torch.device("cuda", ranks.rank), dtype=torch.float32, shape=(2, 4, 4, 3))
        return fastest(reference, small, SimpleNamespace(shape=(2, 16, 16)))()

    assert together(work, tmp_path) == [taken, taken]


@pytest.mark.parametrize(("batch", "world", "match"), [
    (16, 3, "batch_size: got 16, expected a multiple of the 3 processes that share it"),
    (2, 2, "batch_size: got 2 for 2 processes, expected 2 samples or more for each: the image pooling"),
])  # fmt: skip
def test_a_batch_that_cannot_be_shared_is_refused(batch, world, match):
    with pytest.raises(SettingsError, match=match):
        Ranks(0, world).part(batch, CPU)


def test_with_synchronised_statistics_one_sample_each_is_enough():
    assert Ranks(1, 2).part(2, torch.device("cuda")) == slice(1, 2)


def test_one_process_computes_as_ever():
    network, cell = plain(), tiny_cell()
    images, masks = torch.randn(4, 3, 32, 32), torch.zeros(4, 32, 32, dtype=torch.uint8)
    assert ALONE.join(network, CPU) is network
    train_step(
        network,
        build_optimizer(network, cell.train),
        torch.amp.GradScaler("cpu", enabled=False),
        (images, masks),
        cell,
    )


def test_the_stage_starts_its_processes_itself_and_goes_on_after_a_signal(tmp_path):
    def two(params):
        params["runtime"].update(gpus_per_cell=2)
        params["recipes"]["tiny"]["epochs"] = 6

    tiny_params(tmp_path / "params.yaml", two)
    write_store(tmp_path / "data/tiny", {"train": 12, "val": 3})
    command = [sys.executable, "-m", "pipeline.stages.train", "tiny_os8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.glob("runs/.resume/*/*/speed.csv")) and time.monotonic() < deadline and stage.poll() is None
    ):
        time.sleep(0.05)
    stage.send_signal(signal.SIGTERM)
    _, said = stage.communicate(timeout=120)
    assert stage.returncode == 75, said
    assert "tiny_os8: stopped by a signal, state saved" in said
    assert list(tmp_path.glob("runs/.resume/*/*/step-*.pt"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "runs/tiny_os8/run.json").read_text())["seeds"]["0"]
    assert facts["gpus_per_cell"] == [2]
    rows = (tmp_path / "runs/tiny_os8/history.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == [str(step) for step in range(1, 19)]


@pytest.mark.parametrize(
    ("codes", "ends", "says"),
    [
        ([-signal.SIGTERM], StoppedError, "killed by signal 15"),  # by somebody, while it imports torch
        ([-signal.SIGTERM, -signal.SIGKILL], StoppedError, "killed by signal 9"),
        ([-signal.SIGTERM, 65], SystemExit, "65"),
    ],
)
def test_a_group_ends_as_the_process_that_failed(monkeypatch, codes, ends, says):
    def fail(*_):
        def agent(*_):
            failures = {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes)}
            error = ChildFailedError.__new__(ChildFailedError)
            error.failures = failures
            raise error

        return agent

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", fail)
    monkeypatch.setattr("pipeline.training.launch.die_with_parent", lambda: None)
    monkeypatch.setattr("logging.disable", lambda _: None)
    with pytest.raises(ends, match=says):
        launch("pipeline.stages.train", ["tiny_os8"], 2)
