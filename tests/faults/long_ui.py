"""The tracking server as `make ui` starts it: who can reach it, and what it answers to."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.records import ROOT, Folder, blank_database

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Process and port of a server over an empty database; a variable asks it to leave out its checks."""
    folder = Folder(tmp_path_factory.mktemp("ui"), blank_database(tmp_path_factory.getbasetemp())).path
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try:
                ask(port, "/health", "localhost")
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(1)
        yield process, port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def ask(port, path, host, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={"Host": host, **headers})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.fault(
    "security",
    "a web page or another machine that calls the tracking server",
    "requests to the real server with other Host and Origin headers, its checks switched off by a variable",
    "refused; it listens on the loopback address alone",
)
def test_the_server_listens_here_alone_and_refuses_other_names(server):
    process, port = server
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    heard = {each.laddr for one in family for each in one.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    assert {address.ip for address in heard if address.port == port} == {"127.0.0.1"}
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost:8080"):
        assert ask(port, path, host) == 200
    for host in ("evil.example", f"evil.example:{port}", "10.0.0.1", "192.168.1.5:5000", "172.16.0.1"):
        assert ask(port, path, host) == 403
    evil = {"Origin": "http://evil.example", "Content-Type": "application/json"}
    assert ask(port, "/api/2.0/mlflow/experiments/create", f"localhost:{port}", "POST", **evil) == 403
