"""Your own images and masks, found by the `folder` options in params.yaml: docs/bring-your-own-images.md."""

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deeplab.decode import read_image, read_size
from deeplab.errors import DataError
from deeplab.store import IGNORE, Bytes, Color
from pipeline.data.formats.base import Layout, Mask, RawSample, read_lines
from pipeline.data.formats.masks import LabelTable, label_table, read_colors, read_labels, to_train_ids
from pipeline.errors import ParamsError
from pipeline.settings.schema import DatasetConfig, FolderOptions

PICTURES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SHOWN: Final = 20  # problems that a message lists; it counts the others

Pairs = dict[str, tuple[Path, Path]]  # id -> image, mask; below the raw folder


@dataclass(frozen=True, kw_only=True)
class FolderSample(RawSample):
    """A sample and how to read its mask, which the settings define."""

    table: LabelTable
    colors: dict[Color, int] | None  # the label of each colour; None if masks contain labels


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
    kept = [label for label in sorted(classes.names) if label not in (*options.ignore, *options.map)]
    if not 1 <= len(kept) <= IGNORE:
        raise DataError(f"{classes.path}: {len(kept)} classes remain without ignore and map, expected 1 to {IGNORE}")
    table = make_table(options, kept, classes)
    colors = color_table(classes) if options.masks_are == "colors" else None
    samples: dict[str, list[RawSample]] = {}
    problems: list[str] = []
    for split in splits:
        pairs, odd = listed_pairs(raw, options, split) if options.pairs else paired_files(raw, options, split)
        problems += odd
        samples[split] = [
            FolderSample(id=name, image=raw / image, mask=raw / mask, table=table, colors=colors)
            for name, (image, mask) in sorted(pairs.items())
        ]
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        title = f"{raw}: {len(problems)} problems in pairing images and masks:"
        raise DataError("\n  ".join([title, *problems[:SHOWN], *more]))
    palette = tuple(classes.colors[label] for label in kept) if classes.colors else default_palette(len(kept))
    return Layout(classes=tuple(classes.names[label] for label in kept), palette=palette, samples=samples)


def size(sample: RawSample) -> tuple[int, int]:
    """Height and width of the image."""
    return read_size(sample.image)


def load_image(sample: RawSample) -> Bytes:
    """The image (H, W, 3)."""
    return read_image(sample.image)


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W)."""
    assert isinstance(sample, FolderSample)
    labels = read_labels(sample.mask) if sample.colors is None else read_colors(sample.mask, sample.colors)
    return to_train_ids(labels, sample.table, sample.mask)


def read_classes(path: Path) -> Classes:
    """The classes in `path`. Names may contain spaces. Empty lines and lines that begin with # are skipped."""
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    for number, line in enumerate(read_lines(path, "label name"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
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


def listed_pairs(raw: Path, options: FolderOptions, split: str) -> tuple[Pairs, list[str]]:
    """The pairs in the list of `split`, and the problems of its lines. The files may be missing."""
    path = raw / (options.pairs or "").replace("{split}", split)
    pairs: Pairs = {}
    problems: list[str] = []
    for number, line in enumerate(read_lines(path, "image mask"), start=1):
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if not words:
            continue
        name = Path(words[0]).with_suffix("").as_posix() if words[0] else ""
        if len(words) != 2 or not all(word and word.isprintable() for word in words):
            problems.append(f"{path}:{number}: got {line!r}, expected `image mask`, with a tab if a path has spaces")
        elif name in pairs:
            problems.append(f"{path}:{number}: the image {name} is already listed above")
        else:
            pairs[name] = (Path(words[0]), Path(words[1]))
    return pairs, problems


def paired_files(raw: Path, options: FolderOptions, split: str) -> tuple[Pairs, list[str]]:
    """The images and masks of `split` with equal names, and the problems of all others."""
    problems: list[str] = []
    masks = find_files(raw, options.masks or "", split, problems)
    images = find_files(raw, options.images or "", split, problems, other=set(masks.values()))
    problems += [f"{raw / images[name]}: no mask of this name" for name in sorted(images.keys() - masks.keys())]
    problems += [f"{raw / masks[name]}: no image of this name" for name in sorted(masks.keys() - images.keys())]
    both = images.keys() & masks.keys()
    return {images[name].with_suffix("").as_posix(): (images[name], masks[name]) for name in both}, problems


def find_files(
    raw: Path, pattern: str, split: str, problems: list[str], other: frozenset[Path] | set[Path] = frozenset()
) -> dict[str, Path]:
    """Name -> path below `raw` of the images that match `pattern` and are not in `other`. Adds to `problems`."""
    pattern = pattern.replace("{split}", split)
    folder, file = pattern.rsplit("/", 1) if "{name}" in pattern else (pattern, "{name}")
    start, end = file.split("{name}")
    if not (raw / folder).is_dir():
        raise DataError(f"{raw / folder}: not found. This is where folder.images or folder.masks looks for {split!r}.")
    found: dict[str, Path] = {}
    for path in sorted((raw / folder).iterdir()):
        text = path.name if end.lower().endswith(PICTURES) else path.stem
        relative = path.relative_to(raw)
        if path.name.startswith(".") or path.suffix.lower() not in PICTURES or relative in other:
            continue
        if not (text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end)):
            continue
        name = text[len(start) : len(text) - len(end)]
        if not name.isprintable():
            problems.append(f"{raw / folder}: the file name {path.name!a} cannot be printed. Rename the file.")
        elif name in found:
            problems.append(f"{path}: {found[name].name} has the same name. Remove or rename one of them.")
        else:
            found[name] = relative
    return found


def default_palette(count: int) -> tuple[Color, ...]:
    """`count` colours. Neighbours differ in hue, and later rounds also in brightness."""
    colors = [colorsys.hsv_to_rgb(k * 0.618 % 1, (0.85, 0.5)[k % 2], (1.0, 0.7, 0.85)[k % 3]) for k in range(count)]
    return tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors)
