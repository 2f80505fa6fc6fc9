"""The intervals hold the truth about as often as they claim to, in a world where the truth is known."""

from math import sqrt
from statistics import fmean, stdev

import numpy as np
import pytest

from deeplab import intervals
from deeplab.counts import Counts, gather
from deeplab.errors import DataError
from deeplab.intervals import Interval, difference, interval, mean_iou, with_seeds
from deeplab.metrics import score

WORLD = 10_000  # images in it


def world(classes, rarest, skill=1.2, seed=0):
    """Intersections and unions of WORLD images, (WORLD, K) both: they differ in content, difficulty and size of things.

    Class k is in a share of the images that falls like 1 / k down to `rarest`.
    """
    shape = (WORLD, classes)
    rng = np.random.default_rng(seed)  # the same images for every skill
    present = rng.random(shape) < np.minimum(rarest * classes / np.arange(1, classes + 1), 1)
    area = present * rng.gamma(0.5, 1.0, shape)
    area *= 10_000 / np.maximum(area.sum(axis=1, keepdims=True), 1e-9)
    logit = skill + rng.normal(0, 0.8, (WORLD, 1)) + rng.normal(0, 0.8, (1, classes)) + rng.normal(0, 1, shape)
    hits = np.rint(area / (1 + np.exp(-logit)))
    share = present + 0.02 * rng.random(shape)  # of the wrong pixels, by the class they are taken for
    wrong = (area - hits).sum(axis=1, keepdims=True) * share / share.sum(axis=1, keepdims=True)
    return hits, np.rint(area + wrong * rng.random((WORLD, 1)))


class Sample(Counts):
    """Counts that are their totals."""

    def __init__(self, hits, union):
        object.__setattr__(self, "images", np.arange(len(hits)).astype(str))
        object.__setattr__(self, "held", (hits, union))

    def totals(self):
        return self.held


def expected(draw, times=1000):
    """The mean of what `draw`(rng), a list of signed samples, comes to: the truth that an interval is about."""
    rng = np.random.default_rng(2)
    values = []
    for _ in range(times):
        sums = [(sign, *(part.sum(axis=0, keepdims=True) for part in sample.held)) for sign, sample in draw(rng)]
        values.append(sum(sign * mean_iou(hits, union)[0] for sign, hits, union in sums))
    return fmean(values)


def near(held):
    """Whether as many of the intervals hold the truth as a coverage of 95 % gives, by four standard errors."""
    return abs(fmean(held) - intervals.LEVEL) <= 4 * sqrt(intervals.LEVEL * (1 - intervals.LEVEL) / len(held))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


@pytest.mark.parametrize(("images", "classes", "rarest"), [(100, 6, 0.2), (200, 40, 0.03)])
def test_the_interval_holds_the_miou_to_be_expected_in_95_of_100_samples_of_images(quick, images, classes, rarest):
    hits, union = world(classes, rarest)

    def draw(rng):
        chosen = rng.integers(0, WORLD, images)
        return [(1, Sample(hits[chosen], union[chosen]))]

    truth, rng = expected(draw), np.random.default_rng(1)
    found = [interval([draw(rng)[0][1]]) for _ in range(150)]
    assert near([each.low <= truth <= each.high for each in found])
    assert all(each.low < each.estimate < each.high for each in found)


def test_the_interval_of_a_difference_holds_the_difference_to_be_expected_and_is_much_narrower(quick):
    one, other = world(10, 0.1, skill=1.2), world(10, 0.1, skill=1.0)

    def draw(rng):
        chosen = rng.integers(0, WORLD, 150)
        return [(sign, Sample(*(part[chosen] for part in each))) for sign, each in ((1, one), (-1, other))]

    truth, rng = expected(draw), np.random.default_rng(1)
    held, widths = [], []
    for _ in range(150):
        (_, ours), (_, theirs) = draw(rng)
        found = difference([ours], [theirs])
        held.append(found.low <= truth <= found.high)
        widths.append(found.error / interval([ours]).error)
    assert near(held)
    assert truth > 0.01
    assert fmean(widths) < 0.5


def test_an_interval_over_seeds_holds_the_true_mean_where_that_over_images_alone_does_not():
    """Images and seeds both move the number, by 0.01 each, and there are three seeds."""
    rng = np.random.default_rng(0)
    held = {"images": [], "both": []}
    for _ in range(1000):
        seeds = rng.normal(0.7, 0.01, 3)
        middle = float(seeds.mean() + rng.normal(0, 0.01))
        images = Interval(estimate=middle, low=middle - 0.0196, high=middle + 0.0196, error=0.01)
        both = with_seeds(images, seeds.tolist())
        held["images"].append(images.low <= 0.7 <= images.high)
        held["both"].append(both.low <= 0.7 <= both.high)
    assert fmean(held["images"]) < 0.93
    assert near(held["both"])


def counts(seed, images=12, classes=4):
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 50, (images, classes, classes)) + 200 * np.eye(classes, dtype=np.int64)
    return gather(iter(matrices), [f"{index}" for index in range(images)], [f"{k}" for k in range(classes)])


def test_the_estimate_is_the_score_and_the_mean_over_seeds():
    one, two = counts(0), counts(1)
    mious = [score(each.matrix).mean_iou for each in (one, two)]
    assert interval([one]).estimate == pytest.approx(mious[0])
    both = interval([one, two])
    assert both.estimate == pytest.approx(fmean(mious))
    assert both.low < both.estimate < both.high
    assert difference([one], [two]).estimate == pytest.approx(mious[0] - mious[1])
    assert interval([one]) == interval([one])


def test_swapped_cells_have_the_opposite_difference():
    there, back = difference([counts(0)], [counts(1)]), difference([counts(1)], [counts(0)])
    assert (there.estimate, there.error) == pytest.approx((-back.estimate, back.error))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=2e-4)


def test_a_cell_does_not_differ_from_itself():
    found = difference([counts(0)], [counts(0)])
    assert (found.low, found.estimate, found.high) == (0, 0, 0)


def test_with_one_seed_nothing_is_claimed_about_others():
    images = Interval(estimate=0.01, low=0.0, high=0.02, error=0.005)
    assert with_seeds(images, [0.7, 0.71], [0.69]) is None
    wider = with_seeds(images, [0.70, 0.71], [0.69, 0.70])
    assert wider.error == pytest.approx(sqrt(0.005**2 + 2 * stdev([0.7, 0.71]) ** 2 / 2))
    assert wider.high - wider.low > 2 * 1.96 * wider.error
    assert with_seeds(images, [0.7, 0.7]).error == images.error


def test_an_image_without_labels_changes_nothing():
    some = counts(0)
    matrices = [np.zeros((4, 4), np.int64), np.eye(4, dtype=np.int64), np.ones((4, 4), np.int64)]
    names = ["a", "b", "c"]
    with_empty = gather(iter(matrices), names, some.classes)
    assert interval([with_empty]) == interval([gather(iter(matrices[1:]), names[1:], some.classes)])


def test_other_images_and_too_few_are_refused():
    with pytest.raises(DataError, match="evaluated on different images"):
        difference([counts(0)], [counts(0, images=13)])
    with pytest.raises(DataError, match="1 images with labelled pixels: an interval over images needs two or more"):
        interval([counts(0, images=1)])
