"""How many pixels of a mask have each label."""

import numpy as np
from numpy.typing import NDArray


def histogram(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The number of pixels with each of the 256 values, (256,). Counts runs, of which a mask has far fewer."""
    flat = labels.reshape(-1)
    last = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)  # the end of each run
    return np.bincount(flat[last], weights=np.diff(last, prepend=-1), minlength=256).astype(np.int64)
