"""What would run, why, and what it costs.

Hours and memory come from trainings of the same network and batch on the same kind of device, or else from its page in
reports/benchmarks. Without one, hours are estimated (pipeline/runner/estimate.py) and memory is unknown. The plan
measures nothing.
"""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import TypeVar

from deeplab.config import Cell
from pipeline.files import readable
from pipeline.runner import estimate
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.settings.stage_names import kind_and_name
from pipeline.training.facts import Facts, flat_settings, read_run
from pipeline.training.speeds import Speed, pace, pace_of_cell, read_speeds

Number = TypeVar("Number", int, float)
WHY = 70  # letters of a reason that the text shows
SLOW = ("download", "prepare", "extend")  # stages that have a row of their own beside the cells


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the training of a cell costs. None is unknown."""

    iterations: int  # over all seeds
    images_per_second: float | None
    hours: float | None  # times the GPUs of a cell
    within: float  # the factor by which hours may be wrong; 1 when they were measured
    disk: int | None  # bytes at most: results with their spots, DVC's copy of them, and checkpoints
    memory: int | None  # bytes on the device
    missing: tuple[str, ...]  # what is downloaded, or has to be placed, first


@dataclass(frozen=True, kw_only=True)
class Line:
    """A stage that would run."""

    stage: str
    why: str
    cost: Cost | None  # of a training


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages that would run."""

    device: str  # that the hours are for
    to_run: tuple[Line, ...]


def plan(params: Params, reasons: Mapping[str, str], places: Places = Places()) -> Plan:
    """A line for each stage of `reasons`, which maps it to why it would run."""
    device = this_device()
    measured, weights = read_measurements(places, device), weights_at_hand(places)
    benchmarks = read_speeds(places.benchmarks, device)
    lines = []
    for stage, why in reasons.items():
        kind, name = kind_and_name(stage)
        cost = None
        if kind == "train":
            cell = params.cell(name)
            missing = tuple(find_missing(params, places, cell, weights))
            images = count_images(params, places, cell.dataset)
            images -= images // cell.recipe.folds.count if cell.recipe.folds else 0
            settings = flat_settings(cell, 0)
            like = measured.get(pace(settings)) or benchmarks.get(pace_of_cell(settings))
            speed = like.images_per_second if like else estimate.speed(cell, device, measured.values())
            cost = cost_of(params, name, images, like, speed, missing)
        lines.append(Line(stage=stage, why=why, cost=cost))
    return Plan(device=device, to_run=tuple(lines))


