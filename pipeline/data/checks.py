"""What is checked about a data set as a whole, and how its problems and contents are reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError, LabelError, MaskModeError, SizeError
from pipeline.data.duplicates import across, names
from pipeline.files import write_whole
from pipeline.settings.params import PARAMS, pick
from pipeline.settings.schema import DatasetConfig

if TYPE_CHECKING:
    from deeplab.store import Record
    from pipeline.data.duplicates import Group
    from pipeline.data.formats.base import Layout
    from pipeline.data.pack import Problem

# Where a kind of problem is in the list. A file that is missing or cannot be read comes first.
RANK: dict[type[DataError], int] = {SizeError: 1, MaskModeError: 2, LabelError: 3}
SHOWN = 20  # problems that a message lists


def check_counts(name: str, config: DatasetConfig, splits: tuple[str, ...], raw: Path, layout: Layout) -> None:
    """Raise DataError for an empty split, and for another number of images than published unless that is allowed."""
    different, kind = [], "subset"
    for split in splits:
        published = pick(config.images, split, f"datasets.{name}.images")
        found = len(layout.samples[split])
        if not found:
            raise DataError(f"{raw}: no images for the split {split!r} of {name}")
        if found != published:
            different.append(f"{found} of {published} {split} images")
        if found > published:
            kind = "not the published set"
    if not different:
        return
    subset = f"{kind}: {', '.join(different)}"
    if not config.allow_subset:
        raise DataError(
            f"{raw}: {subset}. Complete the data, or accept the difference: "
            f"set datasets.{name}.allow_subset: true in {PARAMS}."
        )
    print(f"{name}: {subset} (accepted by datasets.{name}.allow_subset)")


def check_overlap(splits: tuple[str, str], raw: Path, layout: Layout) -> None:
    """Raise DataError for images that are in both splits."""
    train, val = ({sample.id for sample in layout.samples[split]} for split in splits)
    if both := sorted(train & val):
        names = ", ".join(both[:SHOWN]) + (f" and {len(both) - SHOWN} more" if len(both) > SHOWN else "")
        raise DataError(f"{raw}: {len(both)} images are both in {splits[0]} and in {splits[1]}: {names}")


def report_problems(raw: Path, total: int, samples: Sequence[list[Problem]], file: Path) -> str:
    """The first problems of a data set, worst first, as one message; `file` gets the whole list.

    `samples` has the problems of each sample that has any.
    """
    problems = sorted((one for each in samples for one in each), key=lambda problem: RANK.get(problem.kind, 0))
    write_whole(file, "".join(f"{problem.message}\n" for problem in problems))
    alike: dict[str, list[str]] = {}  # masks of a wrong mode are mostly all of them, and the advice is the same
    for problem in problems:
        said = problem.message.partition(": ")[2] if problem.kind is MaskModeError else problem.message
        alike.setdefault(said, []).append(problem.message)
    lines = [
        f"{first.removesuffix(': ' + said)} and {len(others)} more: {said}" if others else first
        for said, (first, *others) in alike.items()
    ]
    head = f"{raw}: {len(samples)} of {total} samples cannot be used. Fix or replace these files. Nothing was written."
    if len(lines) > SHOWN:
        more = f"and {len(lines) - SHOWN} more. All: {file}"
    else:
        more = f"This list: {file}" if len(lines) == len(problems) else f"All: {file}"
    return "\n  ".join([head, *lines[:SHOWN], more])


def warnings(duplicates: Sequence[Group]) -> Iterator[str]:
    """Lines about images that occur more than once. The official sets have some, so that is no error."""
    leaks = across(duplicates)
    if leaks:
        yield f"WARNING: {len(leaks)} images are in several splits under different names, which makes results too good:"
        yield from (f"  {names(group)}" for group in leaks[:SHOWN])
    if len(leaks) > SHOWN:
        yield f"  and {len(leaks) - SHOWN} more, all on the data card"
    if others := len(duplicates) - len(leaks):
        yield f"{others} images occur more than once in one split: see the data card"


def summary(records: list[Record], classes: int) -> str:
    """The content of a split in one line."""
    from deeplab.store import IGNORE

    pixels: Counter[int] = Counter()
    for record in records:
        pixels.update(record.pixels)
    present, ignored = len(pixels.keys() - {IGNORE}), pixels[IGNORE] / pixels.total()
    return f"{len(records)} images, {present} of {classes} classes, {ignored:.1%} of pixels ignored"
