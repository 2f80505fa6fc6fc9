"""params.yaml -> checked, frozen settings. The one reader: a mistake is answered with file, key, value and remedy."""

import difflib
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from deeplab.config import STRICT, Cell, Positive, Protocol
from pipeline.errors import ParamsError
from pipeline.settings.archive_options import Archive
from pipeline.settings.folder_options import FolderOptions
from pipeline.settings.slurm_options import SlurmOptions
from pipeline.settings.yaml import read_yaml

PARAMS = Path("params.yaml")
EXAMPLES = Path("examples")  # their dvc.yaml, dvc.lock and reports
NAME = re.compile(r"[a-z0-9_]+")  # names become file names and words of a command, so nothing else may stand in them

Value = TypeVar("Value")
Layer = tuple[str, dict[str, Any]]  # where in params.yaml, and what stands there


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GridRow:
    """A row of `grid`: what a cell does not share with the others."""

    dataset: str
    backbone: str
    output_stride: int
    pretrained: bool | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    augment: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """A data set as `download` and `prepare` read it."""

    title: str  # heads its table
    format: str  # a key of FORMATS
    archives: tuple[Archive, ...]  # none: its raw folder is placed by hand, or it has none
    images: dict[str, Positive]  # split -> how many images it has as published
    allow_subset: bool  # accept fewer
    store: Literal["packed", "files"] = "packed"  # pack the decoded images, or decode them each time: same pixels
    folder: FolderOptions | None = None  # of the format folder

    def __post_init__(self) -> None:
        if (self.format == "folder") != (self.folder is not None):
            raise ValueError(f"folder: expected with `format: folder` and only there, got `format: {self.format}`")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuntimeConfig:
    """What cannot move a number."""

    device: str
    gpus_per_cell: Positive  # GPUs that share the batch of one cell
    workers: Annotated[int, Field(ge=0)]
    log_every: Positive
    checkpoint_every: Annotated[float, Field(gt=0)]  # seconds
    validate_every: Annotated[int, Field(ge=0)]  # epochs
    tracking_every: Annotated[float, Field(gt=0)]  # seconds
    log_weights: bool  # copy the weights of shown results to MLflow
    slurm: SlurmOptions


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Examples:
    """Data sets beside those of the grid, with all that is their own: a plain `dvc repro` leaves them out."""

    grid: dict[str, GridRow] = Field(default_factory=dict)
    datasets: dict[str, DatasetConfig] = Field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sections:
    """The file as it is written, before recipes and rows are laid over the shared sections."""

    grid: dict[str, GridRow]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    datasets: dict[str, DatasetConfig]
    recipes: dict[str, dict[str, Any]]
    model: dict[str, Any]
    train: dict[str, Any]
    augment: dict[str, Any]
    protocols: Annotated[dict[str, Protocol], Field(min_length=1)]
    runtime: RuntimeConfig
    examples: Examples = Field(default_factory=Examples)

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, expected each seed once")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """params.yaml, resolved: each cell holds all of its settings."""

    cells: dict[str, Cell]
    seeds: tuple[int, ...]
    datasets: dict[str, DatasetConfig]
    splits: dict[str, tuple[str, str]]  # data set -> the training and the validation split of its recipe
    protocols: dict[str, Protocol]
    runtime: RuntimeConfig
    examples: frozenset[str]  # the data sets that are examples

    def cell(self, name: str) -> Cell:
        """The cell called `name`; ParamsError offers the nearest one if there is none."""
        return pick(self.cells, name, "grid")

    def dataset(self, name: str) -> DatasetConfig:
        """The data set called `name`; ParamsError offers the nearest one if there is none."""
        return pick(self.datasets, name, "datasets")

    def stage(self, kind: str, name: str) -> str:
        """How DVC calls the stage `kind` of a cell or a data set."""
        dataset = self.cells[name].dataset if name in self.cells else name
        return f"{EXAMPLES}/dvc.yaml:" * (dataset in self.examples) + f"{kind}@{name}"


def load_params(path: Path = PARAMS) -> Params:
    """Read and check `path`; raises ParamsError with file, key, value and remedy."""
    raw = read_yaml(path)
    sections: Sections = validate(Sections, raw, [(f"{path}: ", raw)])
    examples = sections.examples
    for names in (sections.grid, sections.datasets, sections.protocols, examples.grid, examples.datasets):
        if odd := [name for name in names if not NAME.fullmatch(name)]:
            raise ParamsError(f"{path}: the name {odd[0]!r}: expected lower-case letters, digits and _ only")
    for title in ("grid", "datasets", "recipes"):
        for name in getattr(sections, title).keys() & getattr(examples, title):
            raise ParamsError(f"{path}: examples.{title}.{name}: `{title}` has this name too; choose another")
    cells: dict[str, Cell] = {}
    splits: dict[str, tuple[str, str]] = {}
    for place, group, written in (("", sections, raw), ("examples.", examples, raw.get("examples", {}))):
        cells |= {name: resolve(path, raw, place, written, name, row) for name, row in group.grid.items()}
        splits |= {name: read_splits(f"{path}: {place}", name, recipe) for name, recipe in group.recipes.items()}
    return Params(
        cells=cells,
        seeds=sections.seeds,
        datasets=sections.datasets | examples.datasets,
        splits=splits,
        protocols=sections.protocols,
        runtime=sections.runtime,
        examples=frozenset(examples.datasets),
    )


def resolve(path: Path, raw: dict[str, Any], at: str, group: dict[str, Any], name: str, row: GridRow) -> Cell:
    """Lay the recipe of the row's data set, then the row itself, over the shared sections of `raw`.

    Row, recipe and data set stand in `group`, whose place in the file is `at`.
    """
    if row.dataset not in group.get("datasets", {}):
        raise ParamsError(f"{path}: {at}grid.{name}.dataset: {unknown(row.dataset, group.get('datasets', {}))}")
    if row.dataset not in group.get("recipes", {}):
        raise ParamsError(f"{path}: {at}recipes.{row.dataset}: missing. Add the recipe of this data set.")
    recipe = group["recipes"][row.dataset]
    written = group["grid"][name]
    short = {key: written[key] for key in ("backbone", "output_stride", "pretrained") if key in written}
    merged: dict[str, Any] = {"dataset": row.dataset}
    layers: list[Layer] = []
    for section in ("model", "train", "augment"):
        parts = [
            (f"{path}: {section}.", raw[section]),
            (f"{path}: {at}recipes.{row.dataset}.{section}.", recipe.get(section, {})),
            (f"{path}: {at}grid.{name}.{section}.", written.get(section, {})),
        ]
        if section == "model":
            parts.append((f"{path}: {at}grid.{name}.", short))
        merged[section] = overlay(parts)
        layers += [(place, {section: values}) for place, values in parts]
    own = {key: value for key, value in recipe.items() if key not in ("model", "train", "augment")}
    parts = [
        (f"{path}: {at}recipes.{row.dataset}.", own),
        (f"{path}: {at}grid.{name}.recipe.", written.get("recipe", {})),
    ]
    merged["recipe"] = overlay(parts)
    layers += [(place, {"recipe": values}) for place, values in parts]
    cell: Cell = validate(Cell, merged, layers, drop=1)
    return cell


def read_splits(place: str, name: str, recipe: dict[str, Any]) -> tuple[str, str]:
    """The splits of a recipe, which may have no cell: a data set can be prepared before anything is trained on it."""
    for key in ("train_split", "val_split"):
        if not isinstance(recipe.get(key), str):
            raise ParamsError(f"{place}recipes.{name}.{key}: got {recipe.get(key)!r}, expected the name of a split")
    return recipe["train_split"], recipe["val_split"]


def overlay(parts: list[Layer]) -> dict[str, Any]:
    """The mappings of `parts`, later ones winning."""
    result: dict[str, Any] = {}
    for place, values in parts:
        if not isinstance(values, dict):
            raise ParamsError(f"{place.rstrip('.')}: got {values!r}, expected a mapping of settings")
        result.update(values)
    return result


def validate(kind: Any, values: Any, layers: list[Layer], drop: int = 0) -> Any:
    """`values` as `kind`. A mistake is placed in the last of `layers` that holds its key, less `drop` leading words."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        # A misspelt key is also a missing one: name the misspelling.
        mistake = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
    location = [str(part) for part in mistake["loc"]]
    message = mistake["msg"]
    if own := mistake["type"] == "value_error":  # a rule of ours: "key: got ..., expected ..."
        key, message = message.removeprefix("Value error, ").split(": ", 1)
        location.append(key)
    place = next((place for place, held in reversed(layers) if holds(held, location)), None)
    if place is None:
        place = next((place for place, held in layers if holds(held, location[:-1])), layers[0][0])
    parent, where = (place + ".".join(location[drop:end]) for end in (-1, None))
    if own:
        raise ParamsError(f"{where}: {message}")
    if mistake["type"] == "unexpected_keyword_argument":
        known = known_names(kind, location[:-1])
        raise ParamsError(f"{parent.rstrip('.: ')}: {unknown(location[-1], known)}")
    if mistake["type"].startswith("missing"):
        raise ParamsError(f"{where}: missing. Add it; it has no default.")
    expected = re.sub(r"^\w+ should (be|have) | after validation, not \d+$", "", message)
    raise ParamsError(f"{where}: got {mistake['input']!r}, expected {expected}")


def holds(values: Any, location: list[str]) -> bool:
    """Whether `values` has something at `location`."""
    for key in location:
        if isinstance(values, dict) and key in values:
            values = values[key]
        elif isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        else:
            return False
    return True


def known_names(kind: Any, location: list[str]) -> list[str]:
    """The settings that may stand at `location` below `kind`."""
    for part in location:
        found = [field.type for field in fields(kind) if field.name == part] if is_dataclass(kind) else []
        if found:
            kind = getattr(found[0], "__origin__", found[0]) if hasattr(found[0], "__metadata__") else found[0]
        if not is_dataclass(kind):  # dict[str, Row]: the next word is a name, what stands below it is a Row
            kind = next((value for value in getattr(kind, "__args__", ()) if is_dataclass(value)), kind)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def pick(section: dict[str, Value], name: str, title: str) -> Value:
    """`section[name]`, or a ParamsError that offers the nearest name."""
    if name not in section:
        raise ParamsError(f"{PARAMS}: {title}: {unknown(name, section)}")
    return section[name]


def unknown(name: str, known: Any) -> str:
    """Say that `name` is not known, and which name is nearest."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"unknown name {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
