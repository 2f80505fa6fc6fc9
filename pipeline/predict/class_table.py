"""The classes that a network predicts, and a table with the pixels of each."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import whole

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes

Size = tuple[int, int]  # height and width
Tiling = tuple[Size, Size]  # window and stride
AddRows = Callable[[tuple[Any, ...], "Bytes"], None]  # the values of the first columns, and the classes of an image


def labels_of(model: "Segmenter", images: "list[Bytes]", tiling: Tiling | None) -> "list[Bytes]":
    """The class indices of images of one size."""
    import numpy as np

    if tiling:
        return [model.predict_tiles(image, *tiling) for image in images]
    return list(model.predict_batch(np.stack(images)))


@contextmanager
def class_table(path: Path, keys: tuple[str, ...], classes: tuple[str, ...]) -> Iterator[AddRows]:
    """A CSV file with the pixels of each class that occurs; it is put at `path` when the block ends."""
    import numpy as np

    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*keys, "class", "index", "pixels", "share"))

        def add(key: tuple[Any, ...], mask: "Bytes") -> None:
            counts = np.bincount(mask.reshape(-1), minlength=len(classes))
            for index in np.flatnonzero(counts):
                writer.writerow((*key, classes[index], index, counts[index], f"{counts[index] / mask.size:.6f}"))

        yield add
