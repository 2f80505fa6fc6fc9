"""Whatever the tracking server does, a training keeps its speed and its result, and the next `tables` completes the record."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import median

import psutil
import pytest

from pipeline.settings.places import Places
from pipeline.stages import evaluate, tables
from tests.faults.proxy import tracking_server
from tests.faults.recording import FAULTS, KilledError, interrupt
from tests.faults.small_grid import record
from tests.records import CELL, Folder, blank_database
from tests.tiny import tiny_params, write_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

ROOT = Path(__file__).parents[2]
TURN = 1.5  # seconds with the mirror, then as many without, and so on
LIMIT = 4  # of the ratio of speeds: it is measured, not asserted, for other processes move it more than tracking does
PROMISE = "the training neither waits nor fails; the next `tables` completes the record, without doubles"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), {"train": 12, "val": 3})


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    with tracking_server(tmp_path_factory.mktemp("server")) as proxy:
        yield proxy


class Training:
    """A cell of the data set `name` in a folder of its own, `uri` the server that it reports to."""

    def __init__(self, folder, name, store, uri=None):
        self.folder, self.name, self.uri = folder, name, uri

        def long_enough(params):
            params["grid"]["tiny_os8"]["backbone"] = "mobilenetv3_small_050"
            params["recipes"]["tiny"]["epochs"] = 80
            params["runtime"].update(tracking_every=0.2, checkpoint_every=1)

        params = tiny_params(folder / "params.yaml", long_enough)
        params.write_text(params.read_text().replace('"tiny"', json.dumps(name)))
        (folder / "data").mkdir()
        (folder / "data" / name).symlink_to(store)

    @contextmanager
    def begun(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"MLFLOW_TRACKING_URI": self.uri} if self.uri else {})}
        with (self.folder / "train.txt").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.stages.train", "tiny_os8"],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=out,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def end(self, process, reached):
        """Its speed with the mirror at work over that with the mirror held, in turn, from when `reached` says that it is."""
        while not (speeds := [*self.folder.glob("runs/.resume/*/*/speed.csv")]):
            assert process.poll() is None, (self.folder / "train.txt").read_text()
            time.sleep(0.1)
        (mirror,) = [
            child for child in psutil.Process(process.pid).children() if "pipeline.tracking.live" in child.cmdline()
        ]
        process.send_signal(signal.SIGSTOP)  # MLflow takes longer to import than this training takes
        deadline = time.monotonic() + 200
        while not reached() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGCONT)
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            lines, held, found = 0, False, {True: [], False: []}
            while process.poll() is None:
                time.sleep(TURN)
                now = speeds[0].read_text().splitlines()
                found[held] += [float(line.split(",")[1]) for line in now[lines + 1 :]]
                lines, held = len(now), not held
                mirror.send_signal(signal.SIGSTOP if held else signal.SIGCONT)
        assert process.wait(300) == 0, (self.folder / "train.txt").read_text()
        return median(found[False]) / median(found[True]) if all(found.values()) else None

    def evaluate(self):
        evaluate.run("tiny_os8", Places(self.folder))

    def tables(self):
        tables.run(self.name)
        return Path(f"reports/tables/{self.name}.md").read_text()


def check(shown):
    """One complete run with all points, one model, one version."""
    (run,) = shown["runs"]["tiny_os8"]
    assert (run["status"], run["tags"]["complete"], run["tags"]["current"], run["twice"]) == ("FINISHED", "1", "1", [])
    assert [step for key, step, _ in run["points"] if key == "train/loss"] == list(range(1, 241))
    assert {key for key, *_ in run["points"]} >= {"final/mIoU", "train/lr", "model/mIoU"}
    assert [status for _, status in shown["models"]] == [2]  # ready
    assert [version for _, version in shown["versions"]] == [1]


def say(record_property, ratio):
    if ratio:
        record_property("measured", f"images/s with tracking over without, in turn: {ratio:.3f}")
        assert ratio > 1 / LIMIT


@pytest.mark.fault(
    "server", "MLflow is down, dies, is slow, or answers with errors", "a real server behind a proxy", PROMISE
)
@pytest.mark.parametrize("fault", ["down", "dies", "slow", "500", "answers are lost"])
def test_a_training_goes_on_and_the_record_is_completed(fault, proxy, store, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    training = Training(tmp_path, fault.replace(" ", "_").replace("500", "errors"), store, proxy.address)
    proxy.meet(fault)
    with training.begun() as process:
        ratio = training.end(process, proxy.was_reached)
    assert proxy.calls  # else the fault was never met
    training.evaluate()
    if fault != "slow":  # which would take minutes, and then succeed
        assert "%" in training.tables()  # from the files, with a warning
    proxy.fault = ""
    assert "%" in training.tables()
    check(record(proxy.folder, f"deeplabv3-{training.name}"))
    say(record_property, ratio)


WRITER = """
import os, sqlite3, sys, time
os.nice(10)
base = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
while True:
    base.execute("begin immediate")
    base.execute("insert into others values (1)")
    time.sleep(0.1)
    base.execute("commit")
"""


@pytest.mark.fault("server", "the database is locked by others", "8 processes that write to it all the time", PROMISE)
def test_a_locked_database_stops_nothing(store, tmp_path, tmp_path_factory, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base = tmp_path / "mlflow.db"
    base.write_bytes(blank_database(tmp_path_factory.getbasetemp()).read_bytes())
    training = Training(tmp_path, "locked", store)
    with closing(sqlite3.connect(base)) as made:
        made.execute("create table others (x)")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(base)]) for _ in range(8)]
    try:
        with training.begun() as process:
            ratio = training.end(process, (tmp_path / "mlflow.db.lock").exists)
        training.evaluate()
        assert "%" in training.tables()
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert "%" in training.tables()
    check(record(tmp_path, "deeplabv3-locked"))
    say(record_property, ratio)


@pytest.mark.fault(
    "server",
    "a recording ends in the middle",
    "killed before or after a call, an answer lost, at calls spread over all",
    "the next `tables` completes the same run; what is shown is as if nothing had happened",
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_recording_that_ends_in_the_middle_is_completed(
    fault, tmp_path, tmp_path_factory, monkeypatch, record_property
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def recorded(which):
        folder = Folder(tmp_path / f"{which}", blank_database(tmp_path_factory.getbasetemp()))
        monkeypatch.chdir(folder.path)
        folder.train(CELL)
        folder.evaluate(CELL)
        folder.measure(CELL, 0.5)
        with pytest.MonkeyPatch.context() as patch:
            calls = interrupt(patch, fault, which)
            with suppress(KilledError):
                folder.tables()
        folder.tables()
        return record(folder.path), len(calls)

    expected, count = recorded(-1)
    tried = range(FAULTS.index(fault), count, len(FAULTS))
    record_property("tries", len(tried))
    for number in tried:
        assert recorded(number)[0] == expected, f"call {number}"
