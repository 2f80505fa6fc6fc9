"""A grid of twelve tiny cells in its own repository, run by an engine and by `dvc repro` and compared."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.test_pipeline import checkout, dvc, run
from tests.tiny import tiny_params

CELLS = [f"tiny_{number:02}" for number in range(12)]
LONG = CELLS[:2]  # these train long enough to be interrupted
# Columns about when and where, which differ between two runs.
TRACES = ("run", "key", "commit", "seconds", "images_per_second", "gpu_hours")


def make_project(folder, **runtime):
    """A commit of this code with twelve cells."""
    folder.mkdir()
    checkout(folder)

    def twelve_cells(params):
        row = params["grid"].pop("tiny_os8")
        for number, cell in enumerate(CELLS):
            recipe = {"lr": 0.01 + 0.001 * number, "epochs": 40 if cell in LONG else 1}
            params["grid"][cell] = {**row, "output_stride": (8, 16)[number % 2], "recipe": recipe}
        params["runtime"].update(device="auto", checkpoint_every=1.0, **runtime)

    tiny_params(folder / "params.yaml", twelve_cells)
    (folder / "README.md").write_text("<!-- results:tiny -->\n<!-- /results:tiny -->\n")
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "start", cwd=folder)
    return folder


def one_by_one(folder):
    """The same grid by `dvc repro`."""
    make_project(folder)
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "readme@tiny"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=3000)
    return folder


def start_grid(folder, *words):
    """The runner, its output in `folder`/grid.out."""
    command = [sys.executable, "-m", "pipeline", "run", "readme@tiny", *words]
    with (folder / "grid.out").open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def worker_of(cell, folder, after=None, timeout=300):
    """The process of a cell's worker that is not `after`, once its training has passed a checkpoint."""
    deadline = time.monotonic() + timeout
    enough = reports(folder, cell) + 5 if after else 20
    while time.monotonic() < deadline:
        if reports(folder, cell) > enough:
            for process in psutil.process_iter(["cmdline"]):
                command = process.info["cmdline"] or []
                if command[1:4] != ["-m", "pipeline.cluster.worker", cell] or process == after:
                    continue
                if Path(process.cwd()) == folder:  # another grid can run at the same time
                    return process
        time.sleep(0.2)
    raise AssertionError(f"{cell} does not train: {(folder / 'grid.out').read_text()}")


def reports(folder, cell):
    """How often the training of a cell has reported so far."""
    speeds = list((folder / "runs/.resume" / cell).glob("seed*/speed.csv"))
    return len(speeds[0].read_text().splitlines()) if speeds else 0


def check_went_on(log):
    """Of all attempts in the log of a training only the first reports step 1: the others had a checkpoint."""
    first = re.findall(r": (\d+)/\d+ iterations, loss", log)
    assert first.count("1") == 1, first


def finish(runner, folder, timeout=1500):
    """What the runner has printed at its end."""
    try:
        code = runner.wait(timeout)
    finally:
        runner.kill()
    said = (folder / "grid.out").read_text()
    assert code == 0, said
    return said


def check_nothing_failed(printed):
    """The runner has reported no failure, whatever the engine itself printed."""
    assert not re.search(r"^\d\d:\d\d:\d\d (failed|skipped)", printed, re.MULTILINE), printed


def results(folder):
    """The table, the results in its rows, and the records."""
    with (folder / "reports/tables/tiny.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in TRACES} for row in csv.DictReader(file)]
    records = [json.loads((folder / f"reports/records/tiny/{cell}.json").read_text()) for cell in CELLS]
    return (folder / "reports/tables/tiny.md").read_text(), rows, records


def check_same(folder, reference):
    """The tables, and the weights by their checksums, are those of `dvc repro` one by one."""
    ours, theirs = results(folder), results(reference)
    assert ours[0] == theirs[0]
    assert "| - |" not in ours[0]
    assert ours[1] == theirs[1]
    assert ours[2] == theirs[2]


def check_collected(folder):
    """Each cell came from the cache, and DVC finds nothing to do."""
    for cell in CELLS:
        for kind in ("train", "evaluate"):
            log = (folder / f"runs/.logs/{kind}@{cell}.log").read_text()
            assert f"Stage '{kind}@{cell}' is cached - skipping run" in log.partition("--- collected")[2]
    assert "Data and pipelines are up to date" in dvc("repro", "readme@tiny", cwd=folder).stdout
    assert not list(Path(folder / "runs/.resume").glob("tiny*"))
