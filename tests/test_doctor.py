"""`grid doctor` on one machine: each check from two real processes."""

import os
import shutil
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline.cluster import doctor
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from tests.tiny import tiny_params


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "reports").mkdir()
    tiny_params(tmp_path / "params.yaml")
    return Places(tmp_path)


def test_each_check_is_a_line_and_what_is_missing_is_no_failure(places, capsys):
    assert doctor.examine("here", places=places) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].split() for line in lines] == [
        ["ok", "locks"], ["ok", "cache"], ["ok", "GPUs"], ["ok", "tracking"], ["warn", "data"],
    ]  # fmt: skip
    assert "not prepared yet: tiny" in lines[-1]
    assert not (places.runs / ".doctor.lock").exists()
    assert not list(places.root.rglob("doctor-*"))


def test_what_fails_is_named_and_the_exit_code_is_1(places, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert doctor.examine("slurm", places=places) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed == ["GPUs:", "tracking:", "commit:"]


def test_a_port_of_something_else_is_no_tracking_server():
    def greet(server):
        with server.accept()[0] as caller:
            caller.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        other = threading.Thread(target=greet, args=[server])
        other.start()
        with pytest.raises(OSError, match=r"^http://127.0.0.1:\d+: not a tracking server \(BadStatusLine\)$"):
            doctor.ask_tracking(f"http://user:secret@127.0.0.1:{server.getsockname()[1]}")
        other.join()


def test_locks_that_keep_nobody_out_are_found(places, monkeypatch):
    monkeypatch.setattr(doctor, "hold", os.path.exists)  # the second process locks nothing
    with pytest.raises(OSError, match="does not keep another process out. Mount NFS in version 4"):
        doctor.check_locks(places.runs)


def test_a_database_for_one_machine_is_a_doubt_elsewhere(places):
    with pytest.raises(doctor.DoubtError, match="a SQLite file is for one machine"):
        doctor.check_tracking("ray")


def test_a_second_process_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0)
    with pytest.raises(OSError, match="no answer from a second process"), doctor.second_process() as call:
        call(os.getpid)


@pytest.fixture
def simulated(monkeypatch):
    """A GPU whose memory is that of the CPU. `code` is what registering memory returns."""

    def simulate(code=0, square=torch.square):
        runtime = SimpleNamespace(cudaHostRegister=lambda *_: code, cudaHostUnregister=lambda _: None)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch, "compile", lambda _: square)
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "nvidia-smi" else f"/usr/bin/{name}")

    return simulate


def test_a_gpu_is_tried_with_a_product_a_copy_and_a_compiled_function(simulated):
    simulated()
    assert "are right" in doctor.try_device("cpu")


def test_memory_that_cannot_be_page_locked_is_a_doubt(simulated):
    simulated(code=2)
    with pytest.raises(doctor.DoubtError, match=r"not pinned \(CUDA error 2\): copies to the device are slower"):
        doctor.try_device("cpu")


def test_a_missing_compiler_is_a_doubt(simulated, monkeypatch):
    simulated()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(
        doctor.DoubtError,
        match="no C compiler .*, which train.compile and the faster form of the loss need. Install gcc",
    ):
        doctor.try_device("cpu")


def test_what_a_gpu_gets_wrong_or_refuses_is_one_line(simulated):
    simulated(square=torch.neg)
    with pytest.raises(OSError, match="cpu: a compiled function gives wrong numbers"):
        doctor.try_device("cpu")

    def broken(_):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    simulated(square=broken)
    with pytest.raises(OSError, match="^cpu: CUDA error: no kernel image is available$"):
        doctor.try_device("cpu")


def test_a_visible_gpu_is_tried_in_a_second_process(places, monkeypatch):
    @contextmanager
    def same_process():
        yield lambda job, *arguments: f"{job.__name__} {arguments}"

    monkeypatch.setattr(doctor, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(doctor, "find_slots", lambda *_: [{}])
    monkeypatch.setattr(doctor, "second_process", same_process)
    params = load_params(places.params)
    said = "1 visible, 1 cells at a time"
    assert doctor.check_gpus(params, "here", None) == said  # the device is the CPU
    params = replace(params, runtime=replace(params.runtime, device="auto"))
    assert doctor.check_gpus(params, "here", None) == f"{said}; try_device ('auto',)"
