"""What is checked about a data set as a whole, and how its problems and contents are reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError, LabelError, MaskModeError, SizeError
from pipeline.data.duplicates import across, names
from pipeline.data.formats.base import grouped
from pipeline.files import write_whole
from pipeline.settings.params import PARAMS, pick
from pipeline.settings.schema import DatasetConfig

if TYPE_CHECKING:
    from deeplab.store import Color, Record
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
    head = f"{raw}: {len(samples)} of {total} samples cannot be used. Fix or replace these files. Nothing was written."
    lines = [problem.message for problem in problems]
    shown = grouped(lines)
    return "\n  ".join([head, *shown, f"{'This list' if shown == lines else 'All'}: {file}"])


class Palettes:
    """Notices palette masks in which an index has another colour than in others, so that classes may be swapped."""

    def __init__(self) -> None:
        self.colors: dict[int, tuple[Color, Path]] = {}  # by index: the colour, and the first mask that has it
        self.example, self.odd = "", 0

    def add(self, mask: Path, colors: Mapping[int, Color]) -> None:
        """Compare a mask with those before it. `colors` are those of the indices that occur in it."""
        different = False
        for index, color in colors.items():
            before, file = self.colors.setdefault(index, (color, mask))
            if color != before:
                different = True
                self.example = self.example or f"index {index} is {before} in {file} but {color} in {mask}"
        self.odd += different

    def check(self, raw: Path) -> None:
        """Raise DataError when an index means two colours."""
        if self.example:
            raise DataError(
                f"{raw}: the palettes of {self.odd} masks differ from those before them, for example {self.example}. "
                "If the colours are right, set masks_are: colors and write them into the table of classes. If the "
                "indices are, save the masks as grey (mode L)."
            )


def check_classes(name: str, splits: Sequence[str], raw: Path, layout: Layout, records: Sequence[Record]) -> None:
    """Raise DataError for a first split with fewer than two classes: any network scores 100 % on one."""
    from deeplab.store import IGNORE

    found = {label for record in records if record.split == splits[0] for label in record.pixels} - {IGNORE}
    if len(found) < 2:
        seen = layout.classes[found.pop()] if found else "nothing"
        raise DataError(
            f"{raw}: the masks of {splits[0]} of {name} hold {seen!r} alone, beside ignored pixels: there is nothing "
            "to learn. Check what the values in the masks mean, and what is ignored."
        )


def warnings(duplicates: Sequence[Group], turned: Sequence[Path] = ()) -> Iterator[str]:
    """Lines about images that were `turned`, or that occur more than once, as some do in the official sets."""
    if turned:
        yield f"{len(turned)} images were turned upright by their EXIF orientation, for example {turned[0]}"
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
