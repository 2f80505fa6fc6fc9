"""The scores of a cell as shares, as text, and as the rows behind its plots."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import whole
from pipeline.results import records

if TYPE_CHECKING:
    from deeplab.counts import Counts
    from deeplab.measures import Measure
    from deeplab.metrics import Matrix, Scores


def mean_shares(scores: list["Scores"]) -> dict[str, Any]:
    """The scores of one run, or the means of several, rounded as in the metrics file."""
    count = len(scores)
    return {
        "mIoU": round(sum(each.mean_iou for each in scores) / count, 6),
        "pixel_accuracy": round(sum(each.pixel_accuracy for each in scores) / count, 6),
        "mean_accuracy": round(sum(each.mean_accuracy for each in scores) / count, 6),
        "classes_evaluated": round(sum(each.classes_evaluated for each in scores) / count),
    }


def scores_of(scores: "Scores", counts: "Counts", measures: "Mapping[str, Measure] | None" = None) -> records.Scores:
    """The scores of a record, with the interval of the mIoU where there are two images or more, and `measures`."""
    from deeplab.intervals import interval

    shares = mean_shares([scores])
    if len(counts.images) > 1:
        found = interval([counts])
        shares |= {"mIoU_low": round(found.low, 6), "mIoU_high": round(found.high, 6)}
    if measures:
        shares["measures"] = {name: round(each.value(), 6) for name, each in measures.items()}
    return records.Scores(**shares)


def describe(classes: tuple[str, ...], scores: dict[tuple[int, str], "Scores"]) -> str:
    """The scores of each class, for each seed and protocol, and their means."""
    width = max(len(name) for name in (*classes, "class"))
    lines = []
    for (seed, title), each in scores.items():
        lines += ["", f"seed {seed}, {title}", f"{'class':{width}}   IoU %  accuracy %"]
        rows = zip(classes, each.iou, each.accuracy, strict=True)
        lines += [f"{name:{width}}  {percent(iou):>6}  {percent(accuracy):>10}" for name, iou, accuracy in rows]
        lines.append(
            f"mIoU {percent(each.mean_iou)} %, pixel accuracy {percent(each.pixel_accuracy)} %, "
            f"mean accuracy {percent(each.mean_accuracy)} %, {each.classes_evaluated} of {len(classes)} classes"
        )
    return "\n".join(lines)


def percent(share: float) -> str:
    """A share in percent with two digits; a dash for nan."""
    return "-" if share != share else f"{100 * share:.2f}"


def write_plots(
    folder: Path,
    classes: tuple[str, ...],
    matrices: dict[tuple[int, str], "Matrix"],
    scores: dict[tuple[int, str], "Scores"],
) -> None:
    """Write classes.csv, a row per class, and confusion.csv, a row per pair of classes that occurred.

    confusion.csv begins with the pairs of each class and itself, which give a plot all classes in their order.
    """
    import numpy as np

    class_rows: list[tuple[object, ...]] = []
    pair_rows: list[tuple[object, ...]] = []
    for (seed, title), matrix in matrices.items():
        totals = matrix.sum(axis=1)
        found = zip(classes, scores[seed, title].iou, scores[seed, title].accuracy, totals, strict=True)
        class_rows += [(seed, title, name, digits(iou), digits(accuracy), n) for name, iou, accuracy, n in found]
        same = [(place, place) for place in range(len(classes))]
        for true, predicted in [*same, *np.argwhere(matrix - np.diag(np.diag(matrix)))]:
            pixels, total = matrix[true, predicted], totals[true]
            share = digits(pixels / total) if total else ""
            pair_rows.append((seed, title, classes[true], classes[predicted], pixels, share))
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "classes.csv", ("seed", "protocol", "class", "IoU", "accuracy", "pixels"), class_rows)
    write_csv(folder / "confusion.csv", ("seed", "protocol", "truth", "predicted", "pixels", "share"), pair_rows)


def digits(share: float) -> str:
    """Six digits; nothing for nan."""
    return "" if share != share else f"{share:.6f}"


def write_csv(path: Path, head: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of one of these files."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(rows: list[dict[str, str]], seed: int, protocol: str) -> list[dict[str, str]]:
    """The rows of one seed under one protocol."""
    return [row for row in rows if (row["seed"], row["protocol"]) == (str(seed), protocol)]
