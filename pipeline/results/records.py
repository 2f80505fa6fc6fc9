"""Records of evaluations: their form, and which of their results belong to the current settings, data and code."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import copysign, fsum, hypot
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deeplab.config import STRICT, Cell, Share, digest
from pipeline.files import readable
from pipeline.results.splits import SplitResult, manifest_fingerprint, split_results
from pipeline.settings.code import code_of
from pipeline.settings.equivalent import oldest, read_equivalences
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.settings.schema import DatasetConfig

if TYPE_CHECKING:
    from pipeline.results.columns import Column
    from pipeline.settings.links import Published

SCORES = ("mIoU", "pixel_accuracy", "mean_accuracy", "classes_evaluated")
INTERVAL = ("mIoU_low", "mIoU_high")  # with two images or more: 95 %, over images, not over seeds
FINGERPRINTS = ("cell", "data", "code", "protocol")

Place = tuple[str, int]  # cell and seed
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of a record: checked on construction, then frozen."""

    model_config = ConfigDict(**STRICT, frozen=True)


class Scores(Part):
    """SCORES and INTERVAL of one seed under one protocol, as shares; `classes_evaluated` is a number."""

    mIoU: Share  # noqa: N815  the names in the file
    pixel_accuracy: Share
    mean_accuracy: Share
    classes_evaluated: Count
    mIoU_low: Share = 0.0  # noqa: N815
    mIoU_high: Share = 1.0  # noqa: N815
    measures: dict[str, Share] = Field(default_factory=dict)  # those of MEASURES that `columns` asked for

    @model_validator(mode="after")
    def check_interval(self) -> Self:
        if not self.mIoU_low <= self.mIoU <= self.mIoU_high:
            raise ValueError(f"mIoU is {self.mIoU}, and not between {' and '.join(INTERVAL)}")
        return self


class Inputs(Part):
    """The fingerprints of what a result depends on, apart from the protocol."""

    cell: str
    data: str
    code: str


class Weights(Part):
    """The evaluated weights of a seed."""

    file: str
    sha256: str


class Start(Part):
    """The weights that the training of a seed started from, by `init`."""

    source: str  # as the tables show it
    sha256: str


class SplitScores(Part):
    """What was measured on a further split."""

    images: Count
    data: str  # SHA-256 of the manifest that has them
    seeds: dict[str, dict[str, Scores]]  # as those of the record


