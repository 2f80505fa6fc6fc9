"""What evaluate leaves for the eye: predictions on a few images, and the rows behind the plots."""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.config import Cell, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deeplab.metrics import Matrix, Scores
    from deeplab.store import Split, Store

FIGURES = 8


def write_figures(
    folder: Path,
    network: "nn.Module",
    store: "Store",
    split: "Split",
    cell: Cell,
    protocol: Protocol,
    device: "torch.device",
) -> None:
    """Draw the predictions on a few images, the same ones for each cell, evenly spread over the split."""
    from deeplab.inference import predict
    from pipeline.figures import comparison

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    count = min(FIGURES, len(split))
    for place in range(count):
        index = place * len(split) // count
        image, truth = split.image(index), split.mask(index)
        predicted = predict(network, image, cell, protocol, device)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", split.records[index].id)
        picture = comparison(image, truth, predicted, store.classes, store.palette)
        picture.save(folder / f"{place}_{name}.jpg", quality=90)


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
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
