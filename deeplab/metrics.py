"""How good a segmentation is, from one confusion matrix over the whole data set.

This is the definition of PASCAL VOC: count the pixels of all images together, then IoU = TP / (TP + FP + FN) per class.
(The mean IoU over images is a different number.) A class in neither truth nor prediction of any image has no IoU and is
left out of the mean; a class that is only predicted has IoU 0 and counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError
from deeplab.store import IGNORE, Bytes

Matrix = NDArray[np.int64]  # (K, K) pixels; rows are the truth, columns the prediction


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a confusion matrix; all shares are 0..1."""

    iou: NDArray[np.float64]  # (K,); nan for a class with an empty union
    accuracy: NDArray[np.float64]  # (K,) share of the class's pixels found; nan for a class absent in the truth
    mean_iou: float  # over the classes with a union
    mean_accuracy: float  # over the classes in the truth
    pixel_accuracy: float
    classes_evaluated: int  # those with a union


def confusion_matrix(truth: Bytes, predicted: Bytes, classes: int) -> Matrix:
    """Count the pixels of one image: (H, W) train ids, (H, W) predicted ids -> (K, K).

    Pixels with label 255 do not count. Raises DataError for a label that is neither a class nor 255.
    """
    assert truth.dtype == predicted.dtype == np.uint8
    assert truth.shape == predicted.shape
    assert predicted.size == 0 or predicted.max() < classes
    pairs = truth.astype(np.intp) * classes + predicted
    counts = np.bincount(pairs.reshape(-1), minlength=(IGNORE + 1) * classes).reshape(IGNORE + 1, classes)
    if counts[classes:IGNORE].any():
        row, column = np.argwhere((truth >= classes) & (truth != IGNORE))[0]
        raise DataError(
            f"label {truth[row, column]} at row {row}, column {column}: expected 0..{classes - 1}, or {IGNORE} to "
            f"ignore. Prepare the data set again."
        )
    return counts[:classes].astype(np.int64)


def score(matrix: Matrix) -> Scores:
    """The scores of a confusion matrix (K, K). Raises DataError when no pixel was counted."""
    if not matrix.any():
        raise DataError("no labelled pixel to evaluate: every mask is empty or ignored")
    hits, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = share(hits, truth + predicted - hits)
    accuracy = share(hits, truth)
    return Scores(
        iou=iou,
        accuracy=accuracy,
        mean_iou=float(np.nanmean(iou)),
        mean_accuracy=float(np.nanmean(accuracy)),
        pixel_accuracy=float(hits.sum() / matrix.sum()),
        classes_evaluated=int(np.isfinite(iou).sum()),
    )


def share(part: Matrix, whole: Matrix) -> NDArray[np.float64]:
    """`part` / `whole` per class, nan where `whole` is 0."""
    shares = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
