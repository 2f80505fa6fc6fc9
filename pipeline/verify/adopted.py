"""Published weights as they were measured here: reports/adopted.csv, and the page reports/adopted.md made from it.

They are no results of this project: no record, table, statistic or run in MLflow reads these files.
"""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from deeplab.config import digest, without_defaults
from pipeline.files import locked, readable, write_whole
from pipeline.markdown import code
from pipeline.results.records import manifest_fingerprint, protocol_fingerprint
from pipeline.settings.code import code_of
from pipeline.settings.params import Params
from pipeline.settings.places import Places

Line = TypeVar("Line")

HEAD = """# Published weights, measured here

Weights that others trained and published, brought into this project by `grid adopt` and evaluated by its protocol. None
of them was trained here, and none counts in the tables of the README. "Published" is what their authors measured. The
interval is that of the number measured here: 95 %, over images. A dash means not published, not comparable, or measured
with other settings, data or code than the current ones.

| Cell | Weights | Published mIoU | Measured here | 95 % interval | Difference | Remark |
| :-- | :-- | --: | --: | :-: | --: | :-- |
"""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Where a toolbox publishes the weights of a cell: a line of reports/published_weights.csv."""

    cell: str
    toolbox: str
    mIoU: float  # noqa: N815  as published, single scale; percent
    url: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A line of reports/adopted.csv."""

    cell: str
    toolbox: str
    source: str  # the address or the name of the file
    source_sha256: str
    published: float | None  # percent
    mIoU: float  # noqa: N815  a share, as the next two
    mIoU_low: float | None  # noqa: N815  of the 95 % interval; none for one image
    mIoU_high: float | None  # noqa: N815
    images: int
    departs: str | None  # why the number cannot be compared with the published one
    inputs: str  # fingerprint of settings, protocol, data and code
    weights_sha256: str


def read_known(path: Path) -> list[Known]:
    """The lines of reports/published_weights.csv; none without the file. Raises DataError for a damaged one."""
    return read_lines(path, Known, "Expected the columns cell, toolbox, mIoU and url")


def read_adopted(path: Path) -> list[Adopted]:
    """The lines of reports/adopted.csv; none without the file. Raises DataError for a damaged one."""
    return read_lines(path, Adopted, "Remove it, and adopt the weights again")


def read_lines(path: Path, kind: type[Line], remedy: str) -> list[Line]:
    """The lines of a CSV file, where an empty field is None."""
    if not path.exists():
        return []
    with readable(path, remedy), path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        return [TypeAdapter(kind).validate_python({key: value or None for key, value in row.items()}) for row in rows]


def add(entry: Adopted, params: Params, places: Places) -> None:
    """Put `entry` into the CSV file, in place of an older one of the same weights, and write the page."""
    places.reports.mkdir(parents=True, exist_ok=True)
    with locked(places.adopted_sheet):
        others = [
            other
            for other in read_adopted(places.adopted_sheet)
            if (other.cell, other.toolbox, other.source_sha256) != (entry.cell, entry.toolbox, entry.source_sha256)
        ]
        entries = sorted([*others, entry], key=lambda each: (each.cell, each.toolbox, each.source))
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Adopted)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(each) for each in entries)
        write_whole(places.adopted_sheet, text.getvalue())
        write_whole(places.adopted_page, page(entries, params, places))


def page(entries: list[Adopted], params: Params, places: Places) -> str:
    """The content of reports/adopted.md."""
    return HEAD + "".join(f"| {' | '.join(line(entry, params, places))} |\n" for entry in entries)


def line(entry: Adopted, params: Params, places: Places) -> list[str]:
    """The columns of the page."""
    published = "-" if entry.published is None else f"{entry.published:.2f}%"
    where = f"[{entry.toolbox}]({entry.source})" if "://" in entry.source else f"{entry.toolbox}: {code(entry.source)}"
    known = [entry.cell, where, published]
    if not is_current(entry, params, places):
        return [*known, "-", "-", "-", f"outdated: run `grid adopt {entry.cell}` again"]
    between = "-"
    if entry.mIoU_low is not None and entry.mIoU_high is not None:
        between = f"[{100 * entry.mIoU_low:.2f}, {100 * entry.mIoU_high:.2f}]"
    difference = "-"
    if entry.published is not None and not entry.departs:
        difference = f"{100 * entry.mIoU - entry.published:+.2f}"
    return [*known, f"{100 * entry.mIoU:.2f}%", between, difference, entry.departs or ""]


def is_current(entry: Adopted, params: Params, places: Places) -> bool:
    """Whether a number was measured with the current settings, data and code; also where the data is not here."""
    if entry.cell not in params.cells:
        return False
    data = manifest_fingerprint(places.manifest(params.cell(entry.cell).dataset))
    return data is None or entry.inputs == inputs(entry.cell, params, places, data)


def inputs(name: str, params: Params, places: Places, data: str) -> str:
    """The fingerprint of what an evaluation of the cell `name` depends on, apart from the weights."""
    settings = without_defaults(params.cell(name).inference)
    return digest([settings, protocol_fingerprint(params), data, code_of("evaluate", params, places, name)])
