"""Count what the grid costs before anything is spent: per cell and in sum, and what is missing.

Hours and memory come from trainings of the same network and batch on the same kind of device. Where there was none the
plan says unknown: it measures nothing and guesses nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

from deeplab.config import Cell, ModelConfig
from pipeline.errors import ParamsError, run_command
from pipeline.files import readable
from pipeline.results.records import read_results
from pipeline.runner.checks import check_names
from pipeline.settings.params import Params, load_params, unknown
from pipeline.settings.places import Places

RUNS, DATA, REPORTS = Path("runs"), Path("data"), Path("reports")
# What decides how fast a network trains, of the settings that a training writes down.
PACE = (
    "backbone", "output_stride", "aspp_channels", "projection_kernel", "auxiliary_channels", "crop", "batch_size",
    "precision", "tf32", "compile", "threads",
)  # fmt: skip
# Parameters and the channels of the last two levels, as timm builds them (a test compares).
BACKBONES = {
    "resnet18": (11_176_512, 256, 512),
    "resnet34": (21_284_672, 256, 512),
    "resnet50": (23_508_032, 1024, 2048),
    "resnet50c": (23_527_264, 1024, 2048),
    "resnet101": (42_500_160, 1024, 2048),
    "resnet101c": (42_519_392, 1024, 2048),
}
HEADS = ("cell", "iterations", "images/s", "GPU hours", "disk GB", "memory GB", "note")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cell costs. None is unknown."""

    done: bool  # measured already with today's settings, data and code
    iterations: int  # over all seeds
    speed: float | None  # images per second
    hours: float | None  # times the GPUs of a cell
    disk: int | None  # bytes, at its most: results, DVC's copy of them, and checkpoints
    memory: int | None  # bytes on the device
    missing: tuple[str, ...]


def read_costs(params: Params, names: Sequence[str]) -> dict[str, Cost]:
    """The costs of the cells `names`."""
    device = this_device()
    measured = read_measurements(device)
    done = finished(params)
    images = {name: count_images(params, name) for name in {params.cells[cell].dataset for cell in names}}
    classes = {name: count_classes(params, name) for name in images}
    costs = {}
    for name in names:
        cell = params.cells[name]
        epoch = images[cell.dataset] // cell.recipe.batch_size
        iterations = cell.recipe.epochs * epoch * len(params.seeds)
        speed, memory = measured.get(pace(settings_of(cell)), (None, None))
        parameters = count_parameters(cell.model, classes[cell.dataset])
        seconds = iterations * cell.recipe.batch_size / speed if speed else None
        gpus = params.runtime.gpus_per_cell if device != "cpu" else 1
        costs[name] = Cost(
            done=name in done,
            iterations=iterations,
            speed=speed,
            hours=gpus * seconds / 3600 if seconds is not None else None,
            disk=4 * parameters * (5 + 2 * len(params.seeds)) if parameters else None,
            memory=memory,
            missing=tuple(find_missing(params, cell)),
        )
    return costs


def finished(params: Params) -> set[str]:
    """The cells that have results with today's settings, data and code."""
    found: set[str] = set()
    for dataset in params.datasets:
        results, _ = read_results(dataset, params, Places())
        cells = {cell for cell, _ in results}
        found |= {cell for cell in cells if all((cell, seed) in results for seed in params.seeds)}
    return found


def count_images(params: Params, dataset: str) -> int:
    """How many images one epoch has: of the prepared store, else as published."""
    split = params.splits[dataset][0]
    manifest = DATA / dataset / "manifest.json"
    if manifest.exists():
        with readable(manifest, f"Run: dvc repro -f {params.stage('prepare', dataset)}"):
            samples = json.loads(manifest.read_bytes())["samples"]
            return sum(sample["split"] == split for sample in samples)
    return params.datasets[dataset].images.get(split, 0)


def count_classes(params: Params, dataset: str) -> int:
    """How many classes the prepared store has; 21 if it is not there, which moves the size by a thousandth."""
    manifest = DATA / dataset / "manifest.json"
    with readable(manifest, f"Run: dvc repro -f {params.stage('prepare', dataset)}"):
        return len(json.loads(manifest.read_bytes())["classes"]) if manifest.exists() else 21


def count_parameters(model: ModelConfig, classes: int) -> int | None:
    """The parameters of DeepLabv3 without building it; None for a backbone that is not listed above."""
    if model.backbone not in BACKBONES:
        return None
    backbone, low, high = BACKBONES[model.backbone]
    channels, branches = model.aspp_channels, len(model.aspp_rates) + 2
    aspp = 2 * high * channels + 9 * len(model.aspp_rates) * high * channels + 2 * channels * branches
    project = model.projection_kernel**2 * branches * channels**2 + 2 * channels
    head = (channels + 1) * classes
    small = model.auxiliary_channels
    auxiliary = 9 * low * small + 2 * small + (small + 1) * classes if small else 0
    return backbone + aspp + project + head + auxiliary


