"""How far a mIoU, or the difference of two, varies with the images: a bootstrap over the validation images.

Whole images are drawn with replacement, and the mIoU is computed from their summed counts. The percentiles are shifted
so that the mean of the resamples is the estimate, because a class in few images has a lower IoU in a resample on
average. With 150 classes, plain and BCa percentiles contained the expected mIoU in 26 to 72 of 100 simulated cases, and
shifted ones in 93 (docs/what-a-difference-means.md). The interval does not include the effect of the training seed;
`with_seeds` adds it.

The sums are integers below 2^53, so equal counts give the same interval, bit for bit, on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist, stdev

import numpy as np
from numpy.typing import NDArray

from deeplab.counts import Counts
from deeplab.errors import DataError

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 200  # resamples held at a time: 3 MB for 2000 images
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the interval of its expectation over sets of as many images; all are shares, 0..1 for a mIoU."""

    estimate: float
    low: float
    high: float
    error: float  # standard error: the standard deviation of the estimate over the resamples


def interval(runs: Sequence[Counts]) -> Interval:
    """The mIoU of a cell, the mean over its seeds or folds `runs`.

    Raises DataError for fewer than two images with labelled pixels.
    """
    found = _interval(runs, [1 / len(runs)] * len(runs))
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def difference(ours: Sequence[Counts], theirs: Sequence[Counts]) -> Interval:
    """The mIoU of one cell minus that of another on the same images, or folds of images, paired image by image.

    Raises DataError when the images differ, or are fewer than two.
    """
    if not comparable(ours, theirs):
        raise DataError("the runs were evaluated on different images, so they cannot be compared image by image")
    return _interval([*ours, *theirs], [1 / len(ours)] * len(ours) + [-1 / len(theirs)] * len(theirs))


def comparable(ours: Sequence[Counts], theirs: Sequence[Counts]) -> bool:
    """Whether two cells were evaluated on the same images, or on the same folds of images."""
    one, other = ({tuple(run.images) for run in runs} for runs in (ours, theirs))
    return one == other


def with_seeds(images: Interval, *seeds: Sequence[float]) -> Interval | None:
    """`images` widened by the variance over training seeds; `seeds` are the mIoUs per seed of one cell or two.

    The variances over images and over seeds add up, and Student's t accounts for how few seeds there are (Welch and
    Satterthwaite). Returns None when a cell has only one seed.
    """
    from scipy.special import stdtrit

    if any(len(values) < 2 for values in seeds):
        return None
    variances = [stdev(values) ** 2 / len(values) for values in seeds]
    total = images.error**2 + sum(variances)
    loose = sum(part**2 / (len(values) - 1) for part, values in zip(variances, seeds, strict=True))
    factor = float(stdtrit(total**2 / loose, (1 + LEVEL) / 2)) if loose else NormalDist().inv_cdf((1 + LEVEL) / 2)
    half, middle = factor * sqrt(total), images.estimate
    return Interval(estimate=middle, low=middle - half, high=middle + half, error=sqrt(total))


def _interval(runs: Sequence[Counts], factors: Sequence[float]) -> Interval:
    """The interval of the sum of the runs' mIoUs, each times its factor. Runs on the same images share the draws."""
    sets = list(dict.fromkeys(tuple(run.images) for run in runs))
    places = [sets.index(tuple(run.images)) for run in runs]
    totals = [run.totals() for run in runs]
    labelled = [totals[places.index(place)][1].any(axis=1) for place in range(len(sets))]  # the masks are the same
    totals = [
        (hits[labelled[place]], union[labelled[place]]) for place, (hits, union) in zip(places, totals, strict=True)
    ]
    counts = [int(held.sum()) for held in labelled]
    if (fewest := min(counts)) < 2:
        raise DataError(f"{fewest} images with labelled pixels: an interval over images needs two or more")

    def combined(sums: Sequence[tuple[Floats, Floats]]) -> Floats:
        """(R, K) intersections and unions of each run -> (R,)."""
        return sum(factor * mean_iou(*each) for factor, each in zip(factors, sums, strict=True))  # type: ignore[return-value]

    whole = [(hits.sum(axis=0, keepdims=True), union.sum(axis=0, keepdims=True)) for hits, union in totals]
    estimate = float(combined(whole)[0])
    rng = np.random.default_rng(SEED)
    parts = []
    for _ in range(RESAMPLES // AT_ONCE):
        weights = [_draw(rng, count) for count in counts]
        drawn = [weights[place] for place in places]
        parts.append(combined([(own @ hits, own @ union) for own, (hits, union) in zip(drawn, totals, strict=True)]))
    resampled = np.concatenate(parts)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + (estimate - resampled.mean())
    return Interval(estimate=estimate, low=float(low), high=float(high), error=float(resampled.std(ddof=1)))


def mean_iou(hits: Floats, union: Floats) -> Floats:
    """(R, K) intersections and unions -> the mean over the classes that have a union, (R,)."""
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
    mean: Floats = iou.sum(axis=1) / (union > 0).sum(axis=1)
    return mean


def _draw(rng: np.random.Generator, count: int) -> Floats:
    """How often each of `count` images is in each of AT_ONCE resamples, (AT_ONCE, count)."""
    drawn = rng.integers(0, count, (AT_ONCE, count)) + count * np.arange(AT_ONCE)[:, None]
    return np.bincount(drawn.reshape(-1), minlength=AT_ONCE * count).reshape(AT_ONCE, count).astype(np.float64)
