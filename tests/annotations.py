"""Exports of labelling tools, made small: two images of 32x24 with the same regions in each form."""

import base64
import io
import json

import numpy as np
from PIL import Image

from tests.raw import write_image

SIZE = (24, 32)  # height, width
BALL = [4, 4, 14, 4, 14, 12, 4, 12]  # x, y of each corner
CUP = [10, 8, 30.5, 8, 20, 22]
REGIONS = {"a1": [("ball", BALL), ("cup", CUP)], "a2": [("cup", CUP), ("ball", BALL)]}
NAMES = ["ball", "cup"]


def write_images(folder, names=REGIONS):
    for name in names:
        write_image(folder / f"{name}.jpg", SIZE)


def coco(regions=REGIONS, prefix=""):
    """The content of a COCO file."""
    images = [{"id": i, "file_name": f"{prefix}{n}.jpg", "height": 24, "width": 32} for i, n in enumerate(regions)]
    pairs = [(i, name, flat) for i, each in enumerate(regions.values()) for name, flat in each]
    return {
        "images": images,
        "categories": [{"id": 7, "name": "ball"}, {"id": 9, "name": "cup"}],
        "annotations": [
            {"id": k, "image_id": i, "category_id": {"ball": 7, "cup": 9}[name], "segmentation": [flat], "iscrowd": 0}
            for k, (i, name, flat) in enumerate(pairs)
        ],
    }


def labelme(name, regions):
    """The content of a LabelMe file."""
    shapes = [
        {"label": label, "points": np.reshape(flat, (-1, 2)).tolist(), "shape_type": "polygon"}
        for label, flat in regions
    ]
    return {"imagePath": f"{name}.jpg", "imageHeight": 24, "imageWidth": 32, "imageData": None, "shapes": shapes}


def png(mask):
    """A mask as LabelMe keeps it."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def cvat(images):
    """A file of CVAT for images; `images` has the elements of each."""
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    body = "".join(
        f'<image id="{i}" name="{n}.jpg" width="32" height="24">{each}</image>'
        for i, (n, each) in enumerate(images.items())
    )
    return f'<?xml version="1.0"?><annotations><meta><job><labels>{labels}</labels></job></meta>{body}</annotations>'


def cvat_polygon(label, flat, z=0):
    points = ";".join(f"{x},{y}" for x, y in np.reshape(flat, (-1, 2)))
    return f'<polygon label="{label}" points="{points}" z_order="{z}"/>'


def yolo(regions):
    """The content of a list of YOLO."""
    lines = [
        f"{NAMES.index(n)} " + " ".join(map(repr, (np.reshape(f, (-1, 2)) / (32, 24)).ravel().tolist()))
        for n, f in regions
    ]
    return "\n".join(lines) + "\n"


def write_export(root, tool, regions=REGIONS):
    """An undivided export: images in root/images, or beside their file for LabelMe."""
    root.mkdir(parents=True, exist_ok=True)
    write_images(root if tool == "labelme" else root / "images", regions)
    if tool == "coco":
        (root / "result.json").write_text(json.dumps(coco(regions)))
    if tool == "cvat":
        images = {name: "".join(cvat_polygon(*region) for region in each) for name, each in regions.items()}
        (root / "annotations.xml").write_text(cvat(images))
    if tool == "labelme":
        for name, each in regions.items():
            (root / f"{name}.json").write_text(json.dumps(labelme(name, each)))
    if tool == "yolo":
        (root / "labels").mkdir(exist_ok=True)
        (root / "data.yaml").write_text("nc: 2\nnames: [ball, cup]\n")
        for name, each in regions.items():
            (root / f"labels/{name}.txt").write_text(yolo(each))
    return root
