import numpy as np
import pytest

from deeplab.baselines import class_pixels, majority_miou, prior_miou
from deeplab.store import Store
from deeplab.store_writer import StoreWriter

PALETTE = ((0, 0, 200), (200, 0, 0), (0, 200, 0))


def write_masks(folder, **splits):
    """A store of masks (H, W) by split, under black images."""
    with StoreWriter(folder, ("sky", "road", "car"), PALETTE) as writer:
        for split, masks in splits.items():
            for index, mask in enumerate(masks):
                mask = np.asarray(mask, np.uint8)
                writer.add(split, f"{split} {index}", np.zeros((*mask.shape, 3), np.uint8), mask)
    store = Store(folder)
    return store.split("train"), store.split("val")


def horizon(rows, columns, row):
    """Sky (0) above `row`, road (1) below."""
    mask = np.zeros((rows, columns), np.uint8)
    mask[row:] = 1
    return mask


def test_predicting_the_majority_scores_that_class_alone(tmp_path):
    train, val = write_masks(tmp_path, train=[horizon(8, 8, 2)], val=[horizon(8, 8, 4)])
    assert majority_miou(train, val, 3) == pytest.approx((0 + 0.5) / 2)  # sky is missed, road is half of the picture


def test_the_prior_knows_where_a_class_is_in_pictures_of_any_size(tmp_path):
    train, val = write_masks(tmp_path, train=[horizon(8, 8, 4), horizon(16, 32, 8)], val=[horizon(4, 12, 2)])
    assert prior_miou(train, val, 3) == 1


def test_the_prior_takes_the_most_frequent_class_of_each_place(tmp_path):
    train, val = write_masks(
        tmp_path, train=[horizon(8, 8, 2), horizon(8, 8, 6), horizon(8, 8, 6)], val=[horizon(8, 8, 6)]
    )
    assert prior_miou(train, val, 3) == 1


def test_a_place_that_is_always_ignored_gets_the_majority(tmp_path):
    hidden = horizon(8, 8, 2)
    hidden[:, :4] = 255
    train, val = write_masks(tmp_path, train=[hidden], val=[np.ones((8, 8))])
    assert prior_miou(train, val, 3) == pytest.approx((0 + 1 - 8 / 64) / 2)  # the hidden half is road


def test_ignored_pixels_do_not_count(tmp_path):
    mask = horizon(8, 8, 2)
    mask[2:] = 255
    train, val = write_masks(tmp_path, train=[mask], val=[mask])
    assert class_pixels(train, 3).tolist() == [16, 0, 0]
    assert majority_miou(train, val, 3) == 1
