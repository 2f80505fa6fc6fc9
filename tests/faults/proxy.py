"""A tracking server that fails as it is told: a real one behind a door that hangs up, waits, or answers with 500."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WAIT = 2.0  # seconds that a slow server takes for each call


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls += 1
        fault = self.server.fault
        if fault == "slow":
            time.sleep(WAIT)
        if fault == "stalls":
            time.sleep(30)
        if fault in ("down", "stalls"):
            self.close_connection = True
            return
        if fault == "500":
            self.send(500, "text/plain", b"told to")
            return
        other = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        other.request(
            self.command, self.path, body, {"Content-Type": self.headers.get("Content-Type", "application/json")}
        )
        found = other.getresponse()
        content = found.read()
        other.close()
        if fault == "answers are lost" and self.server.calls % 3 == 0:
            self.close_connection = True
            return
        self.send(found.status, found.getheader("Content-Type", "application/json"), content)

    def send(self, status, kind, content):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_):
        pass


class Proxy(ThreadingHTTPServer):
    """In front of a server at `port`; `fault` is what it does to each call, `calls` how many there were."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.fault, self.calls = port, "", 0
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that was killed is not worth a word."""


@contextmanager
def tracking_server(folder):
    """A real MLflow server whose database is `folder`/mlflow.db, behind a proxy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = f"--backend-store-uri sqlite:///{folder}/mlflow.db --host 127.0.0.1 --port {port} --workers 1"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *words.split(),
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "server.txt").open("w") as out:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)
    proxy = Proxy(port)
    proxy.folder = folder
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    try:
        wait_until_it_listens(port, server, folder / "server.txt")
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_it_listens(port, server, log):
    deadline = time.monotonic() + 240
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
