"""What the runner asks of Ray, with a Ray that is a list of tasks; `make test-ray` has a real one."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.cluster.cells import Task
from pipeline.cluster.ray import RayCells
from pipeline.errors import ParamsError
from pipeline.runner.engine import Order
from pipeline.settings.params import load_params
from tests.tiny import tiny_params


class Listed(ModuleType):
    """A Ray whose tasks end when a test says so."""

    def __init__(self, *nodes):
        super().__init__("ray")
        self.resources, self.options, self.given, self.ended = nodes, {}, [], set()

    def init(self, **_):
        pass

    def nodes(self):
        return [{"Alive": True, "Resources": each} for each in self.resources]

    def remote(self, **options):
        self.options = options
        return lambda _: SimpleNamespace(remote=self.queue)

    def queue(self, _, command, __):
        self.given.append(command[0])
        return len(self.given) - 1

    def wait(self, references, num_returns, timeout):
        assert (num_returns, timeout) == (len(references), 0)
        return [each for each in references if each in self.ended], [
            each for each in references if each not in self.ended
        ]


@pytest.fixture
def connect(tmp_path, monkeypatch):
    """RayCells on a Ray with some nodes, and that Ray."""
    runtime = load_params(tiny_params(tmp_path / "params.yaml")).runtime

    def make(*nodes, count=None, threads=1, address=None, **settings):
        ray = Listed(*nodes)
        monkeypatch.setitem(sys.modules, "ray", ray)
        order = Order(
            params=replace(runtime, **settings),
            stages=(),
            count=count,
            address=address,
            threads=threads,
            logs=tmp_path,
            lock=None,
        )
        return RayCells(order), ray

    return make


def tasks(cells):
    return [Task(cell=cell, command=(cell,)) for cell in cells]


def test_no_more_cells_run_at_a_time_than_there_are_slots(connect):
    cells, ray = connect({"CPU": 8.0}, count=2, device="cpu")
    assert cells.place == "on Ray, 2 cells at a time on 1 node"
    cells.submit(tasks("abcd"))
    assert ray.given == ["a", "b"]
    assert cells.over() == set()
    ray.ended.add(0)
    assert cells.over() == {"a"}
    assert ray.given == ["a", "b", "c"]
    cells.ask_to_stop()
    ray.ended.add(1)
    assert cells.over() == {"a", "b", "d"}  # d was withdrawn
    assert ray.given == ["a", "b", "c"]


def test_a_cell_that_was_lost_is_over_until_it_is_submitted_again(connect):
    cells, ray = connect({"CPU": 8.0}, device="cpu")
    cells.submit(tasks("ab"))
    ray.ended.add(0)
    assert cells.over() == {"a"}
    cells.submit(tasks("a"))
    assert cells.over() == set()


def test_a_cell_asks_for_no_more_cores_than_a_node_has(connect):
    cells, ray = connect({"CPU": 2.0}, {"CPU": 4.0}, {}, threads=6, device="auto")
    assert ray.options["num_cpus"] == 4
    assert cells.place == "on Ray, 1 cells at a time on 3 nodes"


def test_the_gpus_of_a_cell_have_to_be_on_one_node(connect):
    cells, ray = connect({"CPU": 8.0, "GPU": 5.0}, {"CPU": 8.0, "GPU": 2.0}, device="auto", gpus_per_cell=2)
    assert ray.options["num_gpus"] == 2
    assert cells.place == "on Ray, 3 cells at a time on 2 nodes"
    with pytest.raises(
        ParamsError, match="got 'cuda' with gpus_per_cell 4, but no node of this Ray has more than 2 GPUs"
    ):
        connect({"GPU": 2.0}, {"GPU": 2.0}, device="cuda", gpus_per_cell=4)


def test_a_port_that_does_not_exist_is_no_address(connect):
    with pytest.raises(ParamsError, match="no Ray answers at '127.0.0.1:99999'"):
        connect({"CPU": 8.0}, address="127.0.0.1:99999")
