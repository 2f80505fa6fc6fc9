"""params.yaml as checked, frozen settings. The only reader of the file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic.dataclasses import dataclass

from deeplab.config import STRICT, Cell, InitConfig, Protocol, digest, without_defaults
from pipeline.errors import ParamsError
from pipeline.settings.messages import Location, unknown, validate
from pipeline.settings.schema import DatasetConfig, PublishConfig, RuntimeConfig, Sections
from pipeline.settings.yaml import read_yaml

PARAMS = Path("params.yaml")
NAME = re.compile(r"[a-z0-9_]+")  # names become file names and words of a command

SECTIONS = ("model", "train", "augment")
NAMED = ("backbone", "output_stride", "pretrained")  # what the name of every cell says
INIT_KEYS = [field.name for field in fields(InitConfig) if field.name != "parent"]

Value = TypeVar("Value")
Layer = tuple[str, Any]  # where in params.yaml, and the settings there
Origins = dict[tuple[str, str], str]  # (section, key) of a cell -> the last layer that sets it


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """params.yaml, resolved: each cell holds all of its settings."""

    cells: dict[str, Cell]
    overrides: dict[str, str]  # cell -> what its row overrides, as "loss=label_smoothing, lr=0.02"; part of its name
    runs: dict[str, tuple[int, ...]]  # cell -> the seed of each of its trainings; with folds it is the fold, too
    datasets: dict[str, DatasetConfig]
    splits: dict[str, tuple[str, str]]  # data set -> the training and the validation split of its recipe
    protocols: dict[str, Protocol]
    eval_splits: dict[str, tuple[str, ...]] = field(default_factory=dict)  # data set -> what to evaluate on
    runtime: RuntimeConfig
    publish: PublishConfig = field(default_factory=PublishConfig)
    prose: tuple[str, ...] = ()  # Markdown files with values, beside the README
    columns: tuple[str, ...] = ()  # more columns of the tables, after the mIoU

    def cell(self, name: str) -> Cell:
        """The cell `name`. Raises ParamsError with the nearest name if it is unknown."""
        return pick(self.cells, name, "grid")

    def dataset(self, name: str) -> DatasetConfig:
        """The data set `name`. Raises ParamsError with the nearest name if it is unknown."""
        return pick(self.datasets, name, "datasets")

    def further(self, dataset: str) -> tuple[str, ...]:
        """The splits beside the validation split that the cells of a data set are evaluated on. They decide nothing."""
        return tuple(split for split in self.eval_splits.get(dataset, ()) if split != self.splits[dataset][1])

    @property
    def protocol_settings(self) -> dict[str, Any]:
        """The protocols as records have them, without settings at their default."""
        return {name: without_defaults(protocol) for name, protocol in self.protocols.items()}

    def same_protocols(self, held: Mapping[str, Any]) -> set[str]:
        """The names of the protocols that have the settings of today in `held`, those of a record."""
        now = self.protocol_settings
        return {name for name in held.keys() & now.keys() if digest(held[name]) == digest(now[name])}

    @property
    def protocol_fingerprint(self) -> str:
        """SHA-256 of the protocol that fills the tables."""
        name, settings = next(iter(self.protocol_settings.items()))
        return digest({name: settings})

    def stage(self, kind: str, name: str) -> str:
        """The name of the stage `kind` of a cell or a data set."""
        return f"{kind}@{name}"

    def cells_of(self, dataset: str) -> dict[str, Cell]:
        """The cells of a data set."""
        return {name: cell for name, cell in self.cells.items() if cell.dataset == dataset}


def load_params(path: Path = PARAMS) -> Params:
    """Read and check `path`. Raises ParamsError with file, key, value and remedy."""
    return as_params(path, read_yaml(path))


def as_params(path: Path, raw: dict[str, Any]) -> Params:
    """`raw`, the content of `path`, checked. Raises ParamsError as above."""
    for section in ("grid", "datasets", "recipes", "protocols"):
        for name in raw[section] if isinstance(raw.get(section), dict) else ():
            if not isinstance(name, str):
                kind = "a number" if isinstance(name, (int, float)) and not isinstance(name, bool) else "no text"
                raise ParamsError(f"{path}: {section}: a name is {kind} for YAML, {name}. Write the name in quotes.")
    sections = validate(Sections, raw, lambda location: f"{path}: {'.'.join(location)}")
    for names in (sections.grid, sections.datasets, sections.protocols):
        if odd := [name for name in names if not NAME.fullmatch(name)]:
            raise ParamsError(f"{path}: the name {odd[0]!r}: expected lower-case letters, digits and _ only")
    splits = {name: read_splits(path, name, recipe) for name, recipe in sections.recipes.items()}
    known = {name: own for name, own in splits.items() if name in sections.datasets}  # dvc.yaml pastes these names
    for name, chosen in sections.eval_splits.items():
        check_eval_splits(f"{path}: eval_splits", name, chosen, known)
    cells = {name: resolve(path, raw, name) for name in sections.grid}
    return Params(
        cells=cells,
        overrides={name: overridden(raw, name) for name in sections.grid},
        runs=read_runs(path, sections, cells),
        datasets=sections.datasets,
        splits=splits,
        protocols=sections.protocols,
        eval_splits=sections.eval_splits,
        runtime=sections.runtime,
        publish=sections.publish,
        prose=sections.prose,
        columns=sections.columns,
    )


def resolve(path: Path, raw: dict[str, Any], name: str, heirs: tuple[str, ...] = ()) -> Cell:
    """Lay the recipe of the row's data set, then the row `name` itself, over the shared sections of `raw`.

    `heirs` are the cells that start from `name`, directly or not.
    """
    row = raw["grid"][name]
    dataset, at = row["dataset"], f"{path}: grid.{name}"
    if dataset not in raw["datasets"]:
        raise ParamsError(f"{at}.dataset: {unknown(dataset, raw['datasets'])}")
    if dataset not in raw["recipes"]:
        raise ParamsError(f"{path}: recipes.{dataset}: missing. Add the recipe of this data set.")
    recipe = raw["recipes"][dataset]
    merged: dict[str, Any] = {"dataset": dataset}
    origins: Origins = {}
    for section in SECTIONS:
        layers = [
            (f"{path}: {section}", raw[section]),
            (f"{path}: recipes.{dataset}.{section}", recipe.get(section, {})),
            (f"{at}.{section}", row.get(section, {})),
        ]
        if section == "model":
            short = {key: row[key] for key in NAMED if key in row}
            layers.append((at, short))
        merged[section] = overlay(section, layers, origins)
    own = {key: value for key, value in recipe.items() if key not in (*SECTIONS, "init")}
    layers = [(f"{path}: recipes.{dataset}", own), (f"{at}.recipe", row.get("recipe", {}))]
    merged["recipe"] = overlay("recipe", layers, origins)
    start_at = f"{at}.init" if "init" in row else f"{path}: recipes.{dataset}.init"
    if (start := row["init"] if "init" in row else recipe.get("init")) is not None:
        merged["init"] = read_start(path, raw, start, start_at, (*heirs, name))
        if merged["model"].get("pretrained") and (wanted := origins["model", "pretrained"]) != f"{path}: model":
            beside = start_at.removeprefix(f"{path}: ")
            raise ParamsError(f"{wanted}.pretrained: got true beside {beside}, expected one of the two. Remove one.")
        merged["model"]["pretrained"] = False  # what `model` says for all is replaced

    def place_of(location: Location) -> str:
        section, key, *below = *location, ""  # a missing key has no layer: name the one that all cells share
        if section == "init":
            return ".".join([start_at, *(word for word in (key, *below) if word and word != "init")])
        shared = f"{path}: recipes.{dataset}" if section == "recipe" else f"{path}: {section}"
        return ".".join(word for word in (origins.get((section, key), shared), key, *below) if word)

    return validate(Cell, merged, place_of)


def read_runs(path: Path, sections: Sections, cells: Mapping[str, Cell]) -> dict[str, tuple[int, ...]]:
    """The seed of each training of each cell: those of its row or of all rows, or the numbers of its folds.

    Raises ParamsError for a row with both, and where a training has no training of the parent to start from.
    """
    runs = {}
    for name, cell in cells.items():
        own, folds = sections.grid[name].seeds, cell.recipe.folds
        if own and folds:
            raise ParamsError(
                f"{path}: grid.{name}.seeds: got {list(own)} beside folds, whose training k has the seed k. Remove it."
            )
        runs[name] = tuple(range(folds.count)) if folds else own or sections.seeds
    for name, cell in cells.items():
        parent = cell.init.cell if cell.init else None
        if not parent:
            continue
        at = f"{path}: grid.{name}: starts from the cell {parent}"
        if lacking := sorted(set(runs[name]) - set(runs[parent])):
            raise ParamsError(f"{at}, which has no seed {lacking[0]}, only {list(runs[parent])}. Give both the same.")
        images = (cell.recipe.folds, cell.recipe.train_split)
        for ancestor in ancestors(cell, cells) if cell.recipe.folds else ():
            theirs = cells[ancestor]
            if theirs.dataset == cell.dataset and (theirs.recipe.folds, theirs.recipe.train_split) != images:
                at = f"{path}: grid.{name}: starts from the cell {ancestor}"
                raise ParamsError(f"{at}, which was trained on the images of its folds. Give both the same folds.")
    return runs


def ancestors(cell: Cell, cells: Mapping[str, Cell]) -> Iterator[str]:
    """The cells that `cell` starts from, directly or not."""
    while cell.init and (name := cell.init.cell):
        yield name
        cell = cells[name]


def read_start(path: Path, raw: dict[str, Any], start: Any, at: str, heirs: tuple[str, ...]) -> dict[str, Any]:
    """The values of InitConfig for the last of `heirs`: `start`, found at `at`, with the settings of the cell it names.

    Raises ParamsError for an unknown cell and for a circle of cells.
    """
    if not isinstance(start, dict):
        raise ParamsError(f"{at}: got {start!r}, expected one of {{cell: NAME}}, {{file: PATH}} and {{hub: NAME}}")
    if odd := [key for key in start if key not in INIT_KEYS]:
        raise ParamsError(f"{at}: {unknown(str(odd[0]), INIT_KEYS)}")
    parent = start.get("cell")
    if parent is None:
        return start
    if not isinstance(parent, str) or parent not in raw["grid"]:
        raise ParamsError(f"{at}.cell: {unknown(str(parent), raw['grid'])}")
    if parent in heirs:
        circle = " from ".join([*heirs[heirs.index(parent) :], parent])
        raise ParamsError(
            f"{at}.cell: got {parent!r}, but then cells start in a circle: {circle}. Give one of them another start, "
            "or `init: null`"
        )
    return {**start, "parent": asdict(resolve(path, raw, parent, heirs))}


def overridden(raw: dict[str, Any], name: str) -> str:
    """The settings of the row `name` that differ from what it is laid over, without those of NAMED."""
    row = raw["grid"][name]
    recipe = raw["recipes"][row["dataset"]]
    below = {"recipe": recipe, **{section: raw[section] | recipe.get(section, {}) for section in SECTIONS}}
    return ", ".join(
        f"{key}={as_text(value)}"
        for section, shared in below.items()
        for key, value in row.get(section, {}).items()
        if key not in NAMED and (key not in shared or value != shared[key])
    )


def as_text(value: Any) -> str:
    """A setting in a name: short, and without a comma."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return "/".join(map(as_text, value)) or "none"
    if isinstance(value, str):
        return value  # a regular expression has capital letters
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value).lower()


