"""Look at the runs in MLflow: start its server for this machine alone, and print the address of each data set's runs.

MLFLOW_TRACKING_URI names the database, else it is mlflow.db in this folder; a server that already runs is only named.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

from pipeline.errors import ParamsError, run_command
from pipeline.tracking.client import SQLITE, pages, tracking_uri, without_password

HOST = "127.0.0.1"
# What a browser here, or one that forwards a port to here, calls the server. By default MLflow answers to the addresses
# of private networks too.
ALLOWED = ",".join(f"{name}{port}" for name in ("localhost", HOST) for port in ("", ":*"))


def run(port: int) -> None:
    """Print the addresses, then become the server."""
    uri = tracking_uri()
    local = uri.startswith(SQLITE)
    if local and not Path(uri.removeprefix(SQLITE)).exists():
        raise FileNotFoundError(
            f"{uri.removeprefix(SQLITE)}: no runs yet. Run: python -m pipeline.runner.run readme@shapes"
        )
    if local:
        require_free(port)
    address = f"http://{HOST}:{port}" if local else without_password(uri).rstrip("/")
    for name, page in pages().items():
        print(f"{name}: {address}/{page}", flush=True)
    if local:
        # With its defaults the server starts four workers and a job runner, and takes four times as long.
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.pop("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", None)
        server = f"-m mlflow ui --host {HOST} --allowed-hosts {ALLOWED} --port {port} --workers 1".split()
        words = [*server, "--backend-store-uri", uri]
        print("starting, which takes half a minute; Ctrl-C ends it", flush=True)
        os.execv(sys.executable, [sys.executable, *words])  # noqa: S606  our own words


def require_free(port: int) -> None:
    """Raise ParamsError when something else listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise ParamsError(f"--port: {port} is in use or not allowed. Try another: make ui PORT=5001") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5000, help="where the server listens; default: %(default)s")
    run(parser.parse_args().port)


if __name__ == "__main__":
    run_command(main)
