"""How much faster two slots run a grid than `dvc repro` does, and what the runner costs per stage in grids of any size.

The stages sleep, so that what is measured is the order and the overhead. Each grid is a DVC repository of its own in a
scratch folder, its entries in dvc.lock as long as those of the real stages. The ratio compares the same twelve cells
(train, evaluate) from nothing, by `dvc repro` and by the runner. The overhead is the time per stage of the runner with
one slot beyond the sleep and beyond its start, for 24 stages that are out of date in a grid of 12, 50 and 200 cells.
The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import run_command
from pipeline.settings.params import PARAMS
from pipeline.settings.yaml import read_yaml

ROOT = Path(__file__).parents[1]
SIZES = (12, 50, 200)
STALE = 12  # cells that are out of date
SHARED = ("model", "train", "augment")

STAGES = """
stages:
  train:
    foreach: ${grid}
    do:
      cmd: sleep %(seconds)s && cp code/${key} runs/${key}
      deps: ["code/${key}"]
      params: ["grid.${key}", model, train, augment]
      outs: [{"runs/${key}": {cache: false}}]
  evaluate:
    foreach: ${grid}
    do:
      cmd: sleep %(seconds)s && cp runs/${key} metrics/${key}
      deps: ["runs/${key}"]
      params: ["grid.${key}", model, train, augment]
      outs: [{"metrics/${key}": {cache: false}}]
"""


def run(seconds: float) -> None:
    """Print the ratio and the overheads."""
    with TemporaryDirectory(prefix="grid") as folder:
        alone = measure(make_grid(Path(folder) / "alone", 12, seconds), "dvc", "repro", "--quiet")
        slots = measure(make_grid(Path(folder) / "slots", 12, seconds), "pipeline.runner.run", "--slots", "2")
        print(f"12 cells of two stages of {seconds:g} s: dvc repro {alone:.1f} s, two slots {slots:.1f} s", flush=True)
        overheads = []
        for size in SIZES:
            project = make_grid(Path(folder) / str(size), size, 0.0)
            write_lock(project, size)
            start = measure(project, "pipeline.runner.run", "--slots", "1")
            for number in range(STALE):
                (project / f"code/cell_{number:03}").write_text("changed")
            both = measure(project, "pipeline.runner.run", "--slots", "1")
            overheads.append((both - start) / (2 * STALE))
            print(
                f"{size} cells: {overheads[-1]:.2f} s per stage, {start:.1f} s to see that all is up to date",
                flush=True,
            )
    print(json.dumps({"grid_ratio": round(slots / alone, 3), "overhead_s": round(max(overheads), 3)}))


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
    (folder / "dvc.yaml").write_text(STAGES % {"seconds": seconds})
    for words in (("git", "init", "-q"), (sys.executable, "-m", "dvc", "init", "-q")):
        subprocess.run(words, cwd=folder, env=environment(), check=True)
    return folder


def settings() -> dict[str, Any]:
    """The settings of this repository."""
    return read_yaml(PARAMS)


def write_lock(folder: Path, size: int) -> None:
    """Make all cells up to date without running them, which would take DVC a quarter of an hour for 200."""
    from dvc.utils.serialize import dump_yaml

    params = settings()
    stages: dict[str, Any] = {}
    for number in range(size):
        cell = f"cell_{number:03}"
        for place in ("runs", "metrics"):
            (folder / place / cell).write_text(cell)
        file = {"hash": "md5", "md5": hashlib.md5(cell.encode(), usedforsecurity=False).hexdigest(), "size": len(cell)}
        row = {"dataset": "shapes", "backbone": "resnet18", "output_stride": 8, "pretrained": False}
        values = {f"grid.{cell}": row, **{name: params[name] for name in SHARED}}
        for kind, source, target in (("train", "code", "runs"), ("evaluate", "runs", "metrics")):
            stages[f"{kind}@{cell}"] = {
                "cmd": f"sleep 0.0 && cp {source}/{cell} {target}/{cell}",
                "deps": [{"path": f"{source}/{cell}", **file}],
                "params": {"params.yaml": dict(sorted(values.items()))},
                "outs": [{"path": f"{target}/{cell}", **file}],
            }
    dump_yaml(str(folder / "dvc.lock"), {"schema": "2.0", "stages": stages})


def measure(folder: Path, module: str, *words: str) -> float:
    """Seconds of a command in `folder`."""
    began = time.perf_counter()
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


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
