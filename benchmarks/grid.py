"""Measure the runner against `dvc repro`, and what it costs per stage.

The stages sleep, so that only the order and the overhead are measured. Each grid is a DVC repository of its own in a
temporary folder, with entries in dvc.lock as long as those of the real stages. `grid_ratio` compares the same twelve
cells (train, evaluate) from the start: the runner with two slots against `dvc repro`. The overhead is the time per
stage of the runner with one slot, without the sleep and without its start, for stages that are out of date:
`overhead_s` in grids of 12 and 50 cells, `overhead_200_s` in one of 200. `idle_200_s` is the time to see that 200 cells
are up to date. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pipeline.errors import run_command
from pipeline.runner.dvc import write_lock
from pipeline.settings.params import PARAMS
from pipeline.settings.yaml import read_yaml

ROOT = Path(__file__).parents[1]
SIZES = {12: 12, 50: 12, 200: 6}  # cells of a grid -> those that are out of date
SHARED = ("model", "train", "augment")
GRID = ("pipeline", "run")

STAGES = """
stages:
  train:
    foreach: ${grid}
    do:
      cmd: sleep %(seconds)s && cp code/${key} runs/${key}
      deps: ["code/${key}"]
      params: ["grid.${key}", model, train, augment, {code.json: ["train.${key}"]}]
      outs: [{"runs/${key}": {cache: false}}]
  evaluate:
    foreach: ${grid}
    do:
      cmd: sleep %(seconds)s && cp runs/${key} metrics/${key}
      deps: ["runs/${key}"]
      params: [protocols, {code.json: ["evaluate.${key}"]}]
      outs: [{"metrics/${key}": {cache: false}}]
"""
HASH = hashlib.sha256().hexdigest()


class Cost(NamedTuple):
    """Seconds of a command: by the clock, which others on the machine slow down, and of the processors."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.cpu:.2f} s of CPU)"


def run(seconds: float) -> None:
    """Print the ratio and the overheads."""
    with TemporaryDirectory(prefix="grid") as folder:
        alone = measure(make_grid(Path(folder) / "alone", 12, seconds), "dvc", "repro", "--quiet")
        slots = measure(make_grid(Path(folder) / "slots", 12, seconds), *GRID, "--slots", "2")
        print(f"12 cells of two stages of {seconds:g} s: dvc repro {alone.wall:.1f} s, two slots {slots.wall:.1f} s")
        idle, overhead = {}, {}
        for size, stale in SIZES.items():
            project = make_grid(Path(folder) / str(size), size, 0.0)
            make_up_to_date(project, size)
            idle[size] = measure(project, *GRID, "--slots", "1")
            for number in range(stale):
                (project / f"code/cell_{number:03}").write_text("changed")
            both = measure(project, *GRID, "--slots", "1")
            overhead[size] = Cost(*((b - a) / (2 * stale) for a, b in zip(idle[size], both, strict=True)))
            print(f"{size} cells: {overhead[size]} per stage, {idle[size]} with nothing to do", flush=True)
    found = {
        "grid_ratio": slots.wall / alone.wall,
        "overhead_s": max(overhead[12].wall, overhead[50].wall),
        "overhead_200_s": overhead[200].wall,
        "idle_200_s": idle[200].wall,
    }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


def make_grid(folder: Path, size: int, seconds: float) -> Path:
    """A grid of `size` cells in a DVC repository, before anything was run."""
    params = settings()
    row = {"dataset": "shapes", "backbone": "resnet18", "output_stride": 8, "pretrained": False}
    params["grid"] = {f"cell_{number:03}": row for number in range(size)}
    for name in ("code", "runs", "metrics"):
        (folder / name).mkdir(parents=True)
    for cell in params["grid"]:
        (folder / "code" / cell).write_text(cell)
    (folder / "params.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in params.items()))
    hashes = dict.fromkeys(params["grid"], HASH)
    (folder / "code.json").write_text(json.dumps({"train": hashes, "evaluate": hashes}))
    (folder / "dvc.yaml").write_text(STAGES % {"seconds": seconds})
    for words in (("git", "init", "-q"), (sys.executable, "-m", "dvc", "init", "-q")):
        subprocess.run(words, cwd=folder, env=environment(), check=True)
    return folder


def settings() -> dict[str, Any]:
    """The settings of this repository."""
    return read_yaml(PARAMS)


def make_up_to_date(folder: Path, size: int) -> None:
    """Write the outputs and dvc.lock of all cells. To run 200 of them takes DVC a quarter of an hour."""
    params = settings()
    stages: dict[str, Any] = {}
    for number in range(size):
        cell = f"cell_{number:03}"
        for place in ("runs", "metrics"):
            (folder / place / cell).write_text(cell)
        file = {"hash": "md5", "md5": hashlib.md5(cell.encode(), usedforsecurity=False).hexdigest(), "size": len(cell)}
        row = {"dataset": "shapes", "backbone": "resnet18", "output_stride": 8, "pretrained": False}
        trained = {f"grid.{cell}": row, **{name: params[name] for name in SHARED}}
        evaluated = {"protocols": params["protocols"]}
        for kind, source, target, values in (
            ("train", "code", "runs", trained),
            ("evaluate", "runs", "metrics", evaluated),
        ):
            stages[f"{kind}@{cell}"] = {
                "cmd": f"sleep 0.0 && cp {source}/{cell} {target}/{cell}",
                "deps": [{"path": f"{source}/{cell}", **file}],
                "params": {"code.json": {f"{kind}.{cell}": HASH}, "params.yaml": dict(sorted(values.items()))},
                "outs": [{"path": f"{target}/{cell}", **file}],
            }
    write_lock(folder / "dvc.lock", json.loads(json.dumps(stages)))  # a copy: YAML would refer to what is there twice


def measure(folder: Path, module: str, *words: str) -> Cost:
    """The cost of a command in `folder`."""
    began, before = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    cost = Cost(time.perf_counter() - began, cpu_seconds() - before)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return cost


def cpu_seconds() -> float:
    """Seconds of the processors that all ended children of this process have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment() -> dict[str, str]:
    """This project's modules can be imported from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "DVC_NO_ANALYTICS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="that each stage of the first comparison sleeps")
    run(parser.parse_args().seconds)


if __name__ == "__main__":
    run_command(main)
