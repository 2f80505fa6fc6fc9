"""What the step benchmark does on a GPU, without one: memory in the same process, kernels by the time of the device."""

import argparse
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import clock, step

GPU = torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch):
    """What torch.cuda was asked for, in order."""
    calls = []

    def note(name, answer=None):
        monkeypatch.setattr(torch.cuda, name, lambda *_: calls.append(name) or answer)

    note("synchronize")
    note("reset_peak_memory_stats")
    note("memory_allocated", 1_000_000)
    note("max_memory_allocated", 6_000_000)
    note("get_device_name", "a GPU")
    return calls


def test_the_peak_on_a_gpu_is_that_of_the_step_and_not_of_choosing_kernels(calls):
    assert clock.held(lambda: calls.append("step"), GPU) == 6_000_000
    forgotten = calls.index("reset_peak_memory_stats")
    assert "step" in calls[:forgotten]
    assert calls[forgotten + 1 :] == ["step", "step", "step", "synchronize", "max_memory_allocated"]


def test_memory_of_a_gpu_is_measured_in_this_process_less_what_was_held_before(calls, monkeypatch, capsys):
    """A child would need the memory that this process holds."""
    built = []

    def build(side, *_):
        assert built == [] or "max_memory_allocated" in calls  # one network is measured before the next is there
        built.append(side)
        return SimpleNamespace(run=lambda: None, flops=10**9, batch=2, parameters=1)

    monkeypatch.setattr(step, "select_device", lambda name: GPU)
    monkeypatch.setattr(step, "build", build)
    monkeypatch.setattr(step, "milliseconds", lambda *_: [1.0])
    monkeypatch.setattr(step, "measure_memory", lambda *_: pytest.fail("a child was started"))
    words = {"device": "cuda", "cell": None, "classes": 3, "crop": 64, "batch": 2, "threads": 1, "compile": False}
    others = {"warmup": 1, "rounds": 1, "peak_tflops": None, "profile": False}
    step.run(argparse.Namespace(**words, **others), "fp32")
    assert built == ["plain", "ours"]
    assert capsys.readouterr().out.count("5 MB at the peak") == 2


EVENTS = [
    SimpleNamespace(key="aten::conv2d", count=1, self_device_time_total=9000.0, self_cpu_time_total=5.0),
    SimpleNamespace(key="small_kernel", count=4, self_device_time_total=1000.0, self_cpu_time_total=0.0),
    SimpleNamespace(key="large_kernel", count=2, self_device_time_total=3000.0, self_cpu_time_total=0.0),
    SimpleNamespace(key="cudaLaunchKernel", count=6, self_device_time_total=0.0, self_cpu_time_total=8000.0),
]


def test_a_profile_of_a_gpu_lists_its_kernels_by_their_time_on_it(calls, monkeypatch):
    recorded = SimpleNamespace(key_averages=lambda: EVENTS)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: nullcontext(recorded))
    assert clock.profile(lambda: None, GPU) == [("large_kernel", 3.0, 2), ("small_kernel", 1.0, 4)]
    assert calls == ["synchronize"]  # before the recording ends, or kernels would be missing


def test_a_profile_of_a_cpu_lists_operators_by_their_time():
    names = [
        name for name, _, _ in clock.profile(lambda: torch.ones(300, 300) @ torch.ones(300, 300), torch.device("cpu"))
    ]
    assert "aten::mm" in names
