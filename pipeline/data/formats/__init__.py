"""The raw formats: one module each, with the functions of base.Format."""

from typing import Final

from pipeline.data.formats import ade20k, cityscapes, folder, shapes, voc
from pipeline.data.formats.annotations import annotated
from pipeline.data.formats.base import Format

FORMATS: Final[dict[str, Format]] = {
    "voc": voc,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "folder": folder,
    "shapes": shapes,
    "coco": annotated,
    "cvat": annotated,
    "labelme": annotated,
    "yolo": annotated,
}
