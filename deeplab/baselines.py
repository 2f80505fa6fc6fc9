"""The mIoU of two predictors that do not look at the image, as a lower bound for any network."""

import cv2
import numpy as np

from deeplab.metrics import Matrix, confusion_matrix, score
from deeplab.store import IGNORE, Bytes, Split

GRID = 96, 96  # places (height, width) of the prior


def majority_miou(train: Split, val: Split, classes: int) -> float:
    """mIoU on `val` of predicting everywhere the class with most pixels in `train`. Reads no mask."""
    seen = class_pixels(train, classes)
    matrix = np.zeros((classes, classes), np.int64)
    matrix[:, int(seen.argmax())] = class_pixels(val, classes)
    return score(matrix).mean_iou


def prior_miou(train: Split, val: Split, classes: int) -> float:
    """mIoU on `val` of predicting at each place the class that `train` has there most often."""
    prior = likeliest_places(train, classes)
    matrix: Matrix = np.zeros((classes, classes), np.int64)
    for index in range(len(val)):
        truth = val.mask(index)
        matrix += confusion_matrix(truth, stretch(prior, truth.shape), classes)
    return score(matrix).mean_iou


def class_pixels(split: Split, classes: int) -> Matrix:
    """Pixels of each class (K,) over all samples, from their records."""
    total = np.zeros(IGNORE + 1, np.int64)
    for record in split.records:
        for label, count in record.pixels.items():
            total[label] += count
    return total[:classes]


def likeliest_places(split: Split, classes: int) -> Bytes:
    """The most frequent class at each place of GRID; the overall one where none was ever seen."""
    counts = np.zeros((GRID[0] * GRID[1], IGNORE + 1), np.int32)
    places = np.arange(GRID[0] * GRID[1])
    for index in range(len(split)):
        counts[places, stretch(split.mask(index), GRID).reshape(-1)] += 1
    seen = counts[:, :classes]
    likeliest = np.where(seen.any(axis=1), seen.argmax(axis=1), class_pixels(split, classes).argmax())
    return likeliest.astype(np.uint8).reshape(GRID)


def stretch(labels: Bytes, size: tuple[int, ...]) -> Bytes:
    """Labels (H, W) at `size`, nearest neighbour."""
    return np.asarray(cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
