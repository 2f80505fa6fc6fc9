"""The measures beside the mIoU against independent forms: torchmetrics, and the formulas of the papers."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from deeplab.boundary import BoundaryIoU, boundaries
from deeplab.calibration import CalibrationError
from deeplab.config import Inference, ModelConfig, Protocol
from deeplab.inference import Prediction, passes_of, predict_each
from deeplab.metrics import confusion_matrix, score
from pipeline.results.columns import class_means
from pipeline.results.records import Result
from pipeline.results.scores import write_plots
from pipeline.settings.places import Places

K = 6
CPU = torch.device("cpu")


def regions(rng, height, width, classes=K, ignored=True):
    """A label map of blobs, with some ignored pixels."""
    small = rng.integers(0, classes, (4, 5), np.uint8)
    labels = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    if ignored:
        labels[rng.integers(0, height) :, : width // 7] = 255
    return labels


def mask_to_boundary(mask):
    """As the authors compute it: pad by one, erode by a 3x3 square as often as the boundary is wide, subtract."""
    height, width = mask.shape
    times = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=times)[1:-1, 1:-1]


@pytest.mark.parametrize("size", [(20, 31), (97, 64), (240, 320), (3, 2), (1, 9)])
def test_boundaries_are_those_of_the_authors_for_every_class_at_once(size):
    labels = regions(np.random.default_rng(sum(size)), *size)
    found = boundaries(labels)
    for k in range(K):
        assert np.array_equal(found == k, mask_to_boundary((labels == k).astype(np.uint8)) == 1)


def test_the_boundary_iou_is_the_mean_over_classes_of_that_of_the_authors():
    rng, measure = np.random.default_rng(0), BoundaryIoU(K + 1)  # the last class does not occur
    shared, union = np.zeros(K), np.zeros(K)
    for _ in range(5):
        truth, labels = regions(rng, 60, 90), regions(rng, 60, 90, ignored=False)
        labels[20:50, 20:70] = truth[20:50, 20:70] % K
        measure.add(Prediction("", truth, labels, None))
        for k in range(K):
            one, other = (mask_to_boundary((each == k).astype(np.uint8))[truth != 255] for each in (truth, labels))
            shared[k] += (one & other).sum()
            union[k] += (one | other).sum()
    assert measure.value() == pytest.approx(np.mean(shared / union), abs=1e-12)
    assert 0.01 < measure.value() < 0.99


def test_the_boundary_iou_of_the_truth_is_one_and_of_a_shifted_one_below_the_iou():
    truth = np.zeros((100, 100), np.uint8)
    truth[30:70, 30:70] = 1
    perfect, shifted = BoundaryIoU(2), BoundaryIoU(2)
    perfect.add(Prediction("", truth, truth, None))
    shifted.add(Prediction("", truth, np.roll(truth, 2, axis=1), None))
    assert perfect.value() == 1
    assert shifted.value() < score(confusion_matrix(truth, np.roll(truth, 2, axis=1), 2)).mean_iou


def test_the_calibration_error_is_that_of_torchmetrics():
    rng, measure = np.random.default_rng(0), CalibrationError(K)
    oracle = MulticlassCalibrationError(K, n_bins=15, norm="l1", ignore_index=255)
    for _ in range(4):
        truth = regions(rng, 40, 50)
        shares = torch.from_numpy(rng.normal(0, 2, (1, K, 40, 50))).float().softmax(dim=1)
        best, labels = shares[0].max(dim=0)
        measure.add(Prediction("", truth, labels.numpy().astype(np.uint8), best.numpy()))
        oracle.update(shares, torch.from_numpy(truth.astype(np.int64))[None])
    assert measure.value() == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_a_certain_network_that_is_right_is_calibrated_and_one_that_is_wrong_is_not():
    truth, sure = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.float32)
    for labels, expected in ((truth, 0), (truth + 1, 1)):
        measure = CalibrationError(2)
        measure.add(Prediction("", truth, labels, sure))
        assert measure.value() == expected


class Images:
    """A split of two images in memory."""

    folder = "images"

    def __init__(self):
        self.records = [type("Record", (), {"id": str(index)}) for index in range(2)]
        self.all = np.random.default_rng(0).integers(0, 256, (2, 30, 44, 3), np.uint8)

    def __len__(self):
        return 2

    def image(self, index):
        return self.all[index]

    def mask(self, index):
        return np.zeros((30, 44), np.uint8)


@pytest.mark.parametrize("protocol", [{"scales": (1.0,), "flip": False}, {"scales": (0.5, 1.0), "flip": True}])
def test_the_confidence_is_the_probability_of_the_predicted_class(protocol):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 19, 8, stride=8)  # more classes than are upsampled at once
    model = ModelConfig(
        backbone="resnet18", output_stride=8, pretrained=False, multi_grid=(1, 1, 1), aspp_channels=8,
        aspp_rates=(6,), projection_kernel=1, auxiliary_channels=0, dropout=0.1, mean=(120.0,) * 3, std=(9.0,) * 3,
    )  # fmt: skip
    settings = Inference(model=model, resize=(44, 30), precision="fp32", tf32=False)
    way, split = Protocol(window=None, stride=None, **protocol), Images()
    for index, found in enumerate(
        predict_each(network, split, settings, way, CPU, confidence=CalibrationError.confidence)
    ):
        passes = passes_of(network, split.image(index)[None], settings, way, CPU)
        shares = sum(each.upsampled(slice(0, 19), (30, 44)).softmax(dim=1) for each in passes)[0] / len(passes)
        best, labels = shares.max(dim=0)
        assert np.array_equal(found.labels, labels.numpy())
        np.testing.assert_allclose(found.confidence, best.numpy(), rtol=1e-5)
    assert all(found.confidence is None for found in predict_each(network, split, settings, way, CPU))


def test_the_means_from_classes_csv_are_those_of_torchmetrics(tmp_path):
    """Also for a class without a hit, one that is only predicted, and one that does not occur at all."""
    rng, places = np.random.default_rng(1), Places(tmp_path)
    truth = rng.integers(0, 4, 5000)
    labels = np.where(rng.random(5000) < 0.6, truth, rng.integers(0, 5, 5000))  # 4 is only predicted, 5 is missing
    labels[truth == 3] = 0  # no hit
    matrix = confusion_matrix(truth.astype(np.uint8), labels.astype(np.uint8), K)
    found = score(matrix)
    write_plots(places.plots("a"), tuple("abcdef"), {(0, "p"): matrix}, {(0, "p"): found})
    scores = {"mIoU": found.mean_iou}
    result = Result(cell="a", seed=0, scores=scores, images={}, fingerprint={}, weights={})
    means = class_means("a", result, "p", places)
    pair = torch.from_numpy(labels), torch.from_numpy(truth)
    oracles = {
        "dice": MulticlassF1Score(K, average="macro"),
        "precision": MulticlassPrecision(K, average="macro"),
        "recall": MulticlassRecall(K, average="macro"),
        "frequency_weighted_iou": MulticlassJaccardIndex(K, average="weighted"),
    }
    for name, oracle in oracles.items():
        assert means[name] == pytest.approx(float(oracle(*pair)), abs=5e-6), name
    assert found.pixel_accuracy == pytest.approx(float(MulticlassAccuracy(K, average="micro")(*pair)))


def test_precision_is_left_out_where_the_digits_of_the_file_do_not_give_it(tmp_path):
    """A class of ten million pixels of which five are found, among eight predicted ones."""
    matrix, places = np.array([[90_000_000, 3], [9_999_995, 5]]), Places(tmp_path)
    found = score(matrix)
    write_plots(places.plots("a"), ("a", "b"), {(0, "p"): matrix}, {(0, "p"): found})
    result = Result(cell="a", seed=0, scores={"mIoU": found.mean_iou}, images={}, fingerprint={}, weights={})
    assert set(class_means("a", result, "p", places)) == {"dice", "recall", "frequency_weighted_iou"}
    other = Result(cell="a", seed=0, scores={"mIoU": 0.1}, images={}, fingerprint={}, weights={})
    assert class_means("a", other, "p", places) == {}  # of another evaluation
    assert class_means("a", result, "q", places) == {}
