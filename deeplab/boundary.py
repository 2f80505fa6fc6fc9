"""How well the boundaries of classes are found (Cheng et al. 2021, arXiv 2103.16562)."""

import cv2
import numpy as np

from deeplab.inference import Prediction
from deeplab.metrics import share
from deeplab.store import IGNORE, Bytes

DILATION = 0.02  # width of a boundary as a share of the image's diagonal


class BoundaryIoU:
    """The mean over classes of the IoU of boundaries (section 4).

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
