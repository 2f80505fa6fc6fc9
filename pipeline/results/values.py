"""Numbers in prose: `<!-- value: CELL.COLUMN -->41.61%<!-- /value -->` in a Markdown file, filled from the CSV tables.

CELL.IoU.CLASS is that of a class. The comments stay, so a value can be filled again and checked. All other bytes stay.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.files import BROKEN, readable
from pipeline.results.columns import Column, asked
from pipeline.results.columns import texts as more_texts
from pipeline.results.scores import read_rows, rows_of
from pipeline.settings.messages import unknown
from pipeline.settings.params import Params
from pipeline.settings.places import Places

SHARES = ("mIoU", "mIoU_low", "mIoU_high", "mIoU_std", "pixel_accuracy", "mean_accuracy")
COUNTS = ("classes_evaluated", "epochs", "batch_size", "train_images", "eval_images")
IOU = "IoU."  # and the name of a class
OF_SPLITS = (*SHARES, "classes_evaluated", "eval_images")
BLOCK = re.compile(rb"(<!--\s*value:\s*([^<>]*?)\s*-->)((?:(?!<!--).)*?)(<!--\s*/value\s*-->)", re.DOTALL)
HALF = re.compile(rb"<!--\s*(value:.*?|/value\s*)-->", re.DOTALL)


def percent(share: float, spread: float | None = None) -> str:
    """A share in percent, with the standard deviation over the seeds if there is one."""
    return f"{100 * share:.2f}%" + (f" ± {100 * spread:.2f}" if spread is not None else "")


def texts_of(row: Mapping[str, Any], columns: Mapping[str, Column] | None = None) -> dict[str, str]:
    """Column -> text, for a row of a CSV table with `columns`; `-` where the cell is not measured."""
    names = columns_with(dict.fromkeys(name.partition(".")[0] for name in row if "." in name))
    numbers = {name: None if row[name] in (None, "") else float(row[name]) for name in names}
    texts = {name: "-" if value is None else f"{value:g}" for name, value in numbers.items()}
    for name, value in numbers.items():
        kind = name.rpartition(".")[2]
        if value is not None and kind in SHARES:
            texts[name] = percent(value, numbers[f"{name}_std"] if kind == "mIoU" else None)
    return texts | more_texts(row, columns or {})


def class_texts(row: Mapping[str, str], protocol: str, places: Places) -> dict[str, str]:
    """IoU.CLASS -> text, for a row of a CSV table; none where classes.csv is of another evaluation than the row."""
    try:
        rows = read_rows(places.plots(row["cell"]) / "classes.csv")
        seeds = [rows_of(rows, int(seed), protocol) for seed in row["seeds"].split()]
        runs = [{each["class"]: float(each["IoU"]) for each in own if each["IoU"]} for own in seeds]
        if not abs(fmean(fmean(run.values()) for run in runs) - float(row["mIoU"])) <= 1e-5:  # nan too
            return {}
    except (OSError, *BROKEN):
        return {}
    texts = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        shares = [run[name] for run in runs if name in run]  # none of a run without a pixel of the class
        whole, spread = len(shares) == len(runs), stdev(shares) if len(shares) > 1 else None
        texts[IOU + name] = percent(fmean(shares), spread) if whole else "-"
    return texts


def columns_with(splits: Iterable[str]) -> tuple[str, ...]:
    """The columns that a value may name: of a further split as `test.mIoU`."""
    return (*SHARES, *COUNTS, *(f"{split}.{name}" for split in splits for name in OF_SPLITS))


def pages(params: Params, places: Places) -> list[Path]:
    """The files with values: the README, and those that params.yaml lists. Raises ParamsError for a missing one."""
    found = [places.root / name for name in params.prose if places.root / name != places.readme]
    if missing := [path for path in found if not path.is_file()]:
        raise ParamsError(f"{places.params}: prose: {missing[0]}: no such file. Write it, or take it from the list.")
    return [places.readme, *found]


def check_values(text: bytes, path: Path, params: Params) -> None:
    """Raise DataError for half a pair of comments, an unknown cell or an unknown column."""
    if half := HALF.search(BLOCK.sub(lambda block: b"\n" * block[0].count(b"\n"), text)):
        found, line = half[0].decode(errors="replace"), line_of(half.string, half.start())
        raise DataError(
            f"{path}:{line}: {found} is half a pair, expected <!-- value: CELL.COLUMN -->...<!-- /value -->"
        )
    for block in BLOCK.finditer(text):
        cell, _, column = (name := name_in(block)).partition(".")
        splits = params.further(params.cells[cell].dataset) if cell in params.cells else ()
        for word, known in ((cell, params.cells), (column, (*columns_with(splits), *params.columns, IOU))):
            if word not in known and not word.startswith(IOU):
                raise DataError(f"{path}:{line_of(text, block.start())}: value {name}: {unknown(word, known)}")


def fill_values(text: bytes, dataset: str, path: Path, params: Params, places: Places) -> bytes:
    """`text` with the values of the cells of `dataset`. Raises DataError as `check_values`, or without their table."""
    check_values(text, path, params)
    named = {name_in(block).partition(".")[0] for block in BLOCK.finditer(text)}
    if not named & params.cells_of(dataset).keys():
        return text
    sheet = places.sheet(dataset)
    if not sheet.exists():
        raise DataError(f"{sheet}: not found. Run: grid run tables@{dataset}")
    columns, main_protocol = asked(params), next(iter(params.protocols))
    with readable(sheet, f"Run: dvc repro -f tables@{dataset}"), sheet.open(encoding="utf-8", newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file, strict=True)}
        values = {cell: texts_of(row, columns) | class_texts(row, main_protocol, places) for cell, row in rows.items()}

    def fill(block: re.Match[bytes]) -> bytes:
        cell, _, column = name_in(block).partition(".")
        if cell not in values:
            return block[0]
        classes = [name for name in values[cell] if name.startswith(IOU)]
        if column.startswith(IOU) and classes and column not in classes:
            where = f"{path}:{line_of(text, block.start())}"
            raise DataError(f"{where}: value {cell}.{column}: {unknown(column, classes)}")
        return block[1] + values[cell].get(column, "-").encode() + block[4]

    return BLOCK.sub(fill, text)


def first_difference(old: bytes, new: bytes) -> str:
    """Line, name and both texts of the first value that is not the same in two versions of a file; else nothing."""
    for one, other in zip(BLOCK.finditer(old), BLOCK.finditer(new), strict=True):
        if one[3] != other[3]:
            said, expected = (word.decode(errors="replace") for word in (one[3], other[3]))
            return f"{line_of(old, one.start())}: value {name_in(one)} says {said!r}, expected {expected!r}"
    return ""


def name_in(block: re.Match[bytes]) -> str:
    """CELL.COLUMN in the first comment of a BLOCK."""
    return block[2].decode(errors="replace")


def line_of(text: bytes, place: int) -> int:
    return text.count(b"\n", 0, place) + 1
