"""Check and pack samples in worker processes.

A worker writes the pixels that it decodes to their place in the store and returns only the record: sending pixels to
one process that writes them takes longer than decoding. The places follow from the sizes in the headers of the images.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deeplab.errors import DataError, MaskError, SizeError
from pipeline.process import die_with_parent

if TYPE_CHECKING:
    from deeplab.store import Bytes, Color, Record
    from deeplab.store_writer import PixelFiles
    from pipeline.data.formats.base import Format, Mask, RawSample

Loaded = TypeVar("Loaded", "Bytes", "Mask")
Size = tuple[int, int]  # height, width

PART = 16  # samples in a part at most
READERS = 8  # threads that read headers: they wait for the disk
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
    colors: Mapping[int, Color]  # of the mask, as in formats.base.Mask
    turned: bool  # whether the image has an orientation, which was applied


@dataclass(frozen=True)
class Task:
    """A sample to pack."""

    split: str
    sample: RawSample
    offset: int  # in the store, in pixels
    size: Size  # by the header of the image; an orientation may swap the two


@dataclass(frozen=True, kw_only=True)
class Work:
    """Samples to pack: all of them, or the part that a worker gets."""

    format: str  # a key of FORMATS
    store: Path
    packed: bool  # whether to write images too
    tasks: Sequence[Task]


def sizes(kind: Format, samples: Sequence[RawSample]) -> Iterator[Size]:
    """The size of each image in order. UNKNOWN for an image with a problem, which `pack` reports."""

    def size(sample: RawSample) -> Size:
        try:
            return kind.size(sample)
        except DataError:
            return UNKNOWN

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(size, samples)


def tasks(samples: Sequence[tuple[str, RawSample]], found: Sequence[Size]) -> list[Task]:
    """A task for each of `samples`, (split, sample), whose images have the sizes `found`."""
    offsets = accumulate((height * width for height, width in found), initial=0)
    return [
        Task(split, sample, offset, size)
        for (split, sample), offset, size in zip(samples, offsets, found, strict=False)
    ]


@contextmanager
def started(workers: int) -> Iterator[Executor]:
    """Worker processes that run until the block ends. Raises OSError when the shared memory is full."""
    try:
        pool = ProcessPoolExecutor(workers, initializer=start_worker)
    except OSError as error:  # its locks are files there
        raise OSError(f"{SHARED}: {error.strerror}. Free some, or give the container more: --shm-size=64m") from None
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    keep_memory()


def keep_memory() -> None:
    """Make malloc keep the memory of one image for the next. Page faults make prepare a quarter slower without it."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT // 2)


def pack(pool: Executor, work: Work, workers: int) -> Iterator[Packed | list[Problem]]:
    """Pack all samples. Yields the record or the problems of each in order; DataError when a worker process dies."""
    given: list[tuple[Work, Future[list[Packed | list[Problem]]]]] = []
    try:
        for part in parts(work, part_size(len(work.tasks), workers)):
            given.append((part, pool.submit(pack_part, part)))
        for _, future in given:
            yield from future.result()
    except BrokenProcessPool:
        # Parts are taken in order, so that the dead worker had one of the first that are not done.
        left = [part for part, future in given if isinstance(future.exception(), BrokenProcessPool)]
        raise DataError(cause_of_death([one for part in left[:workers] for one in parts(part, 1)])) from None


def part_size(count: int, workers: int) -> int:
    """How many of `count` samples make a part: few enough to keep all workers busy until the end."""
    return max(1, min(PART, count // (4 * workers)))


def parts(work: Work, size: int) -> Iterator[Work]:
    """`work` in parts of `size` samples."""
    for start in range(0, len(work.tasks), size):
        yield replace(work, tasks=work.tasks[start : start + size])


def cause_of_death(suspects: Sequence[Work]) -> str:
    """Why a worker died: the first of `suspects`, of one sample each, that also ends a worker of its own, or memory."""
    with started(1) as pool:
        for one in suspects:
            try:
                pool.submit(pack_part, one).result()
            except BrokenProcessPool:
                where = f"{one.tasks[0].sample.image}: a worker process died on it."
                return f"{where} It crashes the decoder or needs too much memory. Replace it."
    return "A worker process was killed, probably because memory ran out. Free some and run the same command again."


def pack_part(work: Work) -> list[Packed | list[Problem]]:
    """The record or the problems of each sample of `work`. Runs in a worker."""
    from deeplab.store_writer import PixelFiles
    from pipeline.data.formats import FORMATS

    with PixelFiles(work.store) as files:
        return [pack_one(FORMATS[work.format], files, task, work.packed) for task in work.tasks]


def pack_one(kind: Format, files: PixelFiles, task: Task, packed: bool) -> Packed | list[Problem]:
    """Write a sample to its place and return its record, or everything that is wrong with it."""
    from deeplab.decode import orientation

    sample, expected = task.sample, task.size
    image, size, unreadable = attempt(kind.load_image, sample)
    of_image, turn = 0, orientation(sample.image)
    fits = size == expected or (turn > 4 and size == expected[::-1])  # 5 to 8 swap the sides
    if image is not None and fits:
        # Now, while it is in the processor's cache. If the mask is unusable there will be no store anyway.
        of_image = files.write_image(task.offset, image, packed)
    mask, shape, unusable = attempt(kind.load_mask, sample)
    problems = [problem for problem in (unreadable, unusable) if problem]
    if size and shape and size != shape:
        text = f"the mask is {shape[1]}x{shape[0]}, but {sample.image} is {size[1]}x{size[0]}"
        if turn > 1 and size == shape[::-1]:
            text += f" when turned upright by its EXIF orientation {turn}. Turn the mask, or remove the orientation"
        problems.append(Problem(SizeError, f"{sample.mask}: {text}"))
    if size and not fits:
        text = f"its header says {expected[1]}x{expected[0]}, but it is {size[1]}x{size[0]}. Save it again"
        problems.append(Problem(SizeError, f"{sample.image}: {text}"))
    if problems:
        return problems
    assert mask is not None
    record = files.write_mask(task.split, sample.id, task.offset, mask.ids, of_image, mask.pixels)
    return Packed(record, of_image, mask.colors, turn > 1)


def attempt(
    load_one: Callable[[RawSample], Loaded], sample: RawSample
) -> tuple[Loaded | None, Size | None, Problem | None]:
    """The image or mask, its size, and the problem with it. An unusable mask may have a size too."""
    try:
        loaded = load_one(sample)
    except DataError as error:
        return None, error.shape if isinstance(error, MaskError) else None, Problem(type(error), str(error))
    return loaded, (loaded.shape[0], loaded.shape[1]), None
