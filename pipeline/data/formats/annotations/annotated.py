"""Your own images with the annotations of a labelling tool, drawn as masks: docs/bring-your-own-images.md.

The pixels of a region are those that pycocotools gives it. Regions are drawn in the order of the file (of CVAT by
z_order), each over those before it. Crowds of COCO are drawn below all others and ignored. The rest has label 0.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplab.decode import ENDINGS, orientation, read_size
from deeplab.errors import DataError, SizeError
from deeplab.histogram import histogram
from deeplab.store import IGNORE
from pipeline.data.find import find_pictures
from pipeline.data.formats.annotations.regions import Listed, expand, filled
from pipeline.data.formats.annotations.tools import FORMS, READERS
from pipeline.data.formats.base import Layout, Mask, RawSample, grouped, image_of, image_size
from pipeline.data.formats.folder import Classes, default_palette, numbered, read_classes
from pipeline.data.formats.masks import LabelTable
from pipeline.data.formats.split import drawn
from pipeline.settings.params import PARAMS
from pipeline.settings.schema import DatasetConfig

Images = dict[str, tuple[Path, Listed]]  # id -> the image, and what is in it

TRANSPOSED = 4  # EXIF orientations above it exchange the sides

size, load_image = image_size, image_of


@dataclass(frozen=True, kw_only=True)
class AnnotatedSample(RawSample):
    """A sample whose mask is drawn; `mask` is the file that the regions are from, or their folder."""

    listed: Listed
    labels: dict[str, int]  # of the names of the regions
    table: LabelTable


def scan(raw: Path, config: DatasetConfig, splits: tuple[str, ...]) -> Layout:
    """The images of each split that its annotations list. Raises DataError with all that is wrong with them."""
    options = config.folder
    assert options
    assert options.annotations
    if not raw.is_dir():
        raise DataError(f"{raw}: not found. Put or link the folder with your images and annotations there.")
    classes = read_classes(raw / options.classes)
    kept, table = numbered(options, classes)
    if table[0] < 0:
        raise DataError(f"{classes.path}: no label 0, which pixels without a region get. Add it, or ignore: [0].")
    labels = labels_of(config.format, classes)
    problems: list[str] = []
    read: dict[tuple[Path, Path], Images] = {}  # without {split} all splits are in one place
    samples: dict[str, list[RawSample]] = {}
    for split in splits:
        source, images = (raw / str(part).replace("{split}", split) for part in (options.annotations, options.images))
        if (source, images) not in read:
            base = raw / str(options.images).partition("{split}")[0]
            read[source, images] = list_images(config.format, source, images, base, problems)
        listed = read[source, images]
        chosen = drawn(listed, options.split, split, str(raw)) if options.split else listed.keys()
        samples[split] = [
            AnnotatedSample(id=name, image=image, mask=source, listed=each, labels=labels, table=table)
            for name, (image, each) in sorted(listed.items())
            if name in chosen
        ]
    for each in (found for every in read.values() for _, found in every.values()):
        unknown = {region.name for region in each.regions} - labels.keys()
        problems += [f"{each.place}: the class {name!r} is not in {classes.path}. Add it" for name in sorted(unknown)]
    refuse(raw, problems)
    palette = tuple(classes.colors[label] for label in kept) if classes.colors else default_palette(len(kept))
    if not classes.colors and kept[0] == 0:
        palette = ((0, 0, 0), *palette[1:])  # the background as most tools show it
    return Layout(classes=tuple(classes.names[label] for label in kept), palette=palette, samples=samples)


def refuse(raw: Path, problems: Sequence[str]) -> None:
    """Raise DataError for `problems`, if there are any."""
    if problems:
        raise DataError("\n  ".join([f"{raw}: {len(problems)} problems in the annotations:", *grouped(problems)]))


def labels_of(tool: str, classes: Classes) -> dict[str, int]:
    """The label of each name that regions have. YOLO counts classes from 0, which is label 1."""
    if tool == "yolo":
        return {str(label - 1): label for label in classes.names if label}
    return {name: label for label, name in classes.names.items()}


def list_images(tool: str, source: Path, folder: Path, base: Path, problems: list[str]) -> Images:
    """The images in `folder` that the annotations in `source` list, by their path below `base`, without its ending.

    Adds to `problems`, and prints how many images of the folder no annotation lists.
    """
    for path, key in ((source, "annotations"), (folder, "images")):
        if not path.exists():
            raise DataError(f"{path}: not found. It is named by folder.{key} in {PARAMS}.")
    export = READERS[tool](source)
    problems += export.problems
    if not export.images and not export.problems:
        problems.append(f"{source}: lists no image. Is this an export of {FORMS[tool]}?")
    pictures, _ = find_pictures(folder)
    known = set(pictures)
    by_path: dict[str, list[Path]] = defaultdict(list)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        by_path[picture.relative_to(folder).with_suffix("").as_posix()].append(picture)
        by_name[picture.stem].append(picture)
    listed: Images = {}
    for each in export.images:
        file = Path(each.file.replace("\\", "/"))
        stem = file.with_suffix("") if file.suffix.lower() in ENDINGS else file
        found = [folder / file] if folder / file in known else by_path[stem.as_posix()] or by_name[stem.name]
        if len(found) != 1:
            text = f"{len(found)} images have this name, such as {found[0]}" if found else f"no such image in {folder}"
            problems.append(f"{each.place}: {file.name!r}: {text}")
            continue
        name = found[0].relative_to(base).with_suffix("").as_posix()
        if name in listed:
            problems.append(f"{each.place}: {file.name!r} is also listed by {listed[name][1].place}")
        listed[name] = found[0], each
    if left := sorted(known - {image for image, _ in listed.values()}):
        print(f"{folder}: {len(left)} images are in no annotation and left out, such as {left[0]}")
    return listed


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W) that the regions draw. Raises SizeError when the export lists another size than the image has."""
    from pycocotools import mask

    assert isinstance(sample, AnnotatedSample)
    stored, turned = read_size(sample.image), orientation(sample.image) > TRANSPOSED
    height, width = shape = stored[::-1] if turned else stored
    listed = sample.listed.size or shape
    if listed != shape:
        note = " when turned upright by its EXIF orientation" if turned else ""
        raise SizeError(f"{sample.listed.place}: {listed[1]}x{listed[0]}, but {sample.image} is {width}x{height}{note}")
    scale = (1, 1) if sample.listed.size else (width, height)
    ids = np.full(shape, sample.table[0], np.uint8)
    for region in sorted(sample.listed.regions, key=lambda each: (not each.is_crowd, each.order)):
        runs = region.runs
        if not runs:
            polygons = [(np.reshape(each, (-1, 2)) * scale).ravel().tolist() for each in region.polygons]
            runs = expand(mask.merge(mask.frPyObjects(polygons, *shape))["counts"].decode())
        ids[filled(runs, shape)] = IGNORE if region.is_crowd else sample.table[sample.labels[region.name]]
    return Mask(ids, histogram(ids))