def overlay(section: str, layers: list[Layer], origins: Origins) -> dict[str, Any]:
    """The settings of `layers`, later ones first; notes in `origins` where each comes from."""
    result: dict[str, Any] = {}
    for place, values in layers:
        if not isinstance(values, dict):
            raise ParamsError(f"{place}: got {values!r}, expected a mapping of settings")
        result.update(values)
        origins.update({(section, key): place for key in values})
    return result


def read_splits(path: Path, name: str, recipe: dict[str, Any]) -> tuple[str, str]:
    """The splits of a recipe, which may have no cell: a data set can be prepared before anything is trained on it."""
    for key in ("train_split", "val_split"):
        if not isinstance(recipe.get(key), str):
            raise ParamsError(f"{path}: recipes.{name}.{key}: got {recipe.get(key)!r}, expected the name of a split")
    return recipe["train_split"], recipe["val_split"]


def check_eval_splits(at: str, name: str, chosen: tuple[str, ...], splits: Mapping[str, tuple[str, str]]) -> None:
    """Raise ParamsError when the data set `name` cannot be evaluated on the splits `chosen`."""
    if name not in splits:
        raise ParamsError(f"{at}: {unknown(name, splits)}")
    if len(set(chosen)) < len(chosen):
        raise ParamsError(f"{at}.{name}: got {list(chosen)}, expected each split once")
    if (val := splits[name][1]) not in chosen:
        raise ParamsError(f"{at}.{name}: got {list(chosen)}, expected {val!r} too, the val_split of its recipe")


def pick(section: Mapping[str, Value], name: str, title: str) -> Value:
    """`section[name]`. Raises ParamsError with the nearest name if it is unknown."""
    if name not in section:
        raise ParamsError(f"{PARAMS}: {title}: {unknown(name, section)}")
    return section[name]
