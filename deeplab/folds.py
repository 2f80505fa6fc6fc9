"""k-fold cross-validation over groups of images: folds of about the same size, and no group in two of them."""

from collections import Counter

from deeplab.config import FoldConfig
from deeplab.errors import DataError
from deeplab.groups import group_of, position
from deeplab.store import Split


def divide(split: Split, folds: FoldConfig, fold: int) -> tuple[Split, Split]:
    """The images of `split` that are outside `fold`, 0 to count - 1, and those in it, both in the order of the split.

    Raises DataError when an image has no group, and when there are fewer groups than folds.
    """
    groups = [group_of(record.id, folds.group) for record in split.records]
    if odd := [record.id for record, group in zip(split.records, groups, strict=True) if group is None]:
        raise DataError(
            f"{split.folder}: folds.group {folds.group!r} is not in {len(odd)} of {len(groups)} names of images, such "
            f"as {odd[0]!r}"
        )
    places = assign(Counter(group or "" for group in groups), folds.count)
    if len(places) < folds.count:
        raise DataError(
            f"{split.folder}: folds.count is {folds.count}, but folds.group {folds.group!r} makes {len(places)} groups "
            f"of {len(groups)} images. Choose fewer folds, or smaller groups."
        )
    held_out = [places[group or ""] == fold for group in groups]
    return select(split, [not out for out in held_out]), select(split, held_out)


def assign(groups: Counter[str], count: int) -> dict[str, int]:
    """Group -> its fold. The largest group comes first, equal ones in the order of their hashes, each into the smallest
    fold so far.

    groups: the number of images of each.
    """
    sizes, places = [0] * count, {}
    for group in sorted(groups, key=lambda group: (-groups[group], position(group), group)):
        places[group] = fold = sizes.index(min(sizes))
        sizes[fold] += groups[group]
    return places


def select(split: Split, wanted: list[bool]) -> Split:
    """The samples of `split` that are `wanted`, in their order."""
    chosen = [index for index, holds in enumerate(wanted) if holds]
    files = [split.files[index] for index in chosen] if split.files else []
    return Split(split.folder, [split.records[index] for index in chosen], files)
