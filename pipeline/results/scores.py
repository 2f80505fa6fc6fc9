"""The rows behind the plots of a cell: IoU per class, and which class is taken for which."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import whole

if TYPE_CHECKING:
    from deeplab.metrics import Matrix, Scores


def write_plots(
    folder: Path,
    classes: tuple[str, ...],
    matrices: dict[tuple[int, str], "Matrix"],
    scores: dict[tuple[int, str], "Scores"],
) -> None:
    """Write classes.csv, a row per class, and confusion.csv, a row per pair of classes that occurred."""
    import numpy as np

    class_rows: list[tuple[object, ...]] = []
    pair_rows: list[tuple[object, ...]] = []
    for (seed, title), matrix in matrices.items():
        totals = matrix.sum(axis=1)
        found = zip(classes, scores[seed, title].iou, scores[seed, title].accuracy, totals, strict=True)
        class_rows += [(seed, title, name, digits(iou), digits(accuracy), n) for name, iou, accuracy, n in found]
        for true, predicted in np.argwhere(matrix):
            pixels = matrix[true, predicted]
            share = digits(pixels / totals[true])
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


def first_protocol(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The rows of one seed under its first protocol."""
    own = [row for row in rows if row["seed"] == str(seed)]
    return [row for row in own if row["protocol"] == own[0]["protocol"]]
