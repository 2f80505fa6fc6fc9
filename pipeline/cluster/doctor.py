"""Check what a grid on several workers rests on, before anything is submitted: locks, cache, GPUs, tracking and data.

Locks, cache, tracking and data are tried from a second process as well.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cluster.snapshot import cache_folder, committed
from pipeline.errors import ParamsError, run_command
from pipeline.runner.engine import Order
from pipeline.runner.local import find_slots, visible_gpus
from pipeline.settings.params import Params, load_params
from pipeline.tracking.client import SQLITE, tracking_uri, without_password

SPACE = 5e9  # bytes free in the cache below which a grid is likely to fail


class DoubtError(Exception):
    """Something that works here and may not elsewhere."""


def examine(on: str, address: str | None = None) -> int:
    """Print a line per check; 0 when none has failed, else 1."""
    params = load_params()
    checks: dict[str, Callable[[], str]] = {
        "locks": check_locks,
        "cache": check_cache,
        "GPUs": lambda: check_gpus(params, on, address),
        "tracking": lambda: check_tracking(on),
        "data": lambda: check_data(params),
    }
    if on != "here":
        checks["commit"] = lambda: f"{committed(Path.cwd())[:12]}, nothing changed since"
    failed = False
    for name, check in checks.items():
        try:
            print(f"ok    {name}: {check()}", flush=True)
        except DoubtError as doubt:
            print(f"warn  {name}: {doubt}", flush=True)
        except (ParamsError, OSError, subprocess.SubprocessError, sqlite3.Error) as error:
            failed = True
            print(f"FAIL  {name}: {error}", flush=True)
    return 1 if failed else 0


def check_locks() -> str:
    """A lock that another process holds has to keep this one out, and be free when that process is killed."""
    path = Path("runs/.doctor.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with second_process("lock", str(path)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                raise OSError(
                    f"{path.parent.resolve()}: a file lock (flock) does not keep another process out. On NFS mount "
                    f"version 4, on Lustre with `-o flock`."
                )
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.unlink()
    return f"{path.parent.resolve()}: kept by one process at a time, free when it is killed"


def check_cache() -> str:
    """What one process writes to DVC's cache the other has to read, and there has to be space."""
    folder = cache_folder(Path.cwd())
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"0" * 1_000_000)
        with second_process("digest", str(probe)) as said:
            if said != digest(probe):
                raise OSError(f"{folder}: another process reads something else than was written")
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < SPACE:
        raise DoubtError(f"{folder}: only {free / 1e9:.1f} GB free; `grid plan` shows what a grid needs")
    return f"{folder}: {free / 1e9:.0f} GB free"


def check_gpus(params: Params, on: str, address: str | None) -> str:
    """There have to be as many as a cell asks for."""
    runtime = params.runtime
    if on == "here":
        slots = find_slots(None, runtime.device, 1, runtime.gpus_per_cell)
        return f"{len(visible_gpus())} visible, {len(slots)} cells at a time"
    from pipeline.cluster.engines import ENGINES

    order = Order(params=runtime, stages=(), count=None, address=address, threads=1, logs=Path("runs/.logs"), lock=None)
    return ENGINES[on](order).place


def check_tracking(on: str) -> str:
    """MLflow has to answer two processes."""
    uri = tracking_uri()
    shown = without_password(uri)
    answer = ask_tracking(uri)
    with second_process("tracking", shown) as said:  # a command line is for all to see: it reads the address itself
        if said != answer:
            raise OSError(f"{shown}: {answer} here, but {said} for another process")
    if uri.startswith(SQLITE) and on != "here":
        raise DoubtError(
            f"{shown}: {answer}, but a SQLite file is for one machine. Start a server that the others reach "
            f"(docs/cluster.md says how) and set MLFLOW_TRACKING_URI to its address."
        )
    return f"{shown}: {answer}"


def ask_tracking(uri: str) -> str:
    """What the tracking says; OSError when it does not answer."""
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        if not path.exists():
            return "will be made by the first run"
        with sqlite3.connect(path, timeout=20) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        return "can be written"
    if not uri.startswith(("http://", "https://")):
        return "not known how to ask"
    # Answered to everyone, so without the password, which urllib would take for a port and repeat in its error.
    address = f"{without_password(uri).rstrip('/')}/health"
    with urllib.request.urlopen(address, timeout=10) as reply:  # noqa: S310  checked above
        return "answers" if reply.status == 200 else f"answers with {reply.status}"


def check_data(params: Params) -> str:
    """The stores have to be there, and the same for another process; what is not there will be prepared first."""
    names = sorted({cell.dataset for cell in params.cells.values()})
    missing = []
    for name in names:
        manifest = Path("data") / name / "manifest.json"
        if not manifest.exists():
            missing.append(name)
            continue
        with second_process("digest", str(manifest)) as said:
            if said != digest(manifest):
                raise OSError(f"{manifest}: another process reads something else")
    if missing:
        raise DoubtError(f"not prepared yet: {', '.join(missing)}; `prepare` runs here, before their cells")
    return f"{', '.join(names)} prepared"


@contextmanager
def second_process(job: str, argument: str) -> Iterator[str]:
    """What another process says about `argument`; it lives as long as the block, and is then killed."""
    command = [sys.executable, "-m", "pipeline.cluster.doctor", "--probe", job, argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            if not said:
                raise OSError(f"{argument}: another process could not use it ({job})")
            yield said
        finally:
            process.kill()


def probe(job: str, argument: str) -> None:
    """Be the second process."""
    if job == "lock":
        with Path(argument).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            print(f"held by {os.getpid()}", flush=True)
            sys.stdin.read()
    else:
        print(
            {"digest": lambda: digest(Path(argument)), "tracking": lambda: ask_tracking(tracking_uri())}[job](),
            flush=True,
        )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="here", help="the engine that is to run the grid")
    parser.add_argument("--address", help="of a running Ray")
    parser.add_argument("--probe", nargs=2, metavar=("JOB", "ARGUMENT"), help="what the second process is told to do")
    arguments = parser.parse_args()
    if arguments.probe:
        probe(*arguments.probe)
    else:
        sys.exit(examine(arguments.on, arguments.address))


if __name__ == "__main__":
    run_command(main)
