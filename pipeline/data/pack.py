"""Check and pack samples in worker processes.

A worker writes the pixels that it has decoded to their place in the store and sends back only the record: through one
process that writes, they would take longer than decoding. The places follow from the sizes, which headers tell.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import Array, c_char
from dataclasses import dataclass
from itertools import accumulate, chain
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deeplab.errors import DataError, MaskError, SizeError
from pipeline.process import die_with_parent

if TYPE_CHECKING:
    from deeplab.store import Bytes, Record
    from deeplab.store_writer import PixelFiles
    from pipeline.data.formats.base import Format, Mask, RawSample

Loaded = TypeVar("Loaded", "Bytes", "Mask")
Size = tuple[int, int]  # height, width

CHUNK = 16  # samples that a worker is given at once; fewer when there are not many
HEADERS = 128  # the same for headers, which are read much faster
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT = 64 << 20  # bytes
SHARED = Path("/dev/shm")  # noqa: S108  not for files of ours
UNKNOWN: Size = (0, 0)  # of a file that cannot be read


@dataclass(frozen=True)
class Problem:
    """What is wrong with a sample."""

    kind: type[DataError]
    message: str


@dataclass(frozen=True)
class Packed:
    """A sample whose pixels are in the store."""

    record: Record
    image_checksum: int  # CRC-32 of the image alone


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do. It travels once, when a worker starts; after that only numbers of samples do."""

    format: str  # a key of FORMATS
    samples: Sequence[tuple[str, RawSample]]  # with their splits
    store: Path
    packed: bool  # whether images are written too
    at_work: Array[c_char]  # per sample: b"\1" while a worker is busy with it


def plan(format: str, samples: Sequence[tuple[str, RawSample]], store: Path, packed: bool) -> Work:  # noqa: A002
    """The work of packing `samples`, with none begun."""
    return Work(format=format, samples=samples, store=store, packed=packed, at_work=RawArray(c_char, len(samples)))


@contextmanager
def started(work: Work, workers: int) -> Iterator[Executor]:
    """Worker processes for as long as the block lasts; DataError names the samples at which one of them died."""
    try:
        pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(work,))
    except OSError as error:  # its locks are files there
        raise OSError(f"{SHARED}: {error.strerror}. Free some, or give the container more: --shm-size=64m") from None
    try:
        yield pool
    except BrokenProcessPool:
        busy = [
            str(sample.image) for (_, sample), state in zip(work.samples, work.at_work, strict=True) if state != b"\0"
        ]
        where = f"{' or '.join(busy)}: a worker process died on it." if busy else "A worker process died at its start."
        raise DataError(f"{where} The machine was out of memory, or a file crashes the decoder.") from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Work  # in a worker process: its part in what start_worker was given


def start_worker(work: Work) -> None:
    """Leave Ctrl-C to the process that gives out the work, and end with it."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    keep_memory()
    _work = work


def keep_memory() -> None:
    """Have the C library use the memory of one image for the next: given back to the system, it comes page by page."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT // 2)


def sizes(pool: Executor, work: Work, workers: int) -> Iterator[Size]:
    """The size of each image, in order; UNKNOWN where reading it will tell what is wrong."""
    return chain.from_iterable(pool.map(measure, chunks(len(work.samples), workers, HEADERS)))


def pack(pool: Executor, work: Work, workers: int, found: Sequence[Size]) -> Iterator[Packed | list[Problem]]:
    """Pack all samples, whose images have the sizes `found`; give the record or the problems of each, in order."""
    offsets = list(accumulate((height * width for height, width in found), initial=0))
    parts = chunks(len(work.samples), workers, CHUNK)
    where = [[(offsets[index], found[index]) for index in part] for part in parts]
    return chain.from_iterable(pool.map(pack_part, parts, where))


def chunks(count: int, workers: int, most: int) -> list[range]:
    """The numbers up to `count` in parts of `most`, or fewer so that all workers are busy until the end."""
    step = max(1, min(most, count // (4 * workers)))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def measure(part: range) -> list[Size]:
    """The sizes of some images; in a worker."""
    kind, found = format_of(_work), []
    for index in part:
        with noted(index) as (_, sample):
            try:
                found.append(kind.size(sample))
            except DataError:
                found.append(UNKNOWN)
    return found


def pack_part(part: range, where: list[tuple[int, Size]]) -> list[Packed | list[Problem]]:
    """Pack some samples at these offsets; in a worker."""
    from deeplab.store_writer import PixelFiles

    results: list[Packed | list[Problem]] = []
    with PixelFiles(_work.store) as files:
        for index, (offset, size) in zip(part, where, strict=True):
            with noted(index) as (split, sample):
                results.append(pack_one(files, split, sample, offset, size))
    return results


@contextmanager
def noted(index: int) -> Iterator[tuple[str, RawSample]]:
    """The sample with this number, known to be worked on."""
    _work.at_work[index] = b"\1"
    yield _work.samples[index]
    _work.at_work[index] = b"\0"


def format_of(work: Work) -> Format:
    from pipeline.data.formats import FORMATS

    return FORMATS[work.format]


def pack_one(files: PixelFiles, split: str, sample: RawSample, offset: int, expected: Size) -> Packed | list[Problem]:
    """Pack a sample at `offset`, or tell all that is wrong with it."""
    kind = format_of(_work)
    image, size, unreadable = attempt(kind.load_image, sample)
    of_image = 0
    if image is not None and size == expected:
        # At once, while it is in the processor's cache. When the mask is of no use there will be no store anyway.
        of_image = files.write_image(offset, image, _work.packed)
    mask, shape, unusable = attempt(kind.load_mask, sample)
    problems = [problem for problem in (unreadable, unusable) if problem]
    if size and shape and size != shape:
        told = f"the mask is {shape[1]}x{shape[0]}, but {sample.image} is {size[1]}x{size[0]}"
        problems.append(Problem(SizeError, f"{sample.mask}: {told}"))
    if size and size != expected:
        told = f"its header says {expected[1]}x{expected[0]}, but it is {size[1]}x{size[0]}. Save it again"
        problems.append(Problem(SizeError, f"{sample.image}: {told}"))
    if problems:
        return problems
    assert mask is not None
    return Packed(files.write_mask(split, sample.id, offset, mask.ids, of_image, mask.pixels), of_image)


def attempt(
    load_one: Callable[[RawSample], Loaded], sample: RawSample
) -> tuple[Loaded | None, Size | None, Problem | None]:
    """The image or mask, its height and width, and what is wrong; the size may be known of one that is of no use."""
    try:
        loaded = load_one(sample)
    except DataError as error:
        return None, error.shape if isinstance(error, MaskError) else None, Problem(type(error), str(error))
    return loaded, (loaded.shape[0], loaded.shape[1]), None
