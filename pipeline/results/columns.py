"""More columns of the tables, by `columns` of params.yaml. To add one, add a line to EXTRAS.

Each is a function of committed files: the record of a cell, its classes.csv, and the costs of its data set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from pipeline.errors import ParamsError
from pipeline.files import BROKEN
from pipeline.results.costs import read_cost
from pipeline.results.records import INTERVAL, Record, Result
from pipeline.results.scores import read_rows, rows_of
from pipeline.settings.messages import unknown
from pipeline.settings.params import Params
from pipeline.settings.places import Places

ROUNDING = 5.001e-7  # of the shares in classes.csv


@dataclass(frozen=True)
class Column:
    """How a column is written."""

    heading: str
    form: str = "{:.2f}%"
    unit: float = 0.01  # the CSV tables have shares, seconds, bytes
    beside: str = "std"  # what a number is shown with: the spread over seeds, or the size or device of a cost


def asked(params: Params) -> dict[str, Column]:
    """The columns that params.yaml asks for. Raises ParamsError with the nearest name for an unknown one."""
    return columns_of(params.columns, params.protocols)


def columns_of(names: Iterable[str], protocols: Iterable[str]) -> dict[str, Column]:
    """`columns` of a params.yaml with `protocols`. Raises ParamsError as above."""
    others = {f"mIoU_{name}": Column(f"mIoU ({name})") for name in protocols}
    known = EXTRAS | {
        name: column for name, column in others.items() if name not in INTERVAL and not name.endswith("_std")
    }
    if odd := [name for name in names if name not in known]:
        raise ParamsError(f"params.yaml: columns: {unknown(odd[0], known)}")
    return {name: known[name] for name in names}


def extras(name: str, results: tuple[Result, ...], own: bool, params: Params, places: Places) -> dict[str, Any]:
    """The numbers of the cell `name` as the CSV table has them, such as dice and dice_std; None where unknown.

    own: the record of this folder fills the table. Raises DataError for damaged costs.
    """
    columns = asked(params)
    if not columns:
        return {}
    seeds, row = [dict(result.scores) for result in results], {}
    if own:
        main_protocol = next(iter(params.protocols))
        record = Record.read(places.record(params.cell(name).dataset, name))
        same = params.same_protocols(record.protocols)
        for scores, result in zip(seeds, results, strict=True):
            found = record.seeds[str(result.seed)]
            miou = {f"mIoU_{title}": each.mIoU for title, each in found.items() if title in same}
            scores |= found[main_protocol].measures | miou | class_means(name, result, main_protocol, places)
    cost = read_cost(name, params, places)
    for key, column in columns.items():
        if column.beside != "std":
            row[key] = cost.get(key)
            row |= {f"{key}_{column.beside}": cost.get(column.beside)} if column.beside else {}
            continue
        values = [scores[key] for scores in seeds if key in scores]
        values = values if len(values) == len(seeds) else []
        row |= {key: fmean(values) if values else None, f"{key}_std": stdev(values) if len(values) > 1 else None}
    return row


def class_means(name: str, result: Result, protocol: str, places: Places) -> dict[str, float]:
    """Means over the classes that occur in truth or prediction, from classes.csv; none if it is of another evaluation.

    A class without a hit has 0. Precision follows from whole pixels that give the digits of the file, which are exact
    below a million pixels of a class, and is left out where the digits leave more than 0.01 % open.
    """
    try:
        all_rows = read_rows(places.plots(name) / "classes.csv")
        rows = [row for row in rows_of(all_rows, result.seed, protocol) if row["IoU"]]
        iou, recall, pixels = (
            np.array([float(row[key] or 0) for row in rows]) for key in ("IoU", "accuracy", "pixels")
        )
    except (OSError, *BROKEN):
        return {}
    if not len(rows) or not abs(iou.mean() - result.scores["mIoU"]) <= 1e-5 or not pixels.sum() > 0:  # nan too
        return {}
    hit, share = iou > 0, np.zeros((3, len(rows)))
    for place, (shift, whole) in enumerate(((-ROUNDING, np.floor), (0, np.rint), (ROUNDING, np.ceil))):
        right = whole((recall - shift) * pixels)[hit]
        union = whole(right / (iou[hit] + shift))
        share[place, hit] = right / np.maximum(union - pixels[hit] + right, right)
    share[2, ~hit & ((recall > 0) | (pixels > 9e5))] = 1  # a hit that the digits do not show
    low, precision, high = share.mean(axis=1)
    return {
        "dice": float(np.mean(2 * iou / (1 + iou))),
        **({"precision": float(precision)} if high - low < 1e-4 else {}),
        "recall": float(recall.mean()),
        "frequency_weighted_iou": float(np.average(iou, weights=pixels)),
    }


def texts(row: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, str]:
    """Name -> text of each of `columns`, for a row of a CSV table; `-` where the number is unknown."""
    found = {}
    for name, column in columns.items():
        value, beside = row.get(name), row.get(f"{name}_{column.beside}")
        if value in (None, ""):
            found[name] = "-"
            continue
        found[name] = column.form.format(float(value) / column.unit)
        if beside not in (None, ""):
            found[name] += f" ± {float(beside) / column.unit:.2f}" if column.beside == "std" else f" ({beside})"
    return found


# Name in `columns` of params.yaml and in the CSV tables -> the column. docs/results.md defines each. A number is found
# by its name in the scores of the record, in its `measures`, in `class_means` or in costs.csv.
EXTRAS = {
    "dice": Column("Dice"),
    "precision": Column("Precision"),
    "recall": Column("Recall"),
    "pixel_accuracy": Column("Pixel accuracy"),
    "mean_accuracy": Column("Mean accuracy"),
    "frequency_weighted_iou": Column("Frequency weighted IoU"),
    "boundary_iou": Column("Boundary IoU"),
    "calibration_error": Column("Calibration error"),
    "parameters": Column("Parameters", "{:.2f} M", 1e6, ""),
    "flops": Column("FLOPs", "{:.2f} G", 1e9, "size"),
    "macs": Column("MACs", "{:.2f} G", 1e9, "size"),
    "latency": Column("Latency", "{:.1f} ms", 1e-3, "device"),
    "memory": Column("Peak memory", "{:.0f} MB", 1e6, "device"),
}
