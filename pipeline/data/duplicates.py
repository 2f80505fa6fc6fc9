"""Images that occur more than once in a data set. In both train and val they make results too good."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from deeplab.store import Record, Split, Store

Group = list[Record]  # samples with equal images


def find_duplicates(store: Store, image_checksums: Sequence[int]) -> list[Group]:
    """The groups of samples whose images are equal pixel by pixel, in the store's order. Masks do not count.

    `image_checksums` has a value for each record of the store. Different images may share one, so the pixels decide.
    """
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for index, (record, image_checksum) in enumerate(zip(store.records, image_checksums, strict=True)):
        alike[record.height, record.width, image_checksum].append(index)
    samples = Split(store.folder, store.records, store.files)
    groups = []
    for indices in alike.values():
        while len(indices) > 1:
            first = samples.image(indices[0])
            same = [index for index in indices if np.array_equal(samples.image(index), first)]
            if len(same) > 1:
                groups.append([store.records[index] for index in same])
            indices = [index for index in indices if index not in same]
    return groups


def across(groups: Sequence[Group]) -> list[Group]:
    """The groups with samples in more than one split."""
    return [group for group in groups if len({record.split for record in group}) > 1]


def names(group: Group) -> str:
    """A group as text: `train a = val b`."""
    return " = ".join(f"{record.split} {record.id}" for record in group)
