"""Weights of classes, from how often they occur in the training split: `train.class_weights`."""

from collections.abc import Sequence
from statistics import median

from deeplab.store import IGNORE, Record


def median_frequency(records: Sequence[Record], classes: int) -> tuple[float, ...]:
    """The median of the frequencies of all classes, divided by the frequency of each (Eigen and Fergus, 2015).

    The frequency of a class is its share of the valid pixels of the images that it occurs in, as the manifest of the
    data set counts them. A class that does not occur has weight 0, which no pixel uses.
    """
    pixels, labelled = [0] * classes, [0] * classes
    for record in records:
        valid = sum(count for label, count in record.pixels.items() if label != IGNORE)
        for label in range(classes):
            if found := record.pixels.get(label, 0):
                pixels[label] += found
                labelled[label] += valid
    frequency = [own / of if of else 0.0 for own, of in zip(pixels, labelled, strict=True)]
    middle = median([each for each in frequency if each] or [0.0])
    return tuple(middle / each if each else 0.0 for each in frequency)
