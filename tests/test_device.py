import os

import numpy as np
import pytest
import torch

from deeplab import inference
from deeplab.ranks import ALONE
from deeplab.store import Store
from pipeline.errors import ParamsError
from pipeline.training.device import choose_kernels_by_time, select_device, set_arithmetic
from pipeline.training.seed import validation_miou
from tests.tiny import tiny_cell, train_config, write_store


@pytest.fixture
def gpus(monkeypatch):
    chosen = []

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return pretend


@pytest.mark.parametrize(
    ("name", "count", "expected"), [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cuda:1", 2, "cuda:1"), ("cpu", 2, "cpu")]
)
def test_auto_is_a_gpu_if_there_is_one(gpus, name, count, expected):
    gpus(count)
    assert select_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "expected"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_gpu_that_is_named_is_the_current_one(gpus, name, expected):
    """Streams, events and page-locked memory belong to the current one."""
    chosen = gpus(2)
    select_device(name)
    assert chosen == expected


def test_kernels_are_chosen_by_time_in_training_and_by_rule_while_validating(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(inference, "evaluate", lambda *_: seen.append(torch.backends.cudnn.benchmark) or np.eye(3))
    choose_kernels_by_time(train_config())
    split = Store(write_store(tmp_path)).split("val")
    validation_miou(None, split, 3, tiny_cell(), torch.device("cpu"), ALONE)
    assert (seen, torch.backends.cudnn.benchmark) == ([False], True)


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_kernels_are_neither_fast_and_loose_nor_chosen_by_time(wanted, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    train = train_config(deterministic=wanted, threads=torch.get_num_threads())
    try:
        set_arithmetic(train)
        choose_kernels_by_time(train)
        assert torch.are_deterministic_algorithms_enabled() is wanted
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.backends.cudnn.benchmark is not wanted
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == (":4096:8" if wanted else None)


def refuse(reason):
    def init():
        raise RuntimeError(reason)

    return init


OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by ..."
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from ..."


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_driver_that_is_too_old_is_named_and_not_answered_by_the_cpu(gpus, monkeypatch, name):
    gpus(0)
    monkeypatch.setattr(torch.cuda, "init", refuse(OLD))
    match = rf"runtime.device: got '{name}', but The NVIDIA driver .* too old \(found version 11040\). Install a newer driver, or say cpu"
    with pytest.raises(ParamsError, match=match):
        select_device(name)
    assert select_device("cpu").type == "cpu"


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:9", 1)])
def test_a_gpu_that_is_not_there_is_one_line(gpus, monkeypatch, name, count):
    gpus(count)
    monkeypatch.setattr(torch.cuda, "init", refuse(NONE))
    known = "cpu, cuda, cuda:0" if count else r"cpu \(no GPU: Found no NVIDIA driver on your system\)"
    with pytest.raises(ParamsError, match=f"runtime.device: got '{name}', expected one of auto, {known}$"):
        select_device(name)


def test_each_process_of_a_cell_has_a_gpu_of_its_own(gpus):
    gpus(2)
    assert [select_device("auto", 2, rank) for rank in (0, 1)] == [torch.device("cuda", rank) for rank in (0, 1)]


@pytest.mark.parametrize(("name", "count"), [("auto", 0), ("auto", 1), ("cuda:1", 2)])
def test_too_few_gpus_for_the_processes_of_a_cell_are_refused(gpus, name, count):
    gpus(count)
    with pytest.raises(
        ParamsError, match=f"runtime.gpus_per_cell: got 2 with device '{name}' and {count} visible GPUs"
    ):
        select_device(name, 2, 1)


def test_the_cpu_is_shared_only_when_asked_for(gpus):
    gpus(0)
    assert select_device("cpu", 2, 1) == torch.device("cpu")
