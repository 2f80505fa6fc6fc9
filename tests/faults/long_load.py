"""Large grids, many images, long runs: what they cost, and that memory does not grow with the steps."""

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import grid as fake
from deeplab.counts import gather, read_counts, write_counts
from deeplab.inference import evaluate_each
from deeplab.job import Pace
from deeplab.store import Store
from deeplab.store_writer import StoreWriter
from pipeline.results.statistics import MAX_PAIRS
from pipeline.settings.places import Places
from pipeline.stages import compare, report
from tests.fake_grid import FakeGrid
from tests.faults.grid_of import CELLS, Grid, page_settings
from tests.fitting import run as fit
from tests.fitting import small
from tests.records import blank_database, measured
from tests.tiny import recipe_config, tiny_cell

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own
CLASSES, IMAGES = 50, 2_000


class Memory:
    """What this process and its children hold, twice a second while the block runs."""

    def __init__(self):
        self.moments, self.held, self.over = [], [], threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(timeout=10)

    def watch(self):
        while not self.over.wait(0.5):
            total = 0
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.moments.append(time.monotonic())
            self.held.append(total / 1e6)

    def slope(self, steps):
        """MB per 1000 steps, by the least squares over the last three quarters: the first warms up. `steps`: (moment, step)."""
        moments, numbers = np.array(steps).T
        at = np.interp(self.moments, moments, numbers)
        late = at >= numbers[-1] / 4
        return 1000 * float(np.polyfit(at[late], np.array(self.held)[late], 1)[0])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store of 30,000 samples."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    with StoreWriter(folder, ("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 99, 99))) as writer:
        for index in range(30_000):
            mask = np.kron(rng.integers(0, 3, (2, 2), dtype=np.uint8), np.ones((8, 8), np.uint8))
            image = np.repeat(mask[..., None] * 80, 3, axis=2)
            writer.add("train", f"train/{index:05}", image, mask)
    return Store(folder)


@pytest.mark.fault(
    "load",
    "training over many samples for long",
    "two epochs over a store of 30,000 samples, with two workers, and a line of history for every ten steps",
    "memory of the training and its workers does not grow with the steps",
)
def test_memory_stays_flat_over_30000_samples(many, tmp_path, record_property):
    cell = tiny_cell(recipe=recipe_config(batch_size=32, epochs=2, crop=(16, 16), resize=(16, 16)))
    pace = Pace(workers=2, log_every=10, checkpoint_every=5.0, validate_every=0)
    moments = []
    with Memory() as memory:
        began = time.monotonic()
        finished, *_ = fit(
            tmp_path, many.split("train"), small(), pace, cell, stop=lambda: moments.append(time.monotonic()) and False
        )
    assert finished
    assert len(moments) == 2 * (30_000 // 32)
    slope = memory.slope([(moment, step) for step, moment in enumerate(moments)])
    record_property(
        "measured", f"{slope:+.2f} MB per 1000 steps over {len(moments):,} steps, {max(memory.held):.0f} MB at most"
    )
    assert slope < 20
    assert time.monotonic() - began < 600


@pytest.mark.fault(
    "load",
    "an evaluation with many classes and images",
    "50 classes and 2,000 images: evaluated, their counts written, read and compared",
    "memory does not grow with the images",
)
def test_evaluate_and_compare_hold_2000_images_of_50_classes(tmp_path, record_property, monkeypatch):
    import torch

    from deeplab.model import DeepLabV3
    from deeplab.segmenter import WHOLE

    names = tuple(f"class {number}" for number in range(CLASSES))
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "data", names, ((0, 0, 0),) * CLASSES) as writer:
        for index in range(IMAGES):
            mask = np.kron(rng.integers(0, CLASSES, (4, 4), dtype=np.uint8), np.ones((8, 8), np.uint8))
            writer.add("val", f"val/{index:04}", np.repeat(mask[..., None] * 5, 3, axis=2), mask)
    cell = tiny_cell(recipe=recipe_config(resize=(32, 32)))
    torch.manual_seed(0)
    network = DeepLabV3(cell.model, CLASSES).eval()
    split = Store(tmp_path / "data").split("val")
    moments = []

    def watched(matrices):
        for matrix in matrices:
            moments.append(time.monotonic())
            yield matrix

    with Memory() as memory:
        each = evaluate_each(network, split, CLASSES, cell.inference, WHOLE, torch.device("cpu"), lambda found: found)
        counts = gather(watched(each), [record.id for record in split.records], names)
    write_counts(tmp_path / "a.npz", {(0, "single_scale"): counts})
    began = time.perf_counter()
    assert len(read_counts(tmp_path / "a.npz")[0, "single_scale"].images) == IMAGES
    read = time.perf_counter() - began
    slope = memory.slope([(moment, step) for step, moment in enumerate(moments)])
    size = (tmp_path / "a.npz").stat().st_size / 1e6
    record_property("measured", f"{slope:+.2f} MB per 1000 images, counts of {size:.1f} MB read in {read:.2f} s")
    assert slope < 30


