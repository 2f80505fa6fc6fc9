"""What the page shows, read from the files that the stages wrote.

Nothing here stops the page: a file that is missing, damaged or from another run is left out, and a note names it. A
file belongs to a cell when it names the weights in the cell's row of the table.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from deeplab.config import Cell
from deeplab.errors import DataError
from pipeline.page.verdicts import COLUMNS, Comparison, compare, read_reference
from pipeline.results.columns import Column, asked
from pipeline.results.table import title_of
from pipeline.settings.params import Params
from pipeline.settings.places import Places

Facts = dict[str, Any]
Value = TypeVar("Value")

CURVES = ("seed", "step", "train/loss", "train/lr")  # columns of a history; val/mIoU may be missing
WRONG = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, DataError)  # what reading a file raises


@dataclass(kw_only=True)
class CellPage:
    """A row of a table, and what its run left behind."""

    name: str
    title: str  # as the tables of the README have it
    cell: Cell
    row: dict[str, str]  # of the CSV table
    comparison: Comparison
    protocol: str  # the first one, which fills the tables
    facts: dict[str, Facts] = field(default_factory=dict)  # seed -> what the training recorded
    history: pd.DataFrame | None = None  # seed, step, train/loss, train/lr, val/mIoU
    classes: pd.DataFrame | None = None  # class, IoU (mean over seeds, nan without pixels), accuracy, pixels
    pairs: pd.DataFrame | None = None  # truth, predicted, pixels, share; of the first seed
    parts: Path | None = None  # the folder with about.json
    about: dict[str, Any] = field(default_factory=dict)  # the content of about.json

    @property
    def measured(self) -> bool:
        return bool(self.row["mIoU"])

    @property
    def miou(self) -> float | None:
        """As a share."""
        return float(self.row["mIoU"]) if self.measured else None

    @property
    def seeds(self) -> list[str]:
        return self.row["seeds"].split()

    @property
    def weights(self) -> list[str]:
        """SHA-256, one for each seed."""
        return self.row["weights_sha256"].split()


@dataclass(kw_only=True)
class DatasetPage:
    """A data set with its cells, in the order of the table."""

    name: str
    title: str
    images: dict[str, int]  # split -> how many were published
    reference: pd.DataFrame  # the published numbers for it
    splits: tuple[str, ...] = ()  # further ones that the cells are evaluated on
    cells: list[CellPage] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    sheet: Path | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)  # more columns of the table
    gaps: list[str] = field(default_factory=list)  # what is missing, and how to get it

    @property
    def published(self) -> bool:
        return not self.reference.empty

    @property
    def measured(self) -> list[CellPage]:
        return [cell for cell in self.cells if cell.measured]

    def ranked(self, cell: CellPage) -> float:
        """1 for a cell that may be the best; nan for one with folds, on other images, beside cells without."""
        return 1 if not cell.cell.recipe.folds or all(each.cell.recipe.folds for each in self.measured) else nan

    def interval(self, cell: CellPage) -> dict[str, Any]:
        """`low` and `high`, as shares: of the statistics, or else of the table, which need no comparison of cells."""
        ends = {end: cell.row[f"mIoU_{end}"] for end in ("low", "high")}
        found: dict[str, Any] = self.statistics.get("cells", {}).get(cell.name)
        return found or {end: float(value) if value else None for end, value in ends.items()}


def read_pages(params: Params, places: Places) -> list[DatasetPage]:
    """A page for each data set that has cells: first those with results, then those with published numbers."""
    gaps: list[str] = []
    reference = attempt(read_reference, places.reference, gaps, "No published numbers are shown")
    if reference is None:
        reference = pd.DataFrame(columns=list(COLUMNS))
    pages = [read_dataset(name, params, places, reference) for name in params.datasets if params.cells_of(name)]
    pages.sort(key=lambda page: (not page.measured, not page.published))
    if pages:
        pages[0].gaps += gaps
    return pages


def read_dataset(name: str, params: Params, places: Places, reference: pd.DataFrame) -> DatasetPage:
    """The table of a data set, and what there is about its cells and its images."""
    config = params.datasets[name]
    own = reference[reference["dataset"] == name]
    page = DatasetPage(
        name=name,
        title=config.title,
        images=config.images,
        reference=own,
        splits=params.further(name),
        columns=asked(params),
    )

    def read_table(path: Path) -> list[CellPage]:
        with path.open(newline="", encoding="utf-8") as file:
            return [read_cell(row, params, reference) for row in csv.DictReader(file)]

    page.cells = (
        attempt(read_table, places.sheet(name), page.gaps, f"Run: dvc repro {params.stage('tables', name)}") or []
    )
    for cell in page.measured:
        read_run(cell, params, places, page.gaps)
    if missing := [cell.name for cell in page.cells if not cell.measured]:
        page.gaps.append(f"Not measured: {', '.join(missing)}. Run: grid run readme@{name}")
    read_data(page, places)
    return page


def read_cell(row: dict[str, str], params: Params, reference: pd.DataFrame) -> CellPage:
    """A row; DataError when params.yaml has no such cell, or other settings for it."""
    name = row["cell"]
    if name not in params.cells or row["cell_fingerprint"] != params.cells[name].fingerprint:
        raise DataError(f"{name} was made with other settings than those in params.yaml")
    cell = params.cells[name]
    title = title_of(cell, params.overrides[name])
    comparison = compare(row, cell, reference, params)
    protocol = next(iter(params.protocols))
    return CellPage(name=name, title=title, cell=cell, row=row, comparison=comparison, protocol=protocol)


def read_run(cell: CellPage, params: Params, places: Places, gaps: list[str]) -> None:
    """Add to `cell` the files that belong to the weights of its row, and to `gaps` what is missing or does not."""
    again = f"To get it: dvc repro {params.stage('evaluate', cell.name)}"

    def found(read: Callable[[Path, CellPage], Value], path: Path, what: str) -> Value | None:
        return attempt(lambda file: read(file, cell), path, gaps, f"No {what} of {cell.name}. {again}")

    plots, cell.parts = places.plots(cell.name), places.figures(cell.name) / "parts"
    cell.facts = found(read_facts, places.facts(cell.name), "cost, commit and curves") or {}
    if cell.facts:
        cell.history = found(read_history, places.history(cell.name), "curves")
    cell.classes = found(read_classes, plots / "classes.csv", "classes")
    if cell.classes is not None:
        cell.pairs = found(read_pairs, plots / "confusion.csv", "confusion")
    cell.about = found(read_about, cell.parts / "about.json", "predictions") or {}


def read_facts(path: Path, cell: CellPage) -> dict[str, Facts]:
    """What the training recorded, for the seeds whose weights are in the row."""
    seeds = json.loads(path.read_text(encoding="utf-8"))["seeds"]
    own = {seed: facts for seed, facts in seeds.items() if facts["weights"]["sha256"] in cell.weights}
    require(bool(own))
    return own


def read_history(path: Path, _: CellPage) -> pd.DataFrame:
    history: pd.DataFrame = pd.read_csv(path, dtype={"seed": str})
    return history[[*CURVES, *({"val/mIoU"} & set(history))]].astype(dict.fromkeys(CURVES[1:], float))


def read_plot(path: Path, seeds: list[str], protocol: str) -> pd.DataFrame:
    names = dict.fromkeys(("seed", "class", "truth", "predicted"), str)
    rows = pd.read_csv(path, dtype=names, keep_default_na=False)  # a class may be called NA
    own: pd.DataFrame = rows[(rows["protocol"] == protocol) & rows["seed"].isin(seeds)]
    return own


def read_classes(path: Path, cell: CellPage) -> pd.DataFrame:
    """The mean over the seeds; its mIoU is that of the row."""
    classes = read_plot(path, cell.seeds, cell.protocol)
    scores = ["IoU", "accuracy", "pixels"]
    classes[scores] = classes[scores].apply(pd.to_numeric)  # an empty field is a class that did not occur
    require(abs(classes.groupby("seed")["IoU"].mean().mean() - float(cell.row["mIoU"])) < 1e-5)
    means: pd.DataFrame = classes.groupby("class", sort=False)[scores].mean()
    return means.reset_index()


def read_pairs(path: Path, cell: CellPage) -> pd.DataFrame:
    assert cell.classes is not None
    pairs = read_plot(path, cell.seeds[:1], cell.protocol)
    require(set(pairs["truth"]) | set(pairs["predicted"]) <= set(cell.classes["class"]))
    pairs["share"] = pd.to_numeric(pairs["share"])  # empty for a class without pixels
    return pairs


def read_about(path: Path, cell: CellPage) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    require(about["weights"] in cell.weights)
    return about


def read_data(page: DatasetPage, places: Places) -> None:
    """Add the card and the sheet of the data that the cells saw, and the statistics, if they are there."""
    card, sheet = places.data_card(page.name) / "card.json", places.store(page.name) / "sheet.png"
    seen = {cell.row["data_fingerprint"] for cell in page.measured}

    def read_card(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        require(not seen or found["fingerprint"] in seen)
        return found

    if card.exists():
        page.card = attempt(read_card, card, page.gaps, "No card of the data") or {}
    for split in page.splits if page.card else ():
        if (path := places.split_cards(page.name) / split / "card.json").exists():
            attempt(
                lambda file: add_split(page.card, json.loads(file.read_bytes())), path, page.gaps, f"No card of {split}"
            )
    page.sheet = sheet if page.card and sheet.exists() else None
    if page.measured and places.statistics(page.name).exists():
        page.statistics = attempt(read_statistics, places.statistics(page.name), page.gaps, "No intervals") or {}


def add_split(card: dict[str, Any], more: dict[str, Any]) -> None:
    """Add the card of a further split to that of the data set."""
    card["splits"] |= more["splits"]
    card["duplicates"] += more["duplicates"]
    for own, other in zip(card["classes"], more["classes"], strict=True):
        own["pixel_share"] |= other["pixel_share"]
        own["images"] |= other["images"]


def read_statistics(path: Path) -> dict[str, Any]:
    """Intervals of cells and of pairs of cells; DataError when a number is missing."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, kind in (("mIoU", found.get("cells", {}).values()), ("difference", found.get("pairs", []))):
        for each in kind:
            if not all(isinstance(each[key], int | float) for key in (name, "low", "high")):
                raise DataError(f"not as it was written (an interval whose {name}, low or high is no number)")
    return found


def attempt(read: Callable[[Path], Value], path: Path, gaps: list[str], consequence: str) -> Value | None:
    """What `read` makes of `path`; when it fails, None, with the reason and the `consequence` added to `gaps`."""
    try:
        return read(path)
    except WRONG as error:
        gaps.append(f"{path}: {reason(error)}. {consequence}")
        return None


def require(holds: bool) -> None:
    """DataError for a file of another run."""
    if not holds:
        raise DataError("of another run than the table")


def reason(error: Exception) -> str:
    """In a few words, the same on every machine."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, DataError):
        return str(error)
    return "cannot be read" if isinstance(error, OSError) else f"not as it was written ({type(error).__name__})"
