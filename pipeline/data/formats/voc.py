"""PASCAL VOC 2012, with the masks of SBD for the `trainaug` split (RECIPE: (VOC train + SBD) minus VOC val)."""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from deeplab.decode import read_content
from deeplab.errors import DataError
from deeplab.store import IGNORE, Bytes, Color
from pipeline.data.formats.base import Layout, Mask, RawSample, image_of, image_size, read_ids, require
from pipeline.data.formats.masks import label_table, read_labels, to_train_ids
from pipeline.settings.params import pick
from pipeline.settings.schema import DatasetConfig

CLASSES: Final = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# The number of images of a complete split, and the SHA-256 of its sorted list with one id per line.
PUBLISHED: Final = {
    "train": (1464, "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20"),
    "trainaug": (10582, "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"),
    "val": (1449, "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"),
}

TABLE: Final = label_table({label: label for label in (*range(len(CLASSES)), IGNORE)})

size, load_image = image_size, image_of


def scan(raw: Path, config: DatasetConfig, splits: tuple[str, ...]) -> Layout:
    """The splits in the lists of VOC and SBD. Raises DataError for a complete list that is not the published one."""
    samples: dict[str, list[RawSample]] = {}
    for split in splits:
        pick(PUBLISHED, split, "splits of the format voc")
        samples[split] = trainaug(raw) if split == "trainaug" else voc_split(raw, split)
        if not config.allow_subset:
            check_list(raw, split, [sample.id for sample in samples[split]])
    return Layout(classes=CLASSES, palette=colormap(len(CLASSES)), samples=samples)


def load_mask(sample: RawSample) -> Mask:
    """The mask (H, W): VOC's PNG or SBD's .mat."""
    labels = read_sbd(sample.mask) if sample.mask.suffix == ".mat" else read_labels(sample.mask)
    return to_train_ids(labels, TABLE, sample.mask)


def voc_split(raw: Path, split: str) -> list[RawSample]:
    """VOC's own train or val."""
    voc = raw / "VOCdevkit/VOC2012"
    ids = read_ids(require(voc / f"ImageSets/Segmentation/{split}.txt", raw, "VOCdevkit"))
    return [
        RawSample(id=name, image=voc / f"JPEGImages/{name}.jpg", mask=voc / f"SegmentationClass/{name}.png")
        for name in sorted(ids)
    ]


def trainaug(raw: Path) -> list[RawSample]:
    """(VOC train + SBD train + SBD val) minus VOC val. Images of VOC train keep VOC's masks with ignored borders."""
    sbd = raw / "benchmark_RELEASE/dataset"
    lists = [require(sbd / f"{split}.txt", raw, "VOCdevkit and benchmark_RELEASE") for split in ("train", "val")]
    held_out = {sample.id for sample in voc_split(raw, "val")}
    samples = {
        name: RawSample(id=name, image=sbd / f"img/{name}.jpg", mask=sbd / f"cls/{name}.mat")
        for path in lists
        for name in read_ids(path)
    }
    samples |= {sample.id: sample for sample in voc_split(raw, "train")}
    return [samples[name] for name in sorted(samples.keys() - held_out)]


def check_list(raw: Path, split: str, ids: list[str]) -> None:
    """Compare the sorted ids of a complete split with the published list. Raises DataError if they differ."""
    count, expected = PUBLISHED[split]
    found = hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()
    if len(ids) == count and found != expected:
        raise DataError(
            f"{raw}: as many {split} images as published, but other ones: their list has sha256 {found}, "
            f"expected {expected}. Use the lists of the official archives."
        )


def read_sbd(path: Path) -> Bytes:
    """The labels (H, W) in one of SBD's cls/*.mat."""
    import io

    from scipy.io import loadmat

    content = read_content(path)
    try:
        labels = loadmat(io.BytesIO(content))["GTcls"][0]["Segmentation"][0]
    except Exception as error:  # noqa: BLE001  a broken file makes loadmat raise nearly anything
        raise DataError(f"{path}: not a readable SBD annotation ({type(error).__name__})") from None
    if not (isinstance(labels, np.ndarray) and labels.dtype == np.uint8 and labels.ndim == 2):
        raise DataError(f"{path}: GTcls.Segmentation is not a mask of 8-bit labels")
    return labels


def colormap(count: int) -> tuple[Color, ...]:
    """VOC's palette: the lowest three bits of a label are the top bits of red, green and blue, and so on upwards."""
    return tuple((channel(label), channel(label >> 1), channel(label >> 2)) for label in range(count))


def channel(label: int) -> int:
    """Bits 0, 3 and 6 of `label` as the bits 7, 6 and 5 of a colour channel."""
    return sum((label >> 3 * bit & 1) << 7 - bit for bit in range(3))
