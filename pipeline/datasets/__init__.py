"""The raw formats: one module each, with `scan` and `load` (see layout.Format)."""

from typing import Final

from pipeline.datasets import ade20k, cityscapes, folder, shapes, voc
from pipeline.datasets.layout import Format

FORMATS: Final[dict[str, Format]] = {
    "voc": voc,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "folder": folder,
    "shapes": shapes,
}
