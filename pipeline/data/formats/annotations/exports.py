"""What a labelling tool exported: which tool, where its images and splits are, and its classes, for `grid new`."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deeplab.decode import ENDINGS
from deeplab.errors import DataError
from pipeline.data import look
from pipeline.data.classes import find_list, read_list
from pipeline.data.find import find_pictures
from pipeline.data.formats.annotations import annotated
from pipeline.data.formats.annotations.regions import Export
from pipeline.data.formats.annotations.tools import FORMS, READERS
from pipeline.data.formats.base import RawSample
from pipeline.data.formats.split import drawn, proposed
from pipeline.data.pairing import Found, Pair
from pipeline.errors import ParamsError
from pipeline.settings.scaffold import Source
from pipeline.settings.schema import DatasetConfig, FolderOptions, SplitOptions

SPLIT = re.compile(r"(?i)(?<![a-z])(?:train(?:ing)?|val(?:id|idation)?|test(?:ing)?)\d*(?![a-z])")
BACKGROUND = re.compile(r"(?i)_*background_*")
YOLO_LINE = re.compile(r"\d+(\s+-?[\d.]+(e-?\d+)?){4,}")
LISTS = {"yolo": "data.yaml", "labelme": "labels.txt"}  # of classes, of tools whose annotations do not have all
PEEK = 4096  # bytes of a file that show what it is
BRUSH = re.compile(r"task-\d+-annotation-\d+-by-")  # the PNG of a brush in Label Studio, one per class and image


class Place(NamedTuple):
    """Where an export has its annotations, below its folder, with {split} for the name of a split."""

    tool: str
    annotations: str
    splits: Sequence[str]  # that the export names, the one to train on first; none if it is not divided


def describe(
    root: Path,
    images: Path | None = None,
    masks: Path | None = None,
    pairs: Sequence[Path] = (),
    classes: Path | None = None,
) -> Source:
    """What is in the export `root`, a folder or a file, whose images may be elsewhere.

    Raises ParamsError for a path that does not exist, DataError for an export that has problems, or is none.
    """
    if masks or pairs:
        raise ParamsError("--annotations: expected without --masks and --pairs")
    for path in (root, *([images] if images else [])):
        if not path.exists():
            raise ParamsError(f"{path}: no such file or folder")
    if found_masks := mask_folder(root):
        images = images or (root if found_masks == root else root / "JPEGImages")
        if not images.is_dir():
            raise DataError(f"{root}: masks without images. Export them with images, or name their folder by --images")
        return look.describe(images, found_masks, (), classes)
    folder = (root if root.is_dir() else root.parent).absolute()
    place = find_place(root, folder)
    read = {split: READERS[place.tool](folder / filled(place.annotations, split)) for split in place.splits or ("",)}
    annotated.refuse(root, [each for export in read.values() if not export.images for each in export.problems])
    pattern = image_pattern(place, read, images or folder)
    lists = (folder / LISTS[place.tool], find_list(folder)) if place.tool in LISTS else ()
    file = classes or next((each for each in lists if each and each.is_file()), None)
    names = class_names(place.tool, read, file)
    samples = sampled(place, folder, (images or folder).absolute() / pattern, names)
    seen = look_at([sample for each in samples.values() for sample in each], place.tool)
    rows = rows_of(names, seen)
    where = {"annotations": f"annotations/{place.annotations}".removesuffix("/.")}
    where["images"] = f"{'images' if images else 'annotations'}/{pattern}".rstrip("/")
    split_note = "by the export"
    if not place.splits:
        division, samples = divided(samples["all"], root)
        where["split"] = f"{{val: {division.val:g}, group: {json.dumps(division.group)}}}"
        split_note = "proposed: drawn by the hash of their group, so that a new image moves no other"
    splits = {split: [Pair(each.image, each.mask) for each in every] for split, every in samples.items()}
    note = f"names from {file.name if file else 'the annotations'}; label 0 is what no region covers"
    return Source(
        images=images,
        masks=folder,
        splits=splits,
        split_note=split_note,
        size=seen.sizes.most_common(1)[0][0],
        classes=[row.line for row in rows],
        class_note=note,
        masks_are="labels",
        ignore=[row.label for row in rows if row.is_ignored],
        report="\n".join(look.report(Found(folder, folder, splits, split_note, []), seen, note, rows)),
        format=place.tool,
        where=where,
    )


def sampled(place: Place, folder: Path, images: Path, names: Mapping[int, str]) -> dict[str, list[RawSample]]:
    """The samples of each split, or of `all`, as `prepare` will read them. Raises DataError as that does."""
    with tempfile.TemporaryDirectory() as scratch:
        (listing := Path(scratch, "classes.txt")).write_text("".join(f"{key} {names[key]}\n" for key in names), "utf-8")
        options = FolderOptions(annotations=place.annotations, images=str(images), classes=str(listing))
        config = DatasetConfig(title="", format=place.tool, archives=(), images={}, allow_subset=True, folder=options)
        return annotated.scan(folder, config, tuple(place.splits) or ("all",)).samples


def divided(samples: Sequence[RawSample], root: Path) -> tuple[SplitOptions, dict[str, list[RawSample]]]:
    """A proposal how to divide `samples`, and what comes of it."""
    ids = [sample.id for sample in samples]
    division = proposed(ids)
    chosen = {split: drawn(ids, division, split, str(root)) for split in ("train", "val")}
    return division, {split: [each for each in samples if each.id in chosen[split]] for split in chosen}


def rows_of(names: Mapping[int, str], seen: look.Seen) -> list[look.Row]:
    """The classes with what was counted of each."""
    total = seen.pixels.total()
    return [
        look.Row(
            label, name, None, bool(label and look.NO_LABEL.search(name)), seen.pixels[value] / total, seen.masks[value]
        )
        for label, name in names.items()
        for value in [look.Value(label, None)]
    ]


def mask_folder(root: Path) -> Path | None:
    """The folder of an export that has masks: of CVAT and VOC, or of Roboflow, whose masks are beside the images."""
    if (root / "SegmentationClass").is_dir():
        return root / "SegmentationClass"
    is_mask = root.is_dir() and any(root.rglob("_classes.csv")) and any(root.rglob("*_mask.png"))
    return root if is_mask else None


def find_place(root: Path, folder: Path) -> Place:
    """The annotations in `root`. Raises DataError when there are none, those of several tools, or none of ours."""
    _, others = find_pictures(folder) if root.is_dir() else ([], [folder / root.name])
    found: dict[str, set[str]] = defaultdict(set)
    for path in others:
        tool, file = tool_of(path), path.relative_to(folder)
        if tool in ("labelme", "yolo"):  # a file for each image: up to the folder that names the split
            parts = file.parent.parts
            ends = [end for end, part in enumerate(parts, start=1) if part == "labels" or SPLIT.search(part)]
            found[tool].add("/".join(parts[: max(ends, default=0)]) or ".")
        elif tool:
            found[tool].add(file.as_posix())
    if len(found) != 1:
        known = "; ".join(FORMS.values())
        what = f"annotations of several tools, {' and '.join(sorted(found))}" if found else "no annotations here"
        brush = any(BRUSH.match(path.name) for path in folder.rglob("task-*"))
        hint = ", for brushes of Label Studio by its converter" if brush else ""
        raise DataError(f"{root}: {what}. Name the folder or the file of one export: {known}; or masks{hint}")
    tool = next(iter(found))
    places = sorted(found[tool])
    if tool == "coco" and (instances := [place for place in places if "instances" in place]):
        places = instances  # beside captions and key points, as COCO has them
    words = {named[-1] for place in places if (named := SPLIT.findall(place))}
    patterns = {SPLIT.sub("{split}", place) for place in places}
    if len(places) == 1:
        return Place(tool, places[0], ())
    if len(words) < len(places) or len(patterns) > 1 or not any(word.lower().startswith("train") for word in words):
        if tool in ("labelme", "yolo"):
            return Place(tool, ".", ())
        raise DataError(
            f"{root}: {len(places)} annotation files, such as {places[0]} and {places[1]}. Name one of them"
        )
    return Place(tool, patterns.pop(), sorted(words, key=lambda word: ("trvate".find(word[:2].lower()), word)))


def tool_of(path: Path) -> str:
    """The tool that wrote a file; "" for none. Raises DataError for what is like an export but cannot be used."""
    if path.suffix == ".xml":
        with path.open("rb") as file:
            return "cvat" if b"<annotations" in file.read(PEEK) else ""
    if path.suffix == ".txt":
        with path.open(encoding="utf-8", errors="replace") as text:
            return "yolo" if YOLO_LINE.fullmatch(text.readline(PEEK).strip()) else ""
    if path.suffix != ".json":
        return ""
    content = path.read_bytes()
    if content.lstrip()[:1] == b"[" and b'"data"' in content:
        raise DataError(f"{path}: the JSON of Label Studio. Export COCO or YOLO with images there instead")
    return (
        "labelme"
        if b'"imagePath"' in content
        else "coco"
        if b'"categories"' in content and b'"images"' in content
        else ""
    )


def image_pattern(place: Place, read: Mapping[str, Export], base: Path) -> str:
    """Where below `base` the first image of each split is, as a pattern; "" if it must be searched for."""
    own = place.annotations if place.tool in ("labelme", "yolo") else str(Path(place.annotations).parent)
    usual = ("images/{split}", "{split}/images", "{split}", "images", "")
    for pattern in (re.sub(r"\blabels\b", "images", own), own, *usual):
        if (place.splits or "{split}" not in pattern) and all(
            is_picture(base / filled(pattern, split) / export.images[0].file)
            for split, export in read.items()
            if export.images
        ):
            return "" if pattern == "." else pattern
    return ""


def is_picture(path: Path) -> bool:
    """Whether `path` is a picture, with any ending if it has none."""
    return any(Path(f"{path}{ending}").is_file() for each in ENDINGS for ending in ("", each, each.upper()))


def filled(pattern: str, split: str) -> str:
    """`pattern` for a split."""
    return pattern.replace("{split}", split)


def class_names(tool: str, read: Mapping[str, Export], file: Path | None) -> dict[int, str]:
    """Label -> name: 0 for what no region covers, then the classes as listed, then as the annotations name them."""
    listed = [each.name for each in read_list(file)] if file else []
    used = list(dict.fromkeys(name for export in read.values() for name in export.used_names()))
    if tool == "yolo":
        most = max((int(name) for name in used if name.isdecimal()), default=-1)
        if listed and most >= len(listed):
            raise DataError(f"{file}: {len(listed)} classes, but regions have class {most}, counted from 0. Add them")
        names = listed or [f"class_{number}" for number in range(most + 1)]
    else:
        names = list(dict.fromkeys([*listed, *used]))
    background = next((name for name in names if BACKGROUND.fullmatch(name)), "background")
    if tool != "yolo":
        names = [name for name in names if name != background]
    elif background in names:
        background = "no region"
    if not 1 <= len(names) < look.MOST:
        raise DataError(f"{len(names)} classes, expected 1 to {look.MOST - 1}")
    return dict(enumerate([background, *names]))


def look_at(samples: Sequence[RawSample], tool: str) -> look.Seen:
    """Draw every mask, and count its pixels by label."""

    def draw(sample: RawSample) -> look.Mask:
        ids, pixels, _ = annotated.load_mask(sample)
        counts = {look.Value(label, None): count for label, count in enumerate(pixels.tolist()) if count}
        return FORMS[tool], (ids.shape[0], ids.shape[1]), counts

    return look.look(draw, samples, "drawing")
