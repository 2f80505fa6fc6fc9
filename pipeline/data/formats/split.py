"""Divide images into training and validation by the hash of their group, so that a new image moves no other one."""

from collections.abc import Collection, Iterable
from typing import Final

from deeplab.errors import DataError
from deeplab.groups import group_of, position
from pipeline.settings.params import pick
from pipeline.settings.schema import SplitOptions

SERIES: Final = r"^(.*?)(?:\d+\D*)?$"  # the group of names that differ in their last number only


def drawn(names: Iterable[str], options: SplitOptions, split: str, place: str) -> set[str]:
    """The `names` of images, paths without ending, that belong to `split`, which is train or val.

    Raises DataError with `place` for names without a group, and for a draw that leaves a split empty.
    """
    wanted = pick({"train": False, "val": True}, split, "splits of folder.split")
    groups = {name: group_of(name, options.group) for name in names}
    if odd := sorted(name for name, group in groups.items() if group is None):
        raise DataError(
            f"{place}: split.group {options.group!r} is not in {len(odd)} of {len(groups)} names, such as {odd[0]!r}"
        )
    val = {name for name, group in groups.items() if position(group or "") < options.val}
    if groups and len(val) in (0, len(groups)):
        raise DataError(
            f"{place}: split.val {options.val:g} draws {len(val)} of {len(groups)} images, in "
            f"{len(set(groups.values()))} groups. Choose another share, or smaller groups."
        )
    return {name for name in groups if (name in val) == wanted}


def proposed(names: Collection[str]) -> SplitOptions:
    """A division of `names`: by series if there are enough of them, with a share that draws a tenth to a third."""
    for group in (SERIES, None):
        for val in (0.2, 0.25, 0.15, 0.3, 0.1, 0.4, 0.5):
            count = sum(position(group_of(name, group) or "") < val for name in names)
            if 0.1 * len(names) <= max(count, 0.5) <= max(1, 0.35 * len(names)) and count:
                return SplitOptions(val=val, group=group)
    return SplitOptions(val=0.5)
