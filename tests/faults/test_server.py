"""A training does not know whether there is a tracking server: nothing that it does itself can wait for one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_params, write_store

ROOT = Path(__file__).parents[2]
TRAINER = """
import sys
from pathlib import Path

talked = []

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "sqlite3.connect") or (event == "import" and arguments[0] == "mlflow"):
        talked.append((event, arguments))

sys.addaudithook(note)

from pipeline.stages import train

train.run("tiny_os8")
sys.exit(str(talked) if talked else 0)
"""


@pytest.mark.fault(
    "server",
    "MLflow is down, dies, is slow, or answers with errors",
    "a server that never answers; each connection and import of the trainer is noted",
    "the training itself never talks to it",
)
def test_the_trainer_itself_talks_to_no_server_and_no_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")  # without a commit the trainer says so on stderr
    for words in (("init", "--quiet"), (*who, "commit", "--quiet", "--allow-empty", "-m", "empty")):
        subprocess.run(["git", *words], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        write_store(tmp_path / "data/tiny", {"train": 12, "val": 3})

        def small(params):
            params["grid"]["tiny_os8"]["backbone"] = "mobilenetv3_small_050"
            params["runtime"]["tracking_every"] = 0.01

        tiny_params(tmp_path / "params.yaml", small)
        done = subprocess.run(
            [sys.executable, "-c", TRAINER], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs/tiny_os8/weights/seed0.safetensors").exists()
