"""What other people's masks mean: the labels or colours that occur, their names, and which looks like "no label"."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from deeplab.decode import orientation, read_size
from deeplab.errors import DataError, SizeError
from deeplab.histogram import histogram
from deeplab.store import Color
from pipeline.data.classes import Listed, find_list, read_list
from pipeline.data.formats.arrays import ENDING, read_array
from pipeline.data.formats.masks import labels_in, read_picture
from pipeline.data.pairing import Found, find, listed_files
from pipeline.errors import ParamsError
from pipeline.process import cores
from pipeline.progress import shown
from pipeline.settings.scaffold import Source

MOST = 256  # labels or colours of a data set
TRANSPOSED = 4  # EXIF orientations above it exchange the sides
SHOWN = 3  # sizes that a report names
NO_LABEL = re.compile(r"(?i)ignore|unlabel|void|unknown|don.?t.?care")
BORDER: Color = (224, 224, 192)  # around the objects of PASCAL VOC, and of tools that write its form

Item = TypeVar("Item")
Key = int | Color  # a label, or the colour that stands for a class


class Value(NamedTuple):
    """What a pixel of a mask may have: a label, a colour, or both with a palette."""

    label: int | None
    color: Color | None

    def key(self, is_colored: bool) -> Key:
        """The colour, or else the label."""
        if is_colored or self.label is None:
            return self.color or (self.label or 0,) * 3
        return self.label


Mask = tuple[str, tuple[int, int], dict[Value, int]]  # mode, height and width, and how many pixels have each value


class Seen(NamedTuple):
    """What a number of masks contain."""

    modes: Counter[str]
    sizes: Counter[tuple[int, int]]  # height, width
    pixels: Counter[Value]
    masks: Counter[Value]  # how many have it


class Row(NamedTuple):
    """A class of the new project."""

    label: int
    name: str
    color: Color | None  # where masks hold colours
    is_ignored: bool
    share: float  # of all pixels
    masks: int  # how many have it

    @property
    def line(self) -> str:
        """The line of classes.txt."""
        return " ".join(map(str, (self.label, self.name, *(self.color or ()))))

    def __str__(self) -> str:
        remark = "  looks like `no label`: neither trained nor counted" if self.is_ignored else ""
        color = "{:4}{:4}{:4}  ".format(*self.color) if self.color else ""
        return f"{self.label:5}  {color}{self.name:24}{self.share:7.1%}{self.masks:8}{remark}"


def describe(images: Path | None, masks: Path | None, pairs: Sequence[Path], classes: Path | None) -> Source:
    """What is in two folders, or in lists of pairs. Raises ParamsError for folders or lists that are missing, DataError
    for files that cannot be used.
    """
    if bool(pairs) == bool(images or masks) or bool(images) != bool(masks):
        raise ParamsError("expected --images and --masks, or --pairs instead of both")
    found = find(images, masks) if images and masks else listed_files(pairs)
    files = [(found.images / image, found.masks / mask) for each in found.splits.values() for image, mask in each]
    seen, file = look(read_pair, files, "looking"), classes or find_list(found.images, found.masks)
    listed = read_list(file) if file else []
    rows = settle(seen, listed)
    ignore = [row.label for row in rows if row.is_ignored]
    if len(rows) - len(ignore) < 2:
        raise DataError(f"{found.masks}: every mask is {rows[0].name!r} only, expected 2 classes or more")
    note = f"names from {file.name} in {file.resolve().parent.name}" if file else "no list of classes was found"
    if not {each.name for each in listed} & {row.name for row in rows if row.masks}:
        note = f"{f'{file.name} fits no mask' if file else note}: write the names into classes.txt"
    return Source(
        images=found.images,
        masks=found.masks,
        splits=found.splits,
        split_note=found.note,
        size=seen.sizes.most_common(1)[0][0],
        classes=[row.line for row in rows],
        class_note=note,
        masks_are="colors" if rows[0].color else "labels",
        ignore=ignore,
        report="\n".join(report(found, seen, note, rows)),
    )


def report(found: Found, seen: Seen, note: str, rows: Sequence[Row]) -> Iterator[str]:
    """What was found, for a person."""
    sizes = [f"{width}x{height} ({count})" for (height, width), count in seen.sizes.most_common()]
    more = [f"{len(sizes) - SHOWN} more"] if len(sizes) > SHOWN else []
    modes = ", ".join(f"{mode} ({count})" for mode, count in seen.modes.most_common())
    counts = ", ".join(f"{name} {len(pairs)}" for name, pairs in found.splits.items())
    colored = rows[0].color is not None
    yield f"pairs    {seen.sizes.total()}"
    if found.alone:
        yield f"alone    {len(found.alone)} files without a partner are left out, such as {found.alone[0]}"
    yield f"sizes    {', '.join([*sizes[:SHOWN], *more])}"
    yield f"masks    {'colours' if colored else 'labels'}, mode {modes}"
    yield f"splits   {counts}; {found.note}"
    yield f"classes  {len(rows)}; {note}"
    yield ""
    yield f"label  {'colour        ' if colored else ''}{'name':24}{'pixels':>7}{'masks':>8}"
    yield from map(str, rows)


def look(read: Callable[[Item], Mask], items: Sequence[Item], title: str) -> Seen:
    """What `read` returns for each of `items`, counted. Raises DataError for the first one that cannot be used."""
    seen = Seen(Counter(), Counter(), Counter(), Counter())
    with ThreadPoolExecutor(cores()) as pool:
        for mode, size, pixels in shown(pool.map(read, items), title, total=len(items)):
            seen.modes[mode] += 1
            seen.sizes[size] += 1
            seen.pixels.update(pixels)
            seen.masks.update(pixels.keys())
    return seen


def read_pair(pair: tuple[Path, Path]) -> Mask:
    """What is in the mask of a pair (image, mask).

    Raises DataError when mask or image cannot be read, or differ in size.
    """
    image, path = pair
    picture = Image.fromarray(read_array(path)) if path.suffix == ENDING else read_picture(path)
    size = (picture.height, picture.width)
    stored = read_size(image)
    if (other := stored[::-1] if orientation(image) > TRANSPOSED else stored) != size:
        raise SizeError(f"{path}: {size[1]}x{size[0]}, but {image} is {other[1]}x{other[0]}. Give both the same size.")
    if picture.mode not in ("1", "LA", "PA", "RGB", "RGBA"):
        counts = histogram(labels_in(path, picture))
        palette = np.array(((picture.getpalette("RGB") or []) + [0] * 768)[:768]).reshape(256, 3).tolist()
        labels = np.flatnonzero(counts).tolist()
        has_palette = picture.mode == "P"
        return (
            picture.mode,
            size,
            {Value(label, tuple(palette[label]) if has_palette else None): int(counts[label]) for label in labels},
        )
    rgb = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(np.int32)
    codes, totals = np.unique(rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2], return_counts=True)
    if len(codes) > MOST:
        raise DataError(f"{path}: {len(codes):,} colours, expected one for each class. Is it a mask?")
    pixels = zip(codes.tolist(), totals.tolist(), strict=True)
    return picture.mode, size, {Value(None, (code >> 16, code >> 8 & 255, code & 255)): n for code, n in pixels}


def settle(seen: Seen, listed: Sequence[Listed]) -> list[Row]:
    """The classes that are listed or occur, with colours where masks hold colours. Raises DataError for too many."""
    colored = holds_colors(seen.pixels, listed)
    pixels: Counter[Key] = Counter()
    masks: Counter[Key] = Counter()
    for value, count in seen.pixels.items():
        pixels[value.key(colored)] += count
        masks[value.key(colored)] += seen.masks[value]
    names: dict[Key, str] = {}
    for place, each in enumerate(listed):
        label = place if each.label is None else each.label
        key = each.color or (label,) * 3 if colored else label
        if each.color or not colored or key in pixels:  # a list without colours names grey ones only
            names[key] = each.name
    if not listed and len(pixels) == 2 and min(pixels) in (0, (0, 0, 0)):
        names = dict(zip(sorted(pixels), ("background", "foreground"), strict=True))
    for key, _ in pixels.most_common() if colored else sorted(pixels.items()):
        usual = "ignore" if key in (255, BORDER) else f"class_{len(names) if colored else key}"
        names.setdefault(key, unused(usual, names.values()))
    if len(names) > MOST:
        raise DataError(f"{len(names)} colours, expected at most {MOST}, one for each class. Are these masks?")
    # Where most pixels have such a name, it is the background.
    total = pixels.total()
    ignored = {key for key, name in names.items() if NO_LABEL.search(name) and pixels[key] < total / 2}
    ignored = ignored if len(pixels.keys() - ignored) > 1 else set()
    return [
        Row(
            label=place if isinstance(key, tuple) else key,
            name=name,
            color=key if isinstance(key, tuple) else None,
            is_ignored=key in ignored,
            share=pixels[key] / total,
            masks=masks[key],
        )
        for place, (key, name) in enumerate(names.items())
    ]


def unused(name: str, taken: Collection[str]) -> str:
    """`name`, with a number behind it when a class of the list has it."""
    others = (f"{name} {number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], others) if each not in taken)


def holds_colors(values: Collection[Value], listed: Sequence[Listed]) -> bool:
    """Whether colours distinguish the classes: no labels, differing palettes, or a list of just these colours."""
    palette: dict[int, Color] = {}
    for label, color in values:
        if label is None or (color and palette.setdefault(label, color) != color):
            return True
    return {value.key(True) for value in values} <= {each.color for each in listed if each.label is None}
