"""Masks as arrays of numpy."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab.decode import read_content
from deeplab.errors import DataError
from deeplab.store import Bytes
from pipeline.data.formats.masks import labels_in

ENDING = ".npy"


def read_array(path: Path) -> Bytes:
    """The labels (H, W) in a file .npy of the shape (H, W), (H, W, 1) or (1, H, W).

    Raises DataError for another content, LabelError for a number that is no label.
    """
    content = read_content(path)
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable array of numpy, or cut short ({type(error).__name__})") from None
    flat = values.squeeze() if isinstance(values, np.ndarray) and values.ndim == 3 and 1 in values.shape else values
    if getattr(flat, "ndim", 0) != 2 or flat.dtype.kind not in "biuf" or not flat.size or not np.isfinite(flat).all():
        shape = f"{getattr(flat, 'shape', 'with names')} of {getattr(flat, 'dtype', 'arrays')}"
        raise DataError(f"{path}: an array {shape}, expected (height, width) of finite numbers")
    return labels_in(path, Image.fromarray(flat.astype(np.float32)))
