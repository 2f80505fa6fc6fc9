"""Where the weights behind a table can be had: reports/records/<data set>/published.csv, written by `grid publish`."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.files import readable, write_whole
from pipeline.settings.places import Places

LOG = "history.csv"


@dataclass(frozen=True)
class Published:
    """A file of a cell that was read back from the place where others get it."""

    cell: str
    file: str  # the name of a file below the folder of the weights, or LOG
    sha256: str
    url: str  # empty: no address, but `grid pull` fetches the file


def read_published(path: Path) -> list[Published]:
    """The published files of a data set; none without the file. Raises DataError for a damaged one."""
    if not path.exists():
        return []
    with readable(path, "Restore it: git checkout"), path.open(encoding="utf-8", newline="") as file:
        return [Published(**row) for row in csv.DictReader(file, strict=True)]


def write_published(path: Path, files: list[Published]) -> None:
    """Write `files`, sorted, so that two branches that publish other cells merge."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Published)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in sorted(files, key=lambda entry: (entry.cell, entry.file)))
    write_whole(path, text.getvalue())


def remedy(cell: str, dataset: str, places: Places) -> str:
    """How to get the weights of `cell` in a clone that has none."""
    if any(entry.cell == cell for entry in read_published(places.published(dataset))):
        return f"Run: grid pull {cell}"
    return f"Nobody has published them. Train the cell: dvc repro train@{cell}"
