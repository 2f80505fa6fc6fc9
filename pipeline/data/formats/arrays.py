"""Masks as arrays of numpy."""

import io
from pathlib import Path

import numpy as np

from deeplab.decode import read_content
from deeplab.errors import DataError, LabelError, MaskModeError
from deeplab.store import Bytes

ENDING = ".npy"


def read_array(path: Path) -> Bytes:
    """The labels (H, W) in a file .npy of the shape (H, W), (H, W, 1) or (1, H, W).

    Raises MaskModeError for another shape, LabelError for a number that is no label.
    """
    content = read_content(path)
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable array of numpy, or cut short ({type(error).__name__})") from None
    flat = values.squeeze() if isinstance(values, np.ndarray) and values.ndim == 3 and 1 in values.shape else values
    if getattr(flat, "ndim", 0) != 2 or flat.dtype.kind not in "biuf" or not flat.size:
        shape = f"{getattr(flat, 'shape', 'with names')} of {getattr(flat, 'dtype', 'arrays')}"
        raise MaskModeError(f"{path}: an array {shape}, expected (height, width) of numbers", (0, 0))
    with np.errstate(invalid="ignore"):  # of NaN
        labels: Bytes = flat.astype(np.uint8)
    if (odd := labels != flat).any():
        row, column = divmod(int(odd.argmax()), flat.shape[1])
        raise LabelError(
            f"{path}: label {flat[row, column]} at row {row}, column {column} is not a whole number from 0 to 255 "
            f"({int(odd.sum()):,} such pixels)",
            (flat.shape[0], flat.shape[1]),
        )
    return labels
