"""Raw folders of the official layouts, small enough for a test."""

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from pipeline.settings.schema import DatasetConfig


def dataset_config(kind, images, allow_subset=False, **options):
    """The settings of a data set whose published numbers are `images`."""
    settings = {"archives": (), **options}
    return DatasetConfig(title="A data set", format=kind, images=images, allow_subset=allow_subset, **settings)


def write_voc(raw, train=("a1", "a2"), val=("b1",), sbd_train=("a1", "c1"), sbd_val=("b1", "c2")):
    """VOC masks hold classes 1 and 2 and the ignored border, SBD's hold class 3."""
    voc, sbd = raw / "VOCdevkit/VOC2012", raw / "benchmark_RELEASE/dataset"
    write_ids(voc / "ImageSets/Segmentation/train.txt", train)
    write_ids(voc / "ImageSets/Segmentation/val.txt", val)
    for name in (*train, *val):
        write_image(voc / f"JPEGImages/{name}.jpg")
        write_palette_mask(voc / f"SegmentationClass/{name}.png", labels((0, 1, 2, 255)))
    write_ids(sbd / "train.txt", sbd_train)
    write_ids(sbd / "val.txt", sbd_val)
    for name in (*sbd_train, *sbd_val):
        write_image(sbd / f"img/{name}.jpg")
        write_sbd_mask(sbd / f"cls/{name}.mat", labels((0, 3)))


def write_ade20k(raw, train=2, val=1):
    """Masks hold the labels 0, 1 and 150."""
    root = raw / "ADEChallengeData2016"
    for split, folder, count in (("train", "training", train), ("val", "validation", val)):
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for index in range(count):
            write_image(root / f"images/{folder}/ADE_{split}_{index:08}.jpg")
            write_grey_mask(root / f"annotations/{folder}/ADE_{split}_{index:08}.png", labels((0, 1, 150)))
    rows = [f"{index}\t0.1\t2\t3\tname {index}, synonym" for index in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))


def write_cityscapes(raw):
    """Masks hold 0 (unlabeled), 7 (road) and 33 (bicycle); two cities in train, one in val."""
    for city in ("train/bonn/bonn_0", "train/aachen/aachen_0", "val/ulm/ulm_0"):
        write_image(raw / f"leftImg8bit/{city}_leftImg8bit.png")
        write_grey_mask(raw / f"gtFine/{city}_gtFine_labelIds.png", labels((0, 7, 33)))


def labels(values, size=(24, 36)):
    """A mask of equal columns, one for each of `values`."""
    return np.resize(np.repeat(np.array(values, np.uint8), size[1] // len(values)), size)


def write_ids(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in ids))


def write_image(path, size=(24, 36), color=(200, 100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((*size, 3), color[::-1], np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def write_palette_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(path)


def write_grey_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def write_sbd_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Segmentation": mask}})
