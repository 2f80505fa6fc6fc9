"""Show the runs in MLflow: start MLflow's server for this machine alone, and print the address of each data set's runs.

MLFLOW_TRACKING_URI names the database, by default mlflow.db in this folder. Of a running server, only the addresses are
printed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from pipeline.errors import ParamsError
from pipeline.process import die_with_parent
from pipeline.tracking.client import SQLITE, TrackingError, pages, tracking_uri, without_password

HOST = "127.0.0.1"
# The names that a browser on this machine, or behind a forwarded port, uses for the server. By default MLflow also
# answers to the addresses of private networks.
ALLOWED = ",".join(f"{name}{port}" for name in ("localhost", HOST) for port in ("", ":*"))


def run(port: int) -> None:
    """Become the server on `port`; a process beside it prints the addresses as soon as it answers.

    Raises FileNotFoundError without a database, OSError when MLflow does not answer, ParamsError for an unusable port.
    """
    uri = tracking_uri()
    local = uri.startswith(SQLITE)
    if local and not Path(uri.removeprefix(SQLITE)).exists():
        raise FileNotFoundError(
            f"{uri.removeprefix(SQLITE)}: no runs yet. Run: dvc repro --force --single-item --glob 'tables@*'"
        )
    if local:
        require_free(port)
    address = f"http://{HOST}:{port}" if local else without_password(uri).rstrip("/")
    try:
        lines = [f"{name}: {address}/{page}" for name, page in pages().items()]
    except TrackingError as error:
        raise OSError(str(error)) from None
    if not local:
        print("\n".join(lines))
    else:
        # With its defaults the server starts four workers and a job runner, and takes four times as long.
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.pop("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", None)
        server = f"-m mlflow ui --host {HOST} --allowed-hosts {ALLOWED} --port {port} --workers 1".split()
        quiet = ["--uvicorn-opts", "--log-level warning"]  # keep the addresses in sight
        print("starting MLflow, which takes half a minute; Ctrl-C ends it", flush=True)
        subprocess.Popen([sys.executable, "-m", "pipeline.tracking.ui", str(port), *lines])
        os.execv(sys.executable, [sys.executable, *server, *quiet, "--backend-store-uri", uri])  # noqa: S606  no text of a user


def announce(port: int, lines: list[str]) -> None:
    """Print `lines` when the server on `port` answers. Waits as long as the server lives."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the server, too
    die_with_parent()
    while not answers(port):
        time.sleep(0.3)
    print("\n".join(lines), flush=True)


def answers(port: int) -> bool:
    """Whether MLflow's server on `port` is ready."""
    with suppress(OSError, HTTPException):
        connection = HTTPConnection(HOST, port, timeout=10)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def require_free(port: int) -> None:
    """Raise ParamsError when the server cannot listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise ParamsError(f"--port: {port} is in use or not allowed. Try another: grid ui --port 5001") from None


if __name__ == "__main__":
    announce(int(sys.argv[1]), sys.argv[2:])
