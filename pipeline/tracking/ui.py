"""Show the runs in MLflow: print the address of each data set's runs, and start MLflow's server for this machine alone.

MLFLOW_TRACKING_URI names the database, by default mlflow.db in this folder. Of a running server, only the addresses are
printed.
"""

import os
import socket
import sys
from pathlib import Path

from pipeline.errors import ParamsError
from pipeline.tracking.client import SQLITE, TrackingError, pages, tracking_uri, without_password

HOST = "127.0.0.1"
# The names that a browser on this machine, or behind a forwarded port, uses for the server. By default MLflow also
# answers to the addresses of private networks.
ALLOWED = ",".join(f"{name}{port}" for name in ("localhost", HOST) for port in ("", ":*"))


def run(port: int) -> None:
    """Print the addresses, then become the server on `port`.

    Raises FileNotFoundError without a database, OSError when MLflow does not answer, ParamsError for an unusable port.
    """
    uri = tracking_uri()
    local = uri.startswith(SQLITE)
    if local and not Path(uri.removeprefix(SQLITE)).exists():
        raise FileNotFoundError(f"{uri.removeprefix(SQLITE)}: no runs yet. Run: grid run readme@shapes")
    if local:
        require_free(port)
    address = f"http://{HOST}:{port}" if local else without_password(uri).rstrip("/")
    try:
        for name, page in pages().items():
            print(f"{name}: {address}/{page}", flush=True)
    except TrackingError as error:
        raise OSError(str(error)) from None
    if local:
        # With its defaults the server starts four workers and a job runner, and takes four times as long.
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.pop("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", None)
        server = f"-m mlflow ui --host {HOST} --allowed-hosts {ALLOWED} --port {port} --workers 1".split()
        words = [*server, "--backend-store-uri", uri]
        print("the server answers in about half a minute; Ctrl-C ends it", flush=True)
        os.execv(sys.executable, [sys.executable, *words])  # noqa: S606  no text of a user


def require_free(port: int) -> None:
    """Raise ParamsError when the server cannot listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise ParamsError(f"--port: {port} is in use or not allowed. Try another: grid ui --port 5001") from None