def cost_of(
    params: Params, name: str, images: int, like: Facts | Speed | None, speed: float | None, missing: tuple[str, ...]
) -> Cost:
    """The cost of a cell with `images` in an epoch, of which it trains `speed` a second; `like` is a training, or a row
    of a benchmark, of the same pace.
    """
    cell, seeds = params.cell(name), len(params.runs[name])
    batch = cell.recipe.batch_size
    iterations = cell.recipe.epochs * (images // batch) * seeds
    # A benchmark and an estimate are of one device.
    gpus = params.runtime.gpus_per_cell if isinstance(like, Facts) and like.device != "cpu" else 1
    parameters = like.parameters if like else estimate.parameters(cell.model)
    return Cost(
        iterations=iterations,
        images_per_second=speed,
        hours=gpus * iterations * batch / speed / 3600 if speed else None,
        within=1 if like else estimate.WITHIN,
        disk=4 * parameters * (5 + 2 * seeds + params.runtime.spots * (2 + 4 * seeds)) if parameters else None,
        memory=like.peak_memory or None if like else None,
        missing=missing,
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
    """The trainings on `device` in this project by their pace; of several the one of median speed."""
    found: dict[str, list[tuple[float, Facts]]] = {}
    for path in sorted(places.runs.glob("*/run.json")):
        for facts in read_run(path).values():
            if facts.device == device and facts.images_per_second:
                found.setdefault(pace(facts.settings), []).append((facts.images_per_second, facts))
    middle = {key: sorted(group, key=lambda pair: pair[0])[(len(group) - 1) // 2] for key, group in found.items()}
    return {key: facts for key, (_, facts) in middle.items()}


def find_missing(params: Params, places: Places, cell: Cell, weights: set[str]) -> Iterator[str]:
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
    if cell.model.pretrained and cell.model.backbone.partition(".")[0] not in weights:  # a name may have a tag
        yield f"ImageNet weights of {cell.model.backbone}, fetched by the first training"
    if cell.init and cell.init.file and not (places.root / cell.init.file).exists():
        yield cell.init.file


def weights_at_hand(places: Places) -> set[str]:
    """The backbones whose ImageNet weights were placed by hand, or are in the cache of Hugging Face."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    found = {path.name for path in places.pretrained.glob("*.safetensors")}
    with suppress(CacheNotFound):
        found |= {repo.repo_id.removeprefix("timm/") for repo in scan_cache_dir().repos if repo.nb_files}
    return {name.partition(".")[0] for name in found}


def this_device() -> str:
    """The name of the GPU of this machine, as torch gives it, or cpu."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.splitlines()[0].strip()
    return "cpu"


def as_text(found: Plan, stages: int) -> str:
    """The plan as a table with a row per cell, and the sum of the trainings; `stages` is how many there are in all."""
    if not found.to_run:
        return f"up to date: {stages} stages"
    here = "this CPU" if found.device == "cpu" else found.device
    rows: list[tuple[str, ...]] = [("cell", "why", "iterations", f"hours on {here}", "disk GB", "memory GB", "missing")]
    kinds: list[str] = []  # of stages that take seconds
    trained = {kind_and_name(line.stage)[1] for line in found.to_run if line.cost}
    for line in found.to_run:
        kind, name = kind_and_name(line.stage)
        if line.cost or kind in SLOW:
            rows.append(row_of(line.stage if kind in SLOW else name, line.why, line.cost))
        elif kind == "evaluate" and name not in trained:
            rows.append(row_of(name, f"evaluation: {line.why}", None))
        elif kind not in (*kinds, "evaluate"):
            kinds.append(kind)
    if costs := [line.cost for line in found.to_run if line.cost]:
        rows.append(row_of(f"{len(costs)} trainings", "", sum_of(costs)))
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    table = ["  ".join(row[column].ljust(widths[column]) for column in used).rstrip() for row in rows]
    count = f"{len(found.to_run)} of {stages} stages to run"
    return "\n".join([*(table if used else []), count + (f"; short ones: {', '.join(kinds)}" if kinds else "")])


def sum_of(costs: Sequence[Cost]) -> Cost:
    """The cost of several trainings, one after another."""
    return Cost(
        iterations=sum(cost.iterations for cost in costs),
        images_per_second=None,
        hours=add(cost.hours for cost in costs),
        within=max(cost.within for cost in costs),
        disk=add(cost.disk for cost in costs),
        memory=max((cost.memory or 0 for cost in costs), default=0) or None,
        missing=(),
    )


def as_json(found: Plan, stages: int) -> str:
    """The plan for machines: null is unknown, sizes are bytes."""
    return json.dumps({"stages": stages, **asdict(found)}, indent=2)


def row_of(name: str, why: str, cost: Cost | None) -> tuple[str, ...]:
    """A row of the text; a stage that is no training has no cost."""
    start = (name, shorten(why, WHY, placeholder=" ..."))
    if cost is None:
        return (*start, "", "", "", "", "")
    sizes = ("" if value is None else f"{value / 1e9:,.1f}" for value in (cost.disk, cost.memory))
    return (*start, f"{cost.iterations:,}", hours_of(cost), *sizes, "; ".join(cost.missing))


def hours_of(cost: Cost) -> str:
    """Hours as text, with the range that an estimate means."""
    if cost.hours is None:
        return "unknown"
    if cost.within == 1:
        return f"{cost.hours:,.2f}"
    factors = (1 / cost.within, 1, cost.within)
    low, middle, high = (f"{float(f'{cost.hours * factor:.2g}'):,.15g}" for factor in factors)  # two digits
    return f"about {middle} ({low} to {high})"


def add(values: Iterable[Number | None]) -> Number | None:
    """The sum, or None when one is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
