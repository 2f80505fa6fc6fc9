"""The raw formats: one module each, with the functions of base.Format."""

from typing import Final

from pipeline.data.formats import ade20k, annotations, cityscapes, folder, shapes, voc
from pipeline.data.formats.base import Format

FORMATS: Final[dict[str, Format]] = {
    "voc": voc,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "folder": folder,
    "shapes": shapes,
    "coco": annotations,
    "cvat": annotations,
    "labelme": annotations,
    "yolo": annotations,
}
