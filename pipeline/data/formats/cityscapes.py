"""Cityscapes with fine annotations. The 19 train ids are computed from the labelIds in the archive."""

from pathlib import Path
from typing import Final

from deeplab.store import IGNORE, Color
from pipeline.data.formats.base import Layout, Mask, RawSample, image_of, image_size, pair_by_name, require
from pipeline.data.formats.masks import label_table, read_labels, to_train_ids
from pipeline.settings.params import pick
from pipeline.settings.schema import DatasetConfig

# name, label id in the archive, colour; in the order of the train ids
CLASSES: Final[tuple[tuple[str, int, Color], ...]] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
LABEL_COUNT: Final = 34  # larger labels are refused: train ids in a file of this name would pass as other classes

TABLE: Final = label_table(
    dict.fromkeys(range(LABEL_COUNT), IGNORE) | {label: train_id for train_id, (_, label, _) in enumerate(CLASSES)}
)
HOLDS: Final = "leftImg8bit and gtFine"
SPLITS: Final = ("train", "val")  # the labels of test are not published

size, load_image = image_size, image_of


def scan(raw: Path, config: DatasetConfig, splits: tuple[str, ...]) -> Layout:  # noqa: ARG001
    """All cities of each split."""
    samples: dict[str, list[RawSample]] = {}
    for split in splits:
        pick(dict.fromkeys(SPLITS), split, "splits of the format cityscapes")
        images = require(raw / "leftImg8bit" / split, raw, HOLDS)
        masks = require(raw / "gtFine" / split, raw, HOLDS)
        samples[split] = pair_by_name(images, masks, "*/*", "_leftImg8bit.png", "_gtFine_labelIds.png")
    names, _, palette = zip(*CLASSES, strict=True)
    return Layout(classes=names, palette=palette, samples=samples)


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W)."""
    return to_train_ids(read_labels(sample.mask), TABLE, sample.mask)