class Record(Part):
    """What `evaluate` writes about a cell. The same inputs give the same bytes."""

    cell: str
    dataset: str
    images: dict[str, Count]  # split -> number of images
    protocols: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    seeds: Annotated[dict[str, dict[str, Scores]], Field(min_length=1)]  # seed -> protocol -> scores
    fingerprint: Inputs
    weights: dict[str, Weights]  # seed -> weights
    init: dict[str, Start] | None = None  # seed -> start
    splits: dict[str, SplitScores] | None = None  # further splits, whose numbers decide nothing
    versions: dict[str, str] = Field(default_factory=dict)  # of what it was measured with; older records have none

    @model_validator(mode="after")
    def check_seeds(self) -> Self:
        if self.weights.keys() != self.seeds.keys():
            raise ValueError(f"weights of the seeds {list(self.weights)}, expected {list(self.seeds)}")
        for seeds in (self.seeds, *(split.seeds for split in (self.splits or {}).values())):
            if seeds.keys() != self.seeds.keys():
                raise ValueError(f"splits: the seeds {list(seeds)}, expected {list(self.seeds)}")
            for seed, scores in seeds.items():
                if scores.keys() != self.protocols.keys():
                    raise ValueError(f"seeds.{seed}: the protocols {list(scores)}, expected {list(self.protocols)}")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in `path`. Raises ValueError, in one line, when `evaluate` cannot have written it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            mistake = error.errors()[0]
        where = "".join(f"{part}." for part in mistake["loc"]).rstrip(".")
        raise ValueError(": ".join(filter(None, (where, mistake["msg"].removeprefix("Value error, ")))))

    def text(self) -> str:
        """The content of the file, as strict JSON."""
        value = self.model_dump(exclude_unset=True)  # no interval for a single image
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one seed of a cell under the first protocol, which fills the tables."""

    cell: str
    seed: int
    scores: dict[str, float]  # SCORES and INTERVAL, as shares; classes_evaluated is a number
    images: dict[str, int]  # split -> number of images
    fingerprint: dict[str, str]  # FINGERPRINTS
    weights: dict[str, str]  # file, sha256
    versions: dict[str, str] = field(default_factory=dict)  # what it was measured with, where that is known
    run: str = ""  # its id in MLflow
    splits: dict[str, SplitResult] = field(default_factory=dict)  # further splits

    @property
    def key(self) -> str:
        """Hash of the content."""
        left_out = ("run", "versions", *(() if self.splits else ("splits",)))
        return digest({name: value for name, value in asdict(self).items() if name not in left_out})


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: a cell with the results of its seeds."""

    name: str
    cell: Cell
    overrides: str  # what it changes of the recipe, as Params has it
    dataset: DatasetConfig
    results: tuple[Result, ...]  # one per seed; empty when the cell is not measured
    card: Path | None  # its model card; None without a result of this folder
    published: tuple["Published", ...]  # the files that others can get
    splits: tuple[str, ...] = ()  # further splits that its data set is evaluated on
    columns: dict[str, "Column"] = field(default_factory=dict)  # those that params.yaml asks for
    extras: dict[str, Any] = field(default_factory=dict)  # their numbers, as in the CSV table

    def mean(self, score: str) -> float:
        return fmean(result.scores[score] for result in self.results)

    def mean_end(self, end: str) -> float | None:
        """An end of the interval of the mean over the seeds; None unless all of them have an interval."""
        return end_of_mean([result.scores for result in self.results], end, folds=bool(self.cell.recipe.folds))

    def spread(self, score: str) -> float | None:
        """Standard deviation over the seeds."""
        values = [result.scores[score] for result in self.results]
        return stdev(values) if len(values) > 1 else None


def end_of_mean(scores: list[dict[str, float]], end: str, folds: bool) -> float | None:
    """An end of the interval of the mean of mIoUs, with `folds` of independent ones; None unless all have it."""
    if not scores or not all(end in own for own in scores):
        return None
    if not folds:
        return fmean(own[end] for own in scores)  # at least as far away as that of their mean
    away = [own[end] - own["mIoU"] for own in scores]
    return fmean(own["mIoU"] for own in scores) + copysign(hypot(*away), fsum(away)) / len(away)


def read_results(dataset: str, params: Params, places: Places) -> tuple[dict[Place, Result], dict[str, str]]:
    """The recorded results of `dataset` that belong to the current inputs, and for each other cell why it has none.

    Raises DataError for a record that `evaluate` cannot have written.
    """
    results: dict[Place, Result] = {}
    reasons: dict[str, str] = {}
    data = manifest_fingerprint(places.manifest(dataset))
    for name, cell in params.cells_of(dataset).items():
        path, stage = places.record(dataset, name), params.stage("evaluate", name)
        if not path.exists():
            reasons[name] = f"not measured yet. Run: dvc repro {stage}"
            continue
        with readable(path, f"Run: dvc repro -f {stage}"):
            record = Record.read(path)
            check_against(record, name, places.metrics(name))
            splits = {cell.recipe.train_split, cell.recipe.eval_split}
            if record.fingerprint.cell == cell.fingerprint and splits - record.images.keys():
                raise ValueError(f"images: got those of {list(record.images)}, expected {sorted(splits)}")
        if parent := trained_since(record, params, places):
            again = f"dvc repro -f -s {params.stage('train', name)} && dvc repro {stage}"
            reasons[name] = f"{path}: {parent}, from which it started, was trained again since. Run: {again}"
        elif changed := out_of_date(record, params, places, data):
            reasons[name] = f"{path} was made with different {changed}. Run: dvc repro {stage}"
        else:
            results |= {(name, result.seed): result for result in results_in(record, params, places)}
    return results, reasons


