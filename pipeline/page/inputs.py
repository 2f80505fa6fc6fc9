"""What the page shows, read from the files that the stages wrote.

Nothing here stops the page: a file that is missing, damaged or of another run is left out, and a sentence says so. A
file counts as a cell's own when it names the weights that stand in the table's row.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from deeplab.errors import DataError
from pipeline.page.reference import COLUMNS, Comparison, compare, read_reference
from pipeline.settings.params import EXAMPLES, Params

Facts = dict[str, Any]

CURVES = ("seed", "step", "train/loss", "train/lr")  # columns of a history; val/mIoU may be missing


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the stages write."""

    reports: Path
    runs: Path
    data: Path

    @property
    def of_examples(self) -> bool:
        """Whether it is the examples' page, which stands beside their reports."""
        return self.reports.parent.name == EXAMPLES.name


@dataclass(kw_only=True)
class CellPage:
    """A row of a table, and what its run left behind."""

    name: str
    shown: dict[str, str]  # a column of the README -> what stands there
    row: dict[str, str]  # the row for programs
    comparison: Comparison
    facts: dict[str, Facts] = field(default_factory=dict)  # seed -> what the trainer wrote down
    history: pd.DataFrame | None = None  # seed, step, train/loss, train/lr, val/mIoU
    classes: pd.DataFrame | None = None  # class, IoU (mean over seeds, nan without pixels), accuracy, pixels
    pairs: pd.DataFrame | None = None  # truth, predicted, pixels, share; of the first seed
    parts: Path | None = None  # the folder with about.json
    about: dict[str, Any] = field(default_factory=dict)  # what about.json says

    @property
    def measured(self) -> bool:
        return bool(self.row["mIoU"])

    @property
    def miou(self) -> float:
        return float(self.row["mIoU"])

    @property
    def weights(self) -> list[str]:
        """SHA-256, one for each seed."""
        return self.row["weights_sha256"].split()


@dataclass(kw_only=True)
class DatasetPage:
    """A data set with its cells, in the order of the table."""

    name: str
    title: str
    reference: pd.DataFrame  # the published numbers for it
    cells: list[CellPage] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    sheet: Path | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)  # what is missing, and how to get it

    @property
    def published(self) -> bool:
        return not self.reference.empty

    @property
    def measured(self) -> list[CellPage]:
        return [cell for cell in self.cells if cell.measured]


def read_pages(params: Params, folders: Folders) -> list[DatasetPage]:
    """A page for each data set that a cell is trained on, those with published numbers first."""
    gaps: list[str] = []
    reference = pd.DataFrame(columns=list(COLUMNS))
    path = folders.reports / "reference.csv"
    with noted(gaps, path, "No published numbers are shown"):
        reference = read_reference(path.read_text(encoding="utf-8"))
    known = set(reference["dataset"])
    used = {cell.dataset for cell in params.cells.values()}
    names = [name for name in params.datasets if name in used and (name in params.examples) == folders.of_examples]
    pages = [
        read_dataset(name, params, folders, reference) for name in sorted(names, key=lambda name: name not in known)
    ]
    if pages:
        pages[0].gaps += gaps
    return pages