def read_measurements(device: str) -> dict[str, tuple[float, int | None]]:
    """Images per second and bytes of memory, by `pace`, of the trainings on `device` that left their facts here."""
    found: dict[str, list[tuple[float, int | None]]] = {}
    for facts in read_facts():
        if facts.get("device") == device and "images_per_second" in facts:
            with readable(RUNS, "A run.json there has no numbers where they belong: dvc checkout --force"):
                known = (float(facts["images_per_second"]), facts.get("peak_memory"))
            found.setdefault(pace(facts["settings"]), []).append(known)
    return {
        key: (median(speed for speed, _ in values), max((memory for _, memory in values if memory), default=None))
        for key, values in found.items()
    }


def read_facts() -> Iterator[dict[str, Any]]:
    """What the trainings in this folder wrote down."""
    for path in RUNS.glob("*/run.json"):
        with readable(path, f"Run: dvc checkout --force train@{path.parent.name}"):
            seeds = [dict(facts) for facts in json.loads(path.read_bytes())["seeds"].values()]
        yield from seeds


def settings_of(cell: Cell) -> dict[str, Any]:
    """A cell's settings as a training writes them down."""
    return {**vars(cell.model), **vars(cell.recipe), **vars(cell.train)}


def pace(settings: dict[str, Any]) -> str:
    """What trainings of the same speed have in common."""
    return json.dumps([settings.get(key) for key in PACE])


def find_missing(params: Params, cell: Cell) -> Iterator[str]:
    """What has to be there, or fetched, before the cell can be trained."""
    name, config = cell.dataset, params.datasets[cell.dataset]
    if not (DATA / name / "manifest.json").exists() and config.format != "shapes":
        raw = DATA / "raw" / name
        if raw.exists():
            yield f"{name} is not prepared"
        elif lacking := [each.name for each in config.archives if not each.urls and not archive(each.name).exists()]:
            yield f"{', '.join(lacking)} in data/archives, or {raw}"
        elif config.archives:
            yield f"{name} will be downloaded"
        else:
            yield f"{raw}"
    if cell.model.pretrained and not has_weights(cell.model.backbone):
        yield f"ImageNet weights of {cell.model.backbone}, fetched by the first training"


def archive(name: str) -> Path:
    """Where an archive lies."""
    return DATA / "archives" / name


def has_weights(backbone: str) -> bool:
    """Whether ImageNet weights of `backbone` lie where the training looks for them."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return any(
        place.exists() and any(place.glob(pattern))
        for place, pattern in (
            (DATA / "pretrained", f"{backbone}.*safetensors"),
            (hub, f"models--timm--{backbone}.*/snapshots/*/*"),
        )
    )


def this_device() -> str:
    """The GPU of this machine as torch names it, or cpu."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.splitlines()[0].strip()
    return "cpu"


def as_table(costs: dict[str, Cost], device: str) -> list[str]:
    """The costs as aligned lines, the sum of what is still to be spent at the end."""
    rows = [(name, *cells_of(cost), "done" if cost.done else "; ".join(cost.missing)) for name, cost in costs.items()]
    rest = [cost for cost in costs.values() if not cost.done]
    total = (
        f"{len(rest)} to train",
        f"{sum(cost.iterations for cost in rest):,}",
        "",
        number(add(cost.hours for cost in rest), 1, 1),
        number(add(cost.disk for cost in rest), 1e9, 1),
        number(max((cost.memory or 0 for cost in rest), default=0) or None, 1e9, 1),
        f"on {device}",
    )
    table = [HEADS, *rows, total]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADS))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]


def cells_of(cost: Cost) -> tuple[str, ...]:
    """The columns of one cell."""
    speed, hours = number(cost.speed, 1, 1), number(cost.hours, 1, 2)
    return f"{cost.iterations:,}", speed, hours, number(cost.disk, 1e9, 1), number(cost.memory, 1e9, 1)


def add(values: Iterator[float | None]) -> float | None:
    """The sum, or None when one is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def number(value: float | None, unit: float, digits: int) -> str:
    """`value` in `unit`s, or the word unknown."""
    return "unknown" if value is None else f"{value / unit:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cells", nargs="*", metavar="CELL", help="a cell of params.yaml or a glob; default: all of `grid`"
    )
    arguments = parser.parse_args()
    params = load_params()
    check_names(params)
    own = [name for name, cell in params.cells.items() if cell.dataset not in params.examples]
    names: list[str] = [] if arguments.cells else own
    for word in arguments.cells:
        found = [name for name in params.cells if fnmatchcase(name, word)]
        if not found:
            raise ParamsError(f"params.yaml: grid: {unknown(word, params.cells)}")
        names += [name for name in found if name not in names]
    print("\n".join(as_table(read_costs(params, names), this_device())))


if __name__ == "__main__":
    run_command(main)
