"""Pictures that a data set holds more than once: in train and in val, they make a validation that is worth less."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from deeplab.store import Record, Split, Store

Group = list[Record]  # samples of one picture


def find_duplicates(store: Store, image_checksums: Sequence[int]) -> list[Group]:
    """The groups of samples that have the same image, pixel for pixel, whatever their masks; in the store's order.

    `image_checksums` are those of the store's records. Different pictures may have the same one, so that pixels decide.
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
    """Of these groups those with samples in more than one split."""
    return [group for group in groups if len({record.split for record in group}) > 1]


def names(group: Group) -> str:
    """A group in a line: `train a = val b`."""
    return " = ".join(f"{record.split} {record.id}" for record in group)