def current_code(params: Params, places: Places, cell: str) -> str:
    """The fingerprint of the code that trains `cell`."""
    return code_of("train", params, places, cell)


def check_against(record: Record, name: str, metrics: Path) -> None:
    """Raise ValueError when `record` is not about the cell `name`, or `metrics` has other numbers."""
    if record.cell != name:
        raise ValueError(f"it is the record of the cell {record.cell}")
    if not metrics.exists():
        return
    main_protocol = next(iter(record.protocols))
    said = json.loads(metrics.read_text(encoding="utf-8"))
    for score in SCORES:
        mean = fmean(getattr(scores[main_protocol], score) for scores in record.seeds.values())
        rounding = 0.51 if score == "classes_evaluated" else 1e-5
        if score in said and abs(said[score] - mean) > rounding:
            raise ValueError(f"{score} is {mean}, but {said[score]} in {metrics}")


def out_of_date(record: Record, params: Params, places: Places, data: str | None) -> str:
    """The inputs of `record` that differ from the current ones, separated by commas."""
    cell = params.cell(record.cell)
    code = oldest(record.fingerprint.code, read_equivalences(places.equivalent_code))
    same = {
        "settings": record.fingerprint.cell == cell.fingerprint,
        "data": data in (None, record.fingerprint.data),
        "code": code == current_code(params, places, record.cell),
        "protocol": next(iter(params.protocols)) in params.same_protocols(record.protocols),  # others fill columns
        "seeds": {str(seed) for seed in params.runs[record.cell]} <= record.seeds.keys(),
    }
    return ", ".join(name for name, agrees in same.items() if not agrees)


def trained_since(record: Record, params: Params, places: Places) -> str:
    """The cell from which `record` started, when its own record is up to date and of other weights; else empty."""
    init = params.cell(record.cell).init
    parent = init.cell if init else None
    if parent is None:
        return ""
    dataset = params.cell(parent).dataset
    path = places.record(dataset, parent)
    if not path.exists():
        return ""
    with readable(path, f"Run: dvc repro -f {params.stage('evaluate', parent)}"):
        now = Record.read(path)
    if out_of_date(now, params, places, manifest_fingerprint(places.manifest(dataset))):
        return ""
    known = {weights.sha256 for weights in now.weights.values()}
    return parent if any(start.sha256 not in known for start in (record.init or {}).values()) else ""


def results_in(record: Record, params: Params, places: Places) -> Iterator[Result]:
    """One result for each current seed, under the current first protocol."""
    main_protocol = next(iter(params.protocols))
    for seed in params.runs[record.cell]:
        scores = record.seeds[str(seed)][main_protocol].model_dump(exclude_unset=True)
        yield Result(
            cell=record.cell,
            seed=seed,
            scores=numbers_in(scores),
            images=record.images,
            fingerprint={**record.fingerprint.model_dump(), "protocol": params.protocol_fingerprint},
            weights=record.weights[str(seed)].model_dump(),
            versions=record.versions,
            splits=split_results(record, seed, params, places),
        )


def numbers_in(scores: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """SCORES, and INTERVAL where it exists. Raises KeyError without one of SCORES."""
    held = {score: float(scores[prefix + score]) for score in SCORES}
    return held | {end: float(scores[prefix + end]) for end in INTERVAL if prefix + end in scores}


def current_fingerprint(name: str, params: Params, places: Places, data: str) -> dict[str, str]:
    """FINGERPRINTS that a result of the cell `name` must have to be shown, whoever measured it."""
    return {
        "cell": params.cell(name).fingerprint,
        "data": data,
        "code": current_code(params, places, name),
        "protocol": params.protocol_fingerprint,
    }
