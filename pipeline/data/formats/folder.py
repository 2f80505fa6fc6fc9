"""Your own images and masks, found by the `folder` options in params.yaml: docs/bring-your-own-images.md."""

import colorsys
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from deeplab.errors import DataError, MaskModeError
from deeplab.store import IGNORE, Color
from pipeline.data.formats.arrays import ENDING, read_array
from pipeline.data.formats.base import Layout, Mask, RawSample, grouped, image_of, image_size, read_lines
from pipeline.data.formats.masks import LabelTable, label_table, read_colors, read_indexed, to_train_ids
from pipeline.data.formats.pairs import listed_pairs, paired_files
from pipeline.data.formats.split import drawn
from pipeline.errors import ParamsError
from pipeline.settings.schema import DatasetConfig, FolderOptions

BLACK_AND_WHITE: Final[dict[Color, int]] = {(0, 0, 0): 0, (255, 255, 255): 1}

size, load_image = image_size, image_of


@dataclass(frozen=True, kw_only=True)
class FolderSample(RawSample):
    """A sample and how to read its mask, which the settings define."""

    table: LabelTable
    colors: dict[Color, int] | None  # the label of each colour; None if masks contain labels
    named: dict[Color, int]  # the label of each colour that one class alone has in the table of classes


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The table in a classes file."""

    path: Path
    names: dict[int, str]  # by label
    colors: dict[int, Color]  # by label; of all classes or of none


def scan(raw: Path, config: DatasetConfig, splits: tuple[str, ...]) -> Layout:
    """The pairs of each split. Raises DataError with all files that have no partner."""
    options = config.folder
    assert options
    if not raw.is_dir():
        raise DataError(f"{raw}: not found. Put or link the folder with your images and masks there.")
    classes = read_classes(raw / options.classes)
    kept, _ = numbered(options, classes)
    sample = sampler(raw, options)
    samples: dict[str, list[RawSample]] = {}
    problems: list[str] = []
    for split in splits:
        pairs, odd = listed_pairs(raw, options, split) if options.pairs else paired_files(raw, options, split)
        problems += [problem for problem in odd if problem not in problems]
        if options.split and not odd:
            chosen = drawn(pairs, options.split, split, str(raw))
            pairs = {name: pair for name, pair in pairs.items() if name in chosen}
        samples[split] = [
            sample(id=name, image=raw / image, mask=raw / mask) for name, (image, mask) in sorted(pairs.items())
        ]
    if problems:
        title = f"{raw}: {len(problems)} problems in pairing images and masks:"
        raise DataError("\n  ".join([title, *grouped(problems)]))
    palette = tuple(classes.colors[label] for label in kept) if classes.colors else default_palette(len(kept))
    return Layout(classes=tuple(classes.names[label] for label in kept), palette=palette, samples=samples)


def sampler(raw: Path, options: FolderOptions) -> Callable[..., RawSample]:
    """What makes a sample of `id`, `image` and `mask`: it knows how to read the masks of the folder `raw`."""
    classes = read_classes(raw / options.classes)
    _, table = numbered(options, classes)
    colors = color_table(classes) if options.masks_are == "colors" else None
    if options.masks_are == "binary":
        colors = BLACK_AND_WHITE
    once = [color for color in classes.colors.values() if list(classes.colors.values()).count(color) == 1]
    named = {color: label for label, color in classes.colors.items() if color in once}
    return partial(FolderSample, table=table, colors=colors, named=named)


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W). Raises MaskModeError for an index whose colour is that of another class."""
    assert isinstance(sample, FolderSample)
    if sample.mask.suffix == ENDING:
        return to_train_ids(read_array(sample.mask), sample.table, sample.mask)
    if sample.colors is not None:
        return to_train_ids(read_colors(sample.mask, sample.colors), sample.table, sample.mask)
    labels, colors = read_indexed(sample.mask, sample.table)
    for label, color in colors.items():
        if sample.named.get(color, label) != label:
            raise MaskModeError(
                f"{sample.mask}: index {label} of its palette has the colour {color} of the class "
                f"{sample.named[color]}. If the colours are right, set masks_are: colors, else save it in mode L.",
                (labels.shape[0], labels.shape[1]),
            )
    return to_train_ids(labels, sample.table, sample.mask)._replace(colors=colors)


def read_classes(path: Path) -> Classes:
    """The classes in `path`. Names may contain spaces. Empty lines and lines that begin with # are skipped."""
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    for number, line in enumerate(read_lines(path, "label name"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2 and re.fullmatch("#[0-9a-fA-F]{6}", words[-1]):
            words[-1:] = (str(channel) for channel in bytes.fromhex(words[-1][1:]))
        last = words[-3:] if len(words) > 4 and all(word.isdecimal() for word in words[-3:]) else []
        label, name = words[0], " ".join(words[1 : len(words) - len(last)])
        if not name or not name.isprintable() or not all(w.isdecimal() and int(w) < 256 for w in (label, *last)):
            raise DataError(
                f"{path}:{number}: got {line!r}, expected `label name` or `label name red green blue` with numbers "
                "from 0 to 255"
            )
        if int(label) in names or name in names.values():
            raise DataError(f"{path}:{number}: got {line!r}, but this label or name is already in use above")
        names[int(label)] = name
        if last:
            colors[int(label)] = (int(last[0]), int(last[1]), int(last[2]))
    if colors and (without := [name for label, name in names.items() if label not in colors]):
        raise DataError(f"{path}: {without[0]!r} has no colour, but other classes do. Add it, or remove all colours.")
    return Classes(path=path, names=names, colors=colors)


def numbered(options: FolderOptions, classes: Classes) -> tuple[list[int], LabelTable]:
    """The labels that are classes, and the table of label -> train id. Raises DataError for fewer than two."""
    kept = [label for label in sorted(classes.names) if label not in (*options.ignore, *options.map)]
    if not 2 <= len(kept) <= IGNORE:
        raise DataError(
            f"{classes.path}: {len(kept)} classes remain without ignore and map, expected 2 to {IGNORE}: a network of "
            "one class has nothing to decide. The background can be a class."
        )
    return kept, make_table(options, kept, classes)


def make_table(options: FolderOptions, kept: list[int], classes: Classes) -> LabelTable:
    """A table of label -> train id. The `kept` labels are numbered in their order."""
    train_ids = {label: train_id for train_id, label in enumerate(kept)} | dict.fromkeys(options.ignore, IGNORE)
    for source, target in options.map.items():
        if target not in train_ids:
            raise ParamsError(
                f"folder.map: label {source} is mapped to {target}, which is neither in {classes.path} nor in ignore"
            )
    return label_table(train_ids | {source: train_ids[target] for source, target in options.map.items()})


def color_table(classes: Classes) -> dict[Color, int]:
    """Colour -> label."""
    if not classes.colors:
        raise DataError(
            f"{classes.path}: no colours, but folder.masks_are is colors. Write red green blue after each name."
        )
    table = {color: label for label, color in classes.colors.items()}
    for label, color in classes.colors.items():
        if table[color] != label:
            raise DataError(
                f"{classes.path}: {classes.names[label]!r} and {classes.names[table[color]]!r} have the same colour"
            )
    return table


def default_palette(count: int) -> tuple[Color, ...]:
    """`count` colours. Neighbours differ in hue, and later rounds also in brightness."""
    colors = [colorsys.hsv_to_rgb(k * 0.618 % 1, (0.85, 0.5)[k % 2], (1.0, 0.7, 0.85)[k % 3]) for k in range(count)]
    return tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors)