@pytest.fixture
def blank(tmp_path_factory):
    return blank_database(tmp_path_factory.getbasetemp())


@pytest.mark.fault(
    "load",
    "a table of 200 cells",
    "200 measured cells in a grid, all recorded in MLflow before, and one of them measured again",
    "written in seconds",
)
def test_a_table_of_200_cells_is_written_in_seconds(tmp_path, monkeypatch, blank, record_property):
    monkeypatch.chdir(tmp_path)
    grid = Grid(tmp_path, blank)
    first = Cost(grid.tables)  # records all of them
    again = Cost(grid.tables)
    grid.measure("cell_007", 0.9)
    anew = Cost(grid.tables)
    table = (grid.path / "reports/tables/shapes.md").read_text()
    assert table.count("%") == CELLS
    record_property("measured", f"{again} with nothing new, {anew} with one new result, {first} for 200 new ones")
    assert again.cpu < 10


@pytest.mark.fault(
    "load",
    "a comparison of 200 cells",
    "the counts of 200 cells on 60 images, each compared with the others",
    "the 200 pairs that differ least are listed, and a line says that others are not",
)
def test_200_cells_are_compared_pair_by_pair_but_not_without_end(tmp_path, monkeypatch, blank, record_property):
    monkeypatch.chdir(tmp_path)
    grid = Grid(tmp_path, blank)
    for number, name in enumerate(grid.params.cells):
        measured(grid, name, 0.5 + number / 1000)
    taken = Cost(lambda: compare.run("shapes"))
    found = json.loads(Path("reports/statistics/shapes.json").read_text())
    assert len(found["cells"]) == CELLS
    assert len(found["pairs"]) == MAX_PAIRS
    assert "of 19900 pairs" in found["note"]
    record_property("measured", str(taken))


@pytest.mark.fault(
    "load",
    "a page of 200 cells",
    "200 cells of 50 classes with curves, confusions and predictions",
    "made in minutes, and of a size that a browser opens",
)
def test_the_page_of_200_cells_is_made(tmp_path, record_property):
    grid = FakeGrid(tmp_path / "page", page_settings(CLASSES))
    grid.fill(classes=[f"class {number}" for number in range(CLASSES)])
    out = Places(grid.path).page
    taken = Cost(lambda: report.run(Places(grid.path)))
    record_property("measured", f"{out.stat().st_size / 1e6:.1f} MB in {taken}")
    assert out.stat().st_size < 100e6


@pytest.mark.fault(
    "load",
    "dvc repro of 200 cells that are all up to date",
    "400 stages with their entries in dvc.lock, none of them out of date",
    "seen in seconds",
)
def test_200_cells_that_are_up_to_date_are_seen_to_be(tmp_path, record_property):
    project = fake.make_grid(tmp_path / "grid", CELLS, 0.0)
    fake.make_up_to_date(project, CELLS)
    fake.measure(project, "dvc", "repro", "--quiet")  # it hashes what it has not seen
    taken = Cost(lambda: fake.measure(project, "dvc", "repro", "--quiet"))
    runner = Cost(lambda: fake.measure(project, "pipeline", "run", "--slots", "1"))
    assert (
        not subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=project,
            env=fake.environment(),
            capture_output=True,
            text=True,
        )
        .stdout.strip()
        .strip("{}")
    )
    record_property("measured", f"dvc repro {taken}, grid run {runner}")
    assert runner.cpu < 20


class Cost:
    """Seconds of a call: of the processors, its children's among them, and by the clock. Others may share the machine."""

    def __init__(self, call):
        began, used = time.perf_counter(), self.used()
        call()
        self.clock, self.cpu = time.perf_counter() - began, self.used() - used

    def used(self):
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    def __str__(self):
        return f"{self.cpu:.1f} s of CPU ({self.clock:.0f} s by the clock)"