def read_dataset(name: str, params: Params, folders: Folders, reference: pd.DataFrame) -> DatasetPage:
    """The table of a data set, and what there is about its cells and its images."""
    own = reference[reference["dataset"] == name]
    page = DatasetPage(name=name, title=params.datasets[name].title, reference=own)
    tables = folders.reports / "tables"
    try:
        with (tables / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shown = read_markdown(tables / f"{name}.md")
        page.cells = [
            read_cell({**row, "dataset": name}, words, params, reference)
            for row, words in zip(rows, shown, strict=True)
        ]
    except (OSError, ValueError, KeyError, DataError) as error:
        page.gaps.append(f"{tables}/{name}.csv and .md: {reason(error)}. Run: dvc repro {params.stage('tables', name)}")
    for cell in page.measured:
        read_run(cell, params, folders, page.gaps)
    if len(page.measured) < len(page.cells):
        missing = [cell.name for cell in page.cells if not cell.measured]
        page.gaps.append(f"Not measured: {', '.join(missing)}. Run: python -m pipeline.runner.run readme@{name}")
    read_data(page, folders)
    return page


def read_markdown(path: Path) -> list[dict[str, str]]:
    """The rows of a table as the README shows it."""
    lines = [line.strip().strip("|").split(" | ") for line in path.read_text(encoding="utf-8").splitlines()]
    head = [word.strip() for word in lines[0]]
    return [dict(zip(head, (word.strip() for word in line), strict=True)) for line in lines[2:]]


def read_cell(row: dict[str, str], shown: dict[str, str], params: Params, reference: pd.DataFrame) -> CellPage:
    """A row; DataError when it is of a cell or of settings that params.yaml does not have."""
    name = row["cell"]
    if name not in params.cells or row["cell_fingerprint"] != params.cells[name].fingerprint:
        raise DataError(f"{name} is of other settings than params.yaml has")
    return CellPage(name=name, shown=shown, row=row, comparison=compare(row, shown, reference, params))


def read_run(cell: CellPage, params: Params, folders: Folders, gaps: list[str]) -> None:
    """Add to `cell` what belongs to the weights of its row, and to `gaps` what does not."""
    run = folders.runs / cell.name
    again = f"To get it: dvc pull, or dvc repro {params.stage('evaluate', cell.name)}"
    with noted(gaps, run / "run.json", f"No cost, commit and curves of {cell.name}. {again}"):
        seeds = json.loads((run / "run.json").read_text(encoding="utf-8"))["seeds"]
        cell.facts = {seed: facts for seed, facts in seeds.items() if facts["weights"]["sha256"] in cell.weights}
        require(bool(cell.facts))
    if cell.facts:
        with noted(gaps, run / "history.csv", f"No curves of {cell.name}. {again}"):
            history = pd.read_csv(run / "history.csv", dtype={"seed": str})
            cell.history = history[[*CURVES, *({"val/mIoU"} & set(history))]].astype(dict.fromkeys(CURVES[1:], float))
    plots, protocol = folders.reports / "plots" / cell.name, next(iter(params.protocols))
    with noted(gaps, plots / "classes.csv", f"No classes of {cell.name}. {again}"):
        classes = pd.read_csv(plots / "classes.csv", dtype={"seed": str, "class": str}, keep_default_na=False)
        classes = classes[(classes["protocol"] == protocol) & classes["seed"].isin(cell.row["seeds"].split())]
        for column in ("IoU", "accuracy", "pixels"):
            classes[column] = pd.to_numeric(classes[column])  # an empty field is a class that did not occur
        require(abs(classes.groupby("seed")["IoU"].mean().mean() - cell.miou) < 1e-5)
        kinds = classes.groupby("class", sort=False)
        cell.classes = kinds[["IoU", "accuracy", "pixels"]].mean().reset_index()
    if cell.classes is not None:
        with noted(gaps, plots / "confusion.csv", f"No confusion of {cell.name}. {again}"):
            names = {"seed": str, "truth": str, "predicted": str}
            pairs = pd.read_csv(plots / "confusion.csv", dtype=names, keep_default_na=False)
            first = cell.row["seeds"].split()[0]
            cell.pairs = pairs[(pairs["protocol"] == protocol) & (pairs["seed"] == first)]
            require(set(cell.pairs["truth"]) | set(cell.pairs["predicted"]) <= set(cell.classes["class"]))
    parts = folders.reports / "figures" / cell.name / "parts"
    with noted(gaps, parts / "about.json", f"No predictions of {cell.name}. {again}"):
        about = json.loads((parts / "about.json").read_text(encoding="utf-8"))
        require(about["weights"] in cell.weights)
        cell.parts, cell.about = parts, about


def read_data(page: DatasetPage, folders: Folders) -> None:
    """Add the card and the sheet of the data that the cells saw, and the statistics, if they are there."""
    path = folders.reports / "data" / page.name / "card.json"
    seen = {cell.row["data_fingerprint"] for cell in page.measured}
    if path.exists():
        with noted(page.gaps, path, "No card of the data"):
            card = json.loads(path.read_text(encoding="utf-8"))
            require(not seen or card["fingerprint"] in seen)
            page.card = card
    sheet = folders.data / page.name / "sheet.png"
    page.sheet = sheet if page.card and sheet.exists() else None
    path = folders.reports / "statistics" / f"{page.name}.json"
    if path.exists() and page.measured:
        with noted(page.gaps, path, "No intervals"):
            found = json.loads(path.read_text(encoding="utf-8"))
            for each in (*found.get("cells", {}).values(), *found.get("pairs", [])):
                float(each["low"]), float(each["high"]), float(each["mIoU" if "mIoU" in each else "difference"])
            page.statistics = found


@contextmanager
def noted(gaps: list[str], path: Path, consequence: str) -> Iterator[None]:
    """Go on after whatever is wrong with the file `path` that the block reads, and say so in `gaps`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, DataError) as error:
        gaps.append(f"{path}: {reason(error)}. {consequence}")


def require(holds: bool) -> None:
    """Refuse a file of another run."""
    if not holds:
        raise DataError("of another run than the table")


def reason(error: Exception) -> str:
    """In a few words, the same on every machine."""
    if isinstance(error, FileNotFoundError):
        return "not there"
    if isinstance(error, DataError):
        return str(error)
    return f"not as it was written ({type(error).__name__})" if not isinstance(error, OSError) else "cannot be read"
