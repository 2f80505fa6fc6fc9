"""What would run, why, and what it costs.

Hours, memory and disk come from trainings of the same network and batch on the same kind of device. Without one they
are unknown: the plan measures nothing and guesses nothing.
"""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from deeplab.config import Cell
from pipeline.files import readable
from pipeline.progress import duration
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.settings.stage_names import kind_and_name
from pipeline.training.facts import Facts, flat_settings, read_run

# The settings that decide how fast a network trains.
PACE = (
    "backbone", "output_stride", "aspp_channels", "projection_kernel", "auxiliary_channels", "crop", "batch_size",
    "precision", "tf32", "compile", "threads",
)  # fmt: skip
HEADS = ("stage", "why", "iterations", "time", "disk GB", "memory GB", "missing")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the training of a cell costs. None is unknown."""

    iterations: int  # over all seeds
    images_per_second: float | None
    hours: float | None  # of the device, or of all GPUs that share the cell, side by side
    disk: int | None  # bytes at most: results, DVC's copy of them, and checkpoints
    memory: int | None  # bytes on the device
    missing: tuple[str, ...]  # what is downloaded, or has to be placed, first


@dataclass(frozen=True, kw_only=True)
class Line:
    """A stage that would run."""

    stage: str
    why: str
    cost: Cost | None  # of a training


def plan(params: Params, reasons: Mapping[str, str], places: Places = Places()) -> list[Line]:
    """A line for each stage of `reasons`, which maps it to why it would run."""
    measured = read_measurements(places, this_device())
    lines = []
    for stage, why in reasons.items():
        kind, name = kind_and_name(stage)
        cost = cost_of(params, places, name, measured) if kind == "train" else None
        lines.append(Line(stage=stage, why=why, cost=cost))
    return lines


def cost_of(params: Params, places: Places, name: str, measured: Mapping[str, Facts]) -> Cost:
    """The cost of the cell `name`, from `measured` trainings by their pace."""
    cell = params.cell(name)
    epoch = count_images(params, places, cell.dataset) // cell.recipe.batch_size
    iterations = cell.recipe.epochs * epoch * len(params.seeds)
    like = measured.get(pace(flat_settings(cell, 0)))
    speed = like.images_per_second if like else None
    return Cost(
        iterations=iterations,
        images_per_second=speed,
        hours=iterations * cell.recipe.batch_size / speed / 3600 if speed else None,
        disk=4 * like.parameters * (5 + 2 * len(params.seeds)) if like and like.parameters else None,
        memory=like.peak_memory if like else None,
        missing=tuple(find_missing(params, places, cell)),
    )


def count_images(params: Params, places: Places, dataset: str) -> int:
    """How many images an epoch has: those of the prepared store, else as published."""
    split = params.splits[dataset][0]
    manifest = places.manifest(dataset)
    if manifest.exists():
        with readable(manifest, f"Run: dvc repro -f prepare@{dataset}"):
            return sum(sample["split"] == split for sample in json.loads(manifest.read_bytes())["samples"])
    return params.datasets[dataset].images.get(split, 0)


def read_measurements(places: Places, device: str) -> dict[str, Facts]:
    """The trainings on `device` in this project, by their pace; of several the one of median speed."""
    found: dict[str, list[Facts]] = {}
    for path in sorted(places.runs.glob("*/run.json")):
        for facts in read_run(path).values():
            if facts.device == device and facts.images_per_second:
                found.setdefault(pace(facts.settings), []).append(facts)
    return {key: min(group, key=distance_to_median(group)) for key, group in found.items()}


def distance_to_median(group: list[Facts]) -> Any:
    """A key that sorts `group` by the distance to its median speed."""
    middle = median(facts.images_per_second or 0 for facts in group)
    return lambda facts: abs((facts.images_per_second or 0) - middle)


def pace(settings: Mapping[str, Any]) -> str:
    """What trainings of the same speed have in common."""
    return json.dumps([settings.get(key) for key in PACE])


def find_missing(params: Params, places: Places, cell: Cell) -> Iterator[str]:
    """What has to be placed or fetched before the cell can be trained."""
    name, config = cell.dataset, params.datasets[cell.dataset]
    if not places.manifest(name).exists() and config.format != "shapes":
        raw = places.raw(name)
        by_hand = [each.name for each in config.archives if not each.urls]
        if raw.exists():
            yield f"{name} is not prepared"
        elif lacking := [archive for archive in by_hand if not (places.archives / archive).exists()]:
            yield f"{', '.join(lacking)} in {places.archives}, or {raw}"
        elif config.archives:
            yield f"{name} will be downloaded"
        else:
            yield f"{raw}"
    if cell.model.pretrained and not has_weights(cell.model.backbone, places):
        yield f"ImageNet weights of {cell.model.backbone}, fetched by the first training"


def has_weights(backbone: str, places: Places) -> bool:
    """Whether ImageNet weights of `backbone` are where the training looks for them."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    if any(places.pretrained.glob(f"{backbone}.*safetensors")):
        return True
    try:
        return any(repo.repo_id.startswith(f"timm/{backbone}.") for repo in scan_cache_dir().repos)
    except CacheNotFound:
        return False


def this_device() -> str:
    """The name of the GPU of this machine, as torch gives it, or cpu."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.splitlines()[0].strip()
    return "cpu"


def as_text(lines: list[Line], stages: int) -> str:
    """The plan as aligned columns, with the sum of the trainings at the end; `stages` are those that were looked at."""
    if not lines:
        return f"up to date: {stages} stages"
    rows = [HEADS, *((line.stage, line.why, *columns(line.cost)) for line in lines)]
    costs = [line.cost for line in lines if line.cost]
    if costs:
        total = (
            number(add(cost.hours for cost in costs), as_time),
            number(add(cost.disk for cost in costs), as_gigabytes),
        )
        iterations = f"{sum(cost.iterations for cost in costs):,}"
        rows.append((f"{len(costs)} trainings", f"on {this_device()}", iterations, *total, "", ""))
    used = [column for column in range(len(HEADS)) if column < 2 or any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    table = ["  ".join(row[column].ljust(widths[column]) for column in used).rstrip() for row in rows]
    return "\n".join([*table, f"{len(lines)} of {stages} stages to run"])


def as_json(lines: list[Line], stages: int) -> str:
    """The plan for machines: null is unknown, sizes are bytes."""
    content = {"device": this_device(), "stages": stages, "to_run": [asdict(line) for line in lines]}
    return json.dumps(content, indent=2)


def columns(cost: Cost | None) -> tuple[str, ...]:
    """The columns of a training, empty for another stage."""
    if cost is None:
        return ("",) * (len(HEADS) - 2)
    sizes = number(cost.disk, as_gigabytes), number(cost.memory, as_gigabytes)
    return f"{cost.iterations:,}", number(cost.hours, as_time), *sizes, "; ".join(cost.missing)


def add(values: Iterable[float | None]) -> float | None:
    """The sum, or None when one is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def number(value: float | None, show: Any) -> str:
    return "unknown" if value is None else str(show(value))


def as_time(hours: float) -> str:
    return duration(3600 * hours)


def as_gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}"
