"""The classes that a network predicts, and a table with the pixels of each."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import readable, whole

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
def class_table(path: Path, keys: tuple[str, ...], model: "Segmenter") -> Iterator[AddRows]:
    """A CSV file with the pixels of each class that occurs, and its colour; it is put at `path` when the block ends.

    Rows that an earlier call wrote there for other images stay.
    """
    import numpy as np

    head = (*keys, "class", "index", "color", "pixels", "share")
    before = read_rows(path, head)
    added: set[str] = set()
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)

        def add(key: tuple[Any, ...], mask: "Bytes") -> None:
            added.add(str(key[0]))
            counts = np.bincount(mask.reshape(-1), minlength=len(model.classes))
            for index in np.flatnonzero(counts):
                color = "#{:02x}{:02x}{:02x}".format(*model.palette[index])
                share = f"{counts[index] / mask.size:.6f}"
                writer.writerow((*key, model.classes[index], index, color, counts[index], share))

        yield add
        writer.writerows(row for row in before if row[0] not in added)


def read_rows(path: Path, head: tuple[str, ...]) -> list[list[str]]:
    """The rows of a table with the columns `head`, none where there is none. Raises DataError for a damaged table.

    An editor may have added empty lines, or the mark that it puts before UTF-8.
    """
    if head[0] != "image" or not path.exists():  # frames of another video have the same numbers
        return []
    with readable(path, "Move it away, or name another --out."), path.open(encoding="utf-8-sig", newline="") as file:
        first, *rows = [row for row in csv.reader(file) if row] or [[]]
    return rows if first == list(head) else []
