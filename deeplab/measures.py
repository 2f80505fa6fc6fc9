"""Measures that need more than confusion counts: each sees every image once while a network is evaluated.

To add one: a class as the two below, its line in MEASURES, and its column in pipeline/results/columns.py.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from deeplab.inference import Pass, Prediction, Size, log_sum_exp, parts_of
from deeplab.metrics import share
from deeplab.store import IGNORE, Bytes

DILATION = 0.02  # width of a boundary as a share of the image's diagonal (Cheng et al. 2021)
BINS = 15  # of confidence (Guo et al. 2017)


class BoundaryIoU:
    """The mean over classes of the IoU of boundaries (Cheng et al. 2021, arXiv 2103.16562, section 4).

    Pixels of all images are counted together, as for the IoU. Ignored ones do not count, but end a region of the truth.
    """

    confidence = None

    def __init__(self, classes: int) -> None:
        self.shared, self.union = np.zeros((2, classes), np.int64)

    def add(self, found: Prediction) -> None:
        valid, classes = found.truth != IGNORE, len(self.union)
        truth, labels = boundaries(found.truth)[valid], boundaries(found.labels)[valid]
        pixels = [np.bincount(each, minlength=classes)[:classes] for each in (truth[truth == labels], truth, labels)]
        self.shared += pixels[0]
        self.union += pixels[1] + pixels[2] - pixels[0]

    def value(self) -> float:
        return float(np.nanmean(share(self.shared, self.union)))


def boundaries(labels: Bytes) -> Bytes:
    """`labels`, (H, W), with 255 in the inside of regions: where a square has one label and is within the image.

    What the authors' erosion removes from the mask of a class; here two filters serve all classes.
    """
    reach = max(1, round(DILATION * float(np.hypot(*labels.shape))))
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    inside = cv2.erode(labels, square) == cv2.dilate(labels, square)
    inside[:reach] = inside[-reach:] = inside[:, :reach] = inside[:, -reach:] = False
    return np.where(inside, np.uint8(IGNORE), labels)


@torch.inference_mode()
def confidences(passes: list[Pass], size: Size) -> Tensor:
    """The probability of the likeliest class of each pixel, from the mean over the passes: float32 (N, H, W)."""
    parts = parts_of(passes[0].logits, size)
    totals = [log_sum_exp(each, parts, size)[:, None] for each in passes]
    best = torch.zeros_like(totals[0][:, 0])
    for part in parts:
        shares = sum((each.upsampled(part, size) - total).exp_() for each, total in zip(passes, totals, strict=True))
        best = torch.maximum(best, torch.as_tensor(shares).amax(dim=1))
    return best / len(passes)


class CalibrationError:
    """The expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2) over the labelled pixels.

    The mean distance of confidence and accuracy in bins (0, 1/15] to (14/15, 1], weighted by their pixels.
    """

    confidence = staticmethod(confidences)

    def __init__(self, _: int) -> None:
        self.pixels, self.gap = np.zeros((2, BINS))

    def add(self, found: Prediction) -> None:
        assert found.confidence is not None
        valid = found.truth != IGNORE
        confidence, right = found.confidence[valid], (found.labels == found.truth)[valid]
        place = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.intp)
        self.pixels += np.bincount(place, minlength=BINS)
        self.gap += np.bincount(place, confidence.astype(np.float64) - right, minlength=BINS)

    def value(self) -> float:
        return float(np.abs(self.gap).sum() / self.pixels.sum())


def watch(
    predictions: Iterable[Prediction], measures: Iterable[BoundaryIoU | CalibrationError]
) -> Iterator[Prediction]:
    """`predictions` unchanged; each is added to all `measures` first."""
    for each in predictions:
        for measure in measures:
            measure.add(each)
        yield each


# Only those that `columns` of params.yaml names are computed, and are code of an evaluation. A value is a share, 0..1.
MEASURES: dict[str, type[BoundaryIoU] | type[CalibrationError]] = {
    "boundary_iou": BoundaryIoU,
    "calibration_error": CalibrationError,
}
