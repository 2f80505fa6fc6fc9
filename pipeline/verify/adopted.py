"""Published weights as they were measured here: reports/adopted.json, and the page reports/adopted.md made from it.

They are no results of this project: no record, table, statistic or run in MLflow reads these files.
"""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from deeplab.config import digest, without_defaults
from pipeline.files import locked, readable, write_whole
from pipeline.markdown import code
from pipeline.results.records import INTERVAL
from pipeline.results.splits import manifest_fingerprint
from pipeline.settings.code import code_of
from pipeline.settings.params import Params
from pipeline.settings.places import Places

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
    published: float  # mIoU at one scale, percent
    url: str


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """An entry of reports/adopted.json. Shares are 0..1, `published` is in percent."""

    cell: str
    toolbox: str
    source: str  # the address or the name of the file
    source_sha256: str
    published: float | None
    scores: dict[str, float]  # as in a record
    departs: str  # why the number cannot be compared with the published one; empty if it can
    inputs: str  # fingerprint of settings, protocol, data and code


def read_known(path: Path) -> list[Known]:
    """The lines of reports/published_weights.csv; none without the file. Raises DataError for a damaged one."""
    if not path.exists():
        return []
    remedy = "Expected the columns cell, toolbox, mIoU and url."
    with readable(path, remedy), path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        return [Known(published=float(row.pop("mIoU")), **row) for row in rows]


def read_adopted(path: Path) -> list[Adopted]:
    """The entries of reports/adopted.json; none without the file. Raises DataError for a damaged one."""
    if not path.exists():
        return []
    with readable(path, "Remove it, and adopt the weights again."):
        return [Adopted(**entry) for entry in json.loads(path.read_bytes() or b"[]")]


def add(entry: Adopted, params: Params, places: Places) -> None:
    """Write `entry`, in place of an older one of the same weights, and the page of all."""
    path = places.adopted_table(".json")
    places.reports.mkdir(parents=True, exist_ok=True)
    with locked(path):
        entries = {(each.cell, each.toolbox, each.source_sha256): each for each in [*read_adopted(path), entry]}
        ordered = sorted(entries.values(), key=lambda each: (each.cell, each.toolbox, each.source))
        write_whole(path, json.dumps([asdict(each) for each in ordered], indent=2) + "\n")
        write_whole(places.adopted_table(".md"), page(ordered, params, places))


def page(entries: list[Adopted], params: Params, places: Places) -> str:
    """The content of reports/adopted.md."""
    return HEAD + "".join(f"| {' | '.join(line(entry, params, places))} |\n" for entry in entries)


def line(entry: Adopted, params: Params, places: Places) -> list[str]:
    """The columns of the page."""
    published = "-" if entry.published is None else f"{entry.published:.2f}%"
    where = f"[{entry.toolbox}]({entry.source})" if "://" in entry.source else f"{entry.toolbox}: {code(entry.source)}"
    if not is_current(entry, params, places):
        return [entry.cell, where, published, "-", "-", "-", "outdated: adopt it again"]
    miou, *ends = (f"{100 * entry.scores[name]:.2f}" for name in ("mIoU", *INTERVAL) if name in entry.scores)
    compared = entry.published is not None and not entry.departs
    difference = f"{100 * entry.scores['mIoU'] - (entry.published or 0):+.2f}" if compared else "-"
    return [
        entry.cell,
        where,
        published,
        f"{miou}%",
        f"[{', '.join(ends)}]" if ends else "-",
        difference,
        entry.departs,
    ]


def is_current(entry: Adopted, params: Params, places: Places) -> bool:
    """Whether a number was measured with the current settings, data and code; also where the data is not here."""
    if entry.cell not in params.cells:
        return False
    data = manifest_fingerprint(places.manifest(params.cell(entry.cell).dataset))
    return data is None or entry.inputs == inputs(entry.cell, params, places, data)


def inputs(name: str, params: Params, places: Places, data: str) -> str:
    """The fingerprint of what an evaluation of the cell `name` depends on, apart from the weights."""
    settings = without_defaults(params.cell(name).inference)
    return digest([settings, params.protocol_fingerprint, data, code_of("evaluate", params, places, name)])
