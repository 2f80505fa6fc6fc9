import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deeplab.errors import DataError
from deeplab.metrics import confusion_matrix, score

K = 5
IGNORED = 255

masks = arrays(np.uint8, (2, 4, 6), elements=st.sampled_from([*range(K), IGNORED]))
predictions = arrays(np.uint8, (2, 4, 6), elements=st.integers(0, K - 1))


@given(truth=masks, predicted=predictions)
def test_the_scores_equal_those_of_sets_of_pixels(truth, predicted):
    pixels = [(index, label) for index, label in np.ndenumerate(truth) if label != IGNORED]
    unions = {}
    for k in range(K):
        true = {index for index, label in pixels if label == k}
        found = {index for index, _ in pixels if predicted[index] == k}
        if true | found:
            unions[k] = len(true & found) / len(true | found)
    if not pixels:
        return
    scores = score(confusion_matrix(truth, predicted, K))
    assert {k: scores.iou[k] for k in range(K) if not math.isnan(scores.iou[k])} == pytest.approx(unions)
    assert scores.mean_iou == pytest.approx(sum(unions.values()) / len(unions))
    assert scores.classes_evaluated == len(unions)
    assert scores.pixel_accuracy == pytest.approx(np.mean([predicted[index] == label for index, label in pixels]))


@given(truth=masks, predicted=predictions, order=st.permutations(range(K)))
def test_the_mean_iou_ignores_how_classes_are_numbered(truth, predicted, order):
    truth[0, 0, 0] = 0
    new = np.array([*order, *range(K, 256)], dtype=np.uint8)
    before = score(confusion_matrix(truth, predicted, K))
    after = score(confusion_matrix(new[truth], new[predicted], K))
    assert math.isclose(before.mean_iou, after.mean_iou)
    np.testing.assert_allclose(before.iou, after.iou[list(order)])


@given(truth=masks, predicted=predictions)
def test_adding_the_matrices_of_two_images_equals_one_image_of_both(truth, predicted):
    parts = sum(confusion_matrix(t, p, K) for t, p in zip(truth, predicted, strict=True))
    np.testing.assert_array_equal(parts, confusion_matrix(truth, predicted, K))


@given(truth=masks, predicted=predictions, other=predictions)
def test_what_is_predicted_on_ignored_pixels_does_not_count(truth, predicted, other):
    changed = np.where(truth == IGNORED, other, predicted)
    np.testing.assert_array_equal(confusion_matrix(truth, changed, K), confusion_matrix(truth, predicted, K))


def test_the_scores_equal_torchmetrics():
    import torch
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_jaccard_index,
    )

    rng = np.random.default_rng(0)
    for present in (K, K - 2):  # all classes, and two in neither truth nor prediction
        truth = rng.choice([*range(present), IGNORED], (40, 50)).astype(np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.6, truth % present, rng.integers(0, present, truth.shape))
        predicted = predicted.astype(np.uint8)
        matrix = confusion_matrix(truth, predicted, K)
        scores = score(matrix)
        pair = torch.from_numpy(predicted).long(), torch.from_numpy(truth).long()
        assert matrix.tolist() == multiclass_confusion_matrix(*pair, K, ignore_index=IGNORED).tolist()
        theirs = multiclass_jaccard_index(*pair, K, average="macro", ignore_index=IGNORED)
        assert scores.mean_iou == pytest.approx(theirs.item(), abs=1e-6)
        theirs = multiclass_accuracy(*pair, K, average="micro", ignore_index=IGNORED)
        assert scores.pixel_accuracy == pytest.approx(theirs.item(), abs=1e-6)
        theirs = multiclass_accuracy(*pair, K, average="macro", ignore_index=IGNORED)
        assert scores.mean_accuracy == pytest.approx(theirs.item(), abs=1e-6)


def test_a_class_in_neither_truth_nor_prediction_is_left_out_and_one_only_predicted_counts_as_zero():
    truth = np.array([[0, 0, 0, 1, 1, 255]], dtype=np.uint8)
    predicted = np.array([[0, 0, 2, 1, 0, 3]], dtype=np.uint8)
    scores = score(confusion_matrix(truth, predicted, 4))
    np.testing.assert_allclose(scores.iou, [2 / 4, 1 / 2, 0, np.nan])  # 3 is predicted on the ignored pixel only
    np.testing.assert_allclose(scores.accuracy, [2 / 3, 1 / 2, np.nan, np.nan])
    assert scores.mean_iou == pytest.approx(1 / 3)
    assert scores.mean_accuracy == pytest.approx(7 / 12)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)
    assert scores.classes_evaluated == 3


def test_a_large_image_does_not_overflow():
    truth = np.full((1, 70_000), 149, dtype=np.uint8)  # 149 * 150 + 149 and 70,000 do not fit into 16 bits
    assert confusion_matrix(truth, truth, 150)[149, 149] == 70_000


def test_a_label_that_is_no_class_is_named_with_its_place():
    truth = np.zeros((3, 4), dtype=np.uint8)
    truth[1, 2], truth[2, 0] = 7, 9
    with pytest.raises(DataError, match=r"label 7 at row 1, column 2: expected 0\.\.4, or 255 to ignore"):
        confusion_matrix(truth, np.zeros_like(truth), K)


def test_a_prediction_that_is_no_class_is_a_bug():
    with pytest.raises(AssertionError):
        confusion_matrix(np.zeros((1, 1), np.uint8), np.full((1, 1), K, np.uint8), K)


def test_a_data_set_without_a_labelled_pixel_has_no_score():
    truth = np.full((2, 2), IGNORED, dtype=np.uint8)
    with pytest.raises(DataError, match="no labelled pixel to evaluate: every mask is empty or ignored"):
        score(confusion_matrix(truth, np.zeros_like(truth), K))
