"""A training does not know whether there is a tracking server: nothing that it does itself can wait for one."""

import os
import socket
import sys

import pytest
import torch

from pipeline import train
from tests.tiny import tiny_params, write_store

TALK = ("socket.connect", "socket.getaddrinfo", "sqlite3.connect")


@pytest.mark.fault(
    "server",
    "MLflow is down, dies, is slow, or answers with errors",
    "a server that never answers; each connection and import of the trainer is noted",
    "the training itself never talks to it",
)
def test_the_trainer_itself_talks_to_no_server_and_no_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        write_store(tmp_path / "data", {"train": 12, "val": 3})

        def small(params):
            params["grid"]["tiny_os8"]["backbone"] = "mobilenetv3_small_050"
            params["runtime"]["tracking_every"] = 0.01

        tiny_params(tmp_path / "params.yaml", small)
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
        child = os.fork()
        if child == 0:
            talked = []

            def note(event, arguments):
                if event in TALK or (event == "import" and arguments[0] == "mlflow"):
                    talked.append((event, arguments))

            sys.modules.pop("mlflow", None)  # of another test
            sys.addaudithook(note)
            train.run("tiny_os8", *(tmp_path / name for name in ("data", "pretrained", "resume", "out")))
            print(talked, file=sys.stderr)
            os._exit(len(talked))
        torch.set_num_threads(before)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "out/weights/seed0.safetensors").exists()
