"""Whether a network is as often right as it is sure (Guo et al. 2017, arXiv 1706.04599)."""

import numpy as np
import torch
from torch import Tensor

from deeplab.inference import Pass, Prediction, Size, log_sum_exp, parts_of
from deeplab.store import IGNORE

BINS = 15  # of confidence


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
    """The expected calibration error (section 2) over the labelled pixels.

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
