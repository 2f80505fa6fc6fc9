"""The classes that a network predicts, and a table with the pixels of each."""

import csv
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import whole

if TYPE_CHECKING:
    from deeplab.segmenter import Segmenter
    from deeplab.store import Bytes

Size = tuple[int, int]  # height and width
Tiling = tuple[Size, Size]  # window and stride


def labels_of(model: "Segmenter", images: "list[Bytes]", tiling: Tiling | None) -> "list[Bytes]":
    """The class indices of images of one size."""
    import numpy as np

    if tiling:
        return [model.predict_tiles(image, *tiling) for image in images]
    return list(model.predict_batch(np.stack(images)))


class ClassTable:
    """A CSV file with the pixels of each class that occurs; it is put at `path` when the block ends."""

    def __init__(self, path: Path, keys: tuple[str, ...], classes: tuple[str, ...]) -> None:
        self.path, self.keys, self.classes = path, keys, classes

    def __enter__(self) -> "ClassTable":
        with ExitStack() as stack:
            partial = stack.enter_context(whole(self.path))
            file = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
            self.writer = csv.writer(file, lineterminator="\n")
            self.writer.writerow((*self.keys, "class", "index", "pixels", "share"))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def add(self, key: tuple[object, ...], mask: "Bytes") -> None:
        """Add the classes of one image; `key` has the values of the first columns."""
        import numpy as np

        counts = np.bincount(mask.reshape(-1), minlength=len(self.classes))
        for index in np.flatnonzero(counts):
            share = counts[index] / mask.size
            self.writer.writerow((*key, self.classes[index], index, counts[index], f"{share:.6f}"))
