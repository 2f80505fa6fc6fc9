"""ADE20k, the 150 classes of the scene parsing challenge 2016."""

from pathlib import Path
from typing import Final

from deeplab.errors import DataError
from deeplab.store import IGNORE, Color
from pipeline.data.formats.base import Layout, Mask, RawSample, image_of, image_size, pair_by_name, require
from pipeline.data.formats.masks import label_table, read_labels, to_train_ids
from pipeline.settings.params import pick
from pipeline.settings.schema import DatasetConfig

HOLDS: Final = "ADEChallengeData2016"
FOLDERS: Final = {"train": "training", "val": "validation"}
CLASS_COUNT: Final = 150
TABLE: Final = label_table({0: IGNORE} | {label: label - 1 for label in range(1, CLASS_COUNT + 1)})  # 0 is "other"

size, load_image = image_size, image_of


def scan(raw: Path, config: DatasetConfig, splits: tuple[str, ...]) -> Layout:  # noqa: ARG001
    """The folders `training` and `validation` as the splits train and val."""
    root = raw / HOLDS
    samples: dict[str, list[RawSample]] = {}
    for split in splits:
        folder = pick(FOLDERS, split, "splits of the format ade20k")
        images = require(root / "images" / folder, raw, HOLDS)
        masks = require(root / "annotations" / folder, raw, HOLDS)
        samples[split] = pair_by_name(images, masks, "*", ".jpg", ".png")
    classes = read_names(require(root / "objectInfo150.txt", raw, HOLDS))
    return Layout(classes=classes, palette=official_palette(), samples=samples)


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W)."""
    return to_train_ids(read_labels(sample.mask), TABLE, sample.mask)


def read_names(path: Path) -> tuple[str, ...]:
    """The first synonym of each class in objectInfo150.txt (columns Idx, Ratio, Train, Val, Name, split by tabs)."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        names = {int(row[0]): row[4].split(",")[0].strip() for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a readable table of classes ({error})") from None
    if list(names) != list(range(1, CLASS_COUNT + 1)):
        raise DataError(f"{path}: expected the classes 1 to {CLASS_COUNT}, one per line, in order; got {len(names)}")
    return tuple(names.values())


def official_palette() -> tuple[Color, ...]:
    """The challenge's colours."""
    return tuple((red, green, blue) for red, green, blue in map(bytes.fromhex, PALETTE.split()))


PALETTE: Final = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
