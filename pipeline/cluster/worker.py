"""Train and evaluate one cell in a snapshot of a commit: the command that every engine runs.

It leaves the results in DVC's cache, where the runner collects them, and a file with the exit code of each stage. After
a signal the trainer saves and there is no such file: the cell can be started again.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

from deeplab.errors import WorkerError
from pipeline.cluster.snapshot import snapshot
from pipeline.errors import EXIT_CODES, BusyError, StoppedError, run_command
from pipeline.files import write_whole
from pipeline.process import die_with_parent, signals_noted
from pipeline.runner.dvc import keep_result
from pipeline.runner.local import Workers, misses_cache
from pipeline.tracking.client import tracking_uri

UNEXPECTED, BUSY, FULL = EXIT_CODES[WorkerError], EXIT_CODES[BusyError], EXIT_CODES[OSError]
PATIENCE = 600.0  # seconds to wait for the lock of a cell whose node was lost: the file system frees it late
STOP = "stop"  # a file in the folder of a call that asks all its cells to stop


def run(cell: str, kinds: Sequence[str], commit: str, call: Path, logs: Path) -> None:
    """Run the stages `kinds` (train, evaluate) of `cell` as they are in `commit` of the repository in this folder.

    Writes `call`/<cell>.json. Raises StoppedError after a signal; then there is no such file.
    """
    die_with_parent()
    root = Path.cwd()
    codes: dict[str, int] = {}
    logs = logs.resolve()
    with signals_noted() as signalled:

        def stop() -> bool:
            return signalled() or (call / STOP).exists()

        try:
            with snapshot(root, commit, call / f"{cell}-{socket.gethostname()}-{os.getpid()}", cell) as folder:
                if "train" not in kinds and not stop():
                    restore(cell, folder, logs)
                for kind in kinds:
                    codes[kind] = run_stage(f"{kind}@{cell}", folder, logs, stop)
                    if codes[kind]:
                        break
                    with chdir(folder):  # DVC takes some paths as relative to the current folder
                        keep_result(f"{kind}@{cell}")
        except Exception as error:  # noqa: BLE001  the runner has to know, whatever it is
            stage = list(codes)[-1] if codes else kinds[0]
            codes[stage] = UNEXPECTED
            note(logs / f"{stage}@{cell}.log", f"error: {cell}: its worker failed: {type(error).__name__}: {error}")
    if signalled() and any(codes.values()):
        raise StoppedError(f"{cell}: stopped by a signal, state saved")
    write_whole(call / f"{cell}.json", json.dumps({"codes": codes, "host": socket.gethostname()}))


def run_stage(name: str, folder: Path, logs: Path, stop: Callable[[], bool]) -> int:
    """Run one stage in the snapshot `folder`, again while another process holds its cell. Returns the exit code."""
    settings = {"MLFLOW_TRACKING_URI": tracking_uri()}
    began = time.monotonic()
    while True:
        with Workers([{}], logs, folder) as workers:
            note(workers.log(name), f"--- {name} on {socket.gethostname()}, process {os.getpid()}")
            start = workers.log(name).stat().st_size
            with deaf():
                workers.start(name, settings, append=True)
            while not (ends := workers.ended()):
                if stop():
                    workers.ask_to_stop()
                time.sleep(0.2)
            text = workers.log(name).read_bytes()[start:].decode(errors="replace")
            code = ends[0][1]
            if code == 0 and misses_cache(text):  # this time: an earlier attempt has the same log
                return FULL
        if code and (said := re.findall(r"exited with (\d+)", text)):
            code = int(said[-1])
        if code != BUSY or stop() or time.monotonic() - began > PATIENCE:
            return code
        time.sleep(5)


@contextmanager
def deaf() -> Iterator[None]:
    """Let processes that start in the block ignore SIGTERM and SIGUSR2, unless they handle them as the trainer does.

    A cluster signals all processes of a job. DVC would die of that at once, and the trainer with it, unsaved.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def restore(cell: str, folder: Path, logs: Path) -> None:
    """Check out the weights of a cell that is only evaluated."""
    command = [sys.executable, "-m", "dvc", "checkout", "--quiet", f"train@{cell}"]
    with (logs / f"evaluate@{cell}.log").open("ab") as log:
        subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False)


def note(log: Path, text: str) -> None:
    """Add a line to a log, which all attempts at a stage share."""
    with log.open("a", encoding="utf-8") as file:
        print(text, file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a key of `grid` in params.yaml")
    parser.add_argument("kinds", nargs="+", choices=("train", "evaluate"), help="the stages to run")
    parser.add_argument("--commit", required=True, help="the commit to run")
    parser.add_argument("--call", type=Path, required=True, help="the folder of this call of the runner")
    parser.add_argument("--logs", type=Path, required=True, help="the folder for the output of the stages")
    arguments = parser.parse_args()
    run(arguments.cell, arguments.kinds, arguments.commit, arguments.call, arguments.logs)


if __name__ == "__main__":
    run_command(main)
