"""The confusion matrix of each image, and a file for them: the input of intervals and of the page.

Only nonzero entries are kept, so 2000 images with 150 classes take a few megabytes. A file holds every seed and
protocol of a cell, as plain arrays of an `.npz` archive, without pickle:

    images                       (N,) the ids of the images, in the order of the split
    <seed>/<protocol>/images     (N,) the same, where a run is evaluated on other images than the first one
    classes                      (K,) their names
    <seed>/<protocol>/image      (M,) int32, place in `images`
    <seed>/<protocol>/truth      (M,) uint8, class in the mask
    <seed>/<protocol>/predicted  (M,) uint8, class that was predicted
    <seed>/<protocol>/pixels     (M,) int64, how many, at least 1

The four columns are ordered by image, truth and prediction. Equal counts give equal bytes.
"""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeplab.errors import DataError, naming
from deeplab.metrics import Matrix

COLUMNS = ("image", "truth", "predicted", "pixels")
MAX_BYTES = 1 << 31  # of an unpacked file: a hundred times the size for 2000 images with 150 classes

# What reading a damaged file raises.
BROKEN = (
    OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
    OverflowError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip

Run = tuple[int, str]  # seed, name of the protocol


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """The nonzero entries of the confusion matrix of each image; see the head of this file."""

    images: NDArray[np.str_]  # (N,)
    classes: NDArray[np.str_]  # (K,)
    image: NDArray[np.int32]  # (M,), this and the next three
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    pixels: NDArray[np.int64]

    @property
    def matrix(self) -> Matrix:
        """The confusion matrix (K, K) of all images."""
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(matrix, (self.truth, self.predicted), self.pixels)
        return matrix

    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Intersection and union of each class in each image, (N, K) both, in pixels."""
        n, k = len(self.images), len(self.classes)
        hits, union = np.zeros((n, k)), np.zeros((n, k))
        right = self.truth == self.predicted
        np.add.at(hits, (self.image[right], self.truth[right]), self.pixels[right])
        np.add.at(union, (self.image, self.truth), self.pixels)
        np.add.at(union, (self.image[~right], self.predicted[~right]), self.pixels[~right])
        return hits, union


def gather(matrices: Iterable[Matrix], images: Iterable[str], classes: Iterable[str]) -> Counts:
    """The counts of `images` from their confusion matrices (K, K), which are read one by one."""
    columns: dict[str, list[NDArray[np.int64]]] = {name: [] for name in COLUMNS}
    for index, matrix in enumerate(matrices):
        truth, predicted = np.nonzero(matrix)
        found = (np.full(len(truth), index), truth, predicted, matrix[truth, predicted])
        for name, values in zip(COLUMNS, found, strict=True):
            columns[name].append(values)
    joined = {name: np.concatenate(parts) if parts else np.zeros(0, np.int64) for name, parts in columns.items()}
    return Counts(
        images=np.array(list(images), np.str_),
        classes=np.array(list(classes), np.str_),
        image=joined["image"].astype(np.int32),
        truth=joined["truth"].astype(np.uint8),
        predicted=joined["predicted"].astype(np.uint8),
        pixels=joined["pixels"].astype(np.int64),
    )


def write_counts(path: Path, runs: Mapping[Run, Counts]) -> None:
    """Write the counts of a cell atomically."""
    first = next(iter(runs.values()))
    arrays: dict[str, NDArray[np.generic]] = {"images": first.images, "classes": first.classes}
    for (seed, protocol), counts in runs.items():
        if not np.array_equal(counts.images, first.images):
            arrays[f"{seed}/{protocol}/images"] = counts.images
        arrays |= {f"{seed}/{protocol}/{name}": getattr(counts, name) for name in COLUMNS}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with (
            naming(path),
            partial.open("wb") as file,
        ):  # numpy gives each member of the archive the same date
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_counts(path: Path) -> dict[Run, Counts]:
    """The counts in `path` by seed and protocol, in the order in which they were written.

    Raises DataError when the file is missing, damaged or not a file of counts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"unpacks to {size:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            names = dict.fromkeys(tuple(name.split("/")[:2]) for name in file.files if "/" in name)
            return {
                (int(seed), protocol): checked(
                    Counts(
                        images=file[own if (own := f"{seed}/{protocol}/images") in file.files else "images"],
                        classes=file["classes"],
                        **{name: file[f"{seed}/{protocol}/{name}"] for name in COLUMNS},
                    )
                )
                for seed, protocol in names
            }
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except BROKEN as error:
        raise DataError(f"{path}: not counts as evaluate writes them ({type(error).__name__})") from None


def checked(counts: Counts) -> Counts:
    """`counts` unchanged. Raises ValueError for a wrong type or length, or an index out of range."""
    if any(names.dtype.kind != "U" or names.ndim != 1 for names in (counts.images, counts.classes)):
        raise ValueError("names")
    limits = (("image", np.int32, len(counts.images)), ("truth", np.uint8, len(counts.classes)))
    for name, kind, limit in (*limits, ("predicted", np.uint8, len(counts.classes)), ("pixels", np.int64, None)):
        column = getattr(counts, name)
        if column.dtype != kind or column.shape != counts.pixels.shape or column.ndim != 1:
            raise ValueError(name)
        if column.size and (column.min() < 0 or (limit is not None and column.max() >= limit)):
            raise ValueError(name)
    return counts
