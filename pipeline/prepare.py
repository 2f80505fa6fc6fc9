"""Turn a raw data set into the prepared store: every file is decoded and checked once, before any training."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import DataError, LabelError, MaskModeError, SizeError
from pipeline.errors import run_command
from pipeline.params import PARAMS, DatasetConfig, load_params, pick
from pipeline.process import die_with_parent

if TYPE_CHECKING:
    from deeplab.store import Bytes, Record
    from pipeline.datasets.layout import Layout, RawSample

    Pair = tuple[Bytes, Bytes]

# Where a problem stands in the list; any other is a file that is missing or cannot be read, and comes first.
RANK: dict[type[DataError], int] = {SizeError: 1, MaskModeError: 2, LabelError: 3}

MAX_WORKERS = 16  # more decode faster than one process can write
SHOWN = 20  # problems that are listed in a message
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Problem:
    """What is wrong with a sample."""

    kind: type[DataError]
    message: str


def run(
    name: str,
    config: DatasetConfig,
    splits: tuple[str, str],
    raw: Path,
    out: Path,
    workers: int | None = None,
    card: Path | None = None,
) -> None:
    """Write the training and the validation split of the data set `name` from the folder `raw` as a store in `out`.

    The folder `card` gets its card, and the store a sheet of samples to look at; without it there is neither.

    DataError when the raw data is incomplete or broken: it lists what is, and there is no store then.
    Beside the store `out`.problems.txt lists all of them.
    """
    from deeplab.store import Store, StoreWriter
    from pipeline.card import write_card, write_sheet
    from pipeline.datasets import FORMATS

    kind = pick(FORMATS, config.format, f"datasets.{name}.format")
    layout = kind.scan(raw, config, splits)
    check_counts(name, config, splits, raw, layout)
    check_overlap(splits, raw, layout)
    jobs = [(split, sample) for split in dict.fromkeys(splits) for sample in layout.samples[split]]
    results = decode_all(kind.load, [sample for _, sample in jobs], workers or min(os.cpu_count() or 1, MAX_WORKERS))
    problems: list[Problem] = []
    with StoreWriter(out, layout.classes, layout.palette) as store:
        for (split, sample), result in zip(jobs, with_progress(results, len(jobs), f"prepare {name}"), strict=True):
            if isinstance(result, Problem):
                problems.append(result)
            elif not problems:  # after the first one the others are only checked
                store.add(split, sample.id, *result, file=sample.image if config.store == "files" else None)
        if problems:
            raise DataError(report_problems(raw, len(jobs), problems, problems_file(out)))
    problems_file(out).unlink(missing_ok=True)
    if card:
        written = Store(out)
        write_card(written, name, config.images, card)
        write_sheet(written, splits[0], out / "sheet.png")
    for split in splits:
        records = [record for record in store.records if record.split == split]
        print(f"{name} {split}: {summary(records, len(layout.classes))}")


def check_counts(name: str, config: DatasetConfig, splits: tuple[str, ...], raw: Path, layout: Layout) -> None:
    """Refuse an empty split always, and another number of images than published unless the settings accept it."""
    different, kind = [], "subset"
    for split in splits:
        published = pick(config.images, split, f"datasets.{name}.images")
        found = len(layout.samples[split])
        if not found:
            raise DataError(f"{raw}: no images for the split {split!r} of {name}")
        if found != published:
            different.append(f"{found} of {published} {split} images")
        if found > published:
            kind = "not the published set"
    if not different:
        return
    subset = f"{kind}: {', '.join(different)}"
    if not config.allow_subset:
        raise DataError(
            f"{raw}: {subset}. Complete the data, or accept the difference: "
            f"set datasets.{name}.allow_subset: true in {PARAMS}."
        )
    print(f"{name}: {subset} (accepted by datasets.{name}.allow_subset)")


def check_overlap(splits: tuple[str, str], raw: Path, layout: Layout) -> None:
    """Refuse to validate on what is trained on."""
    train, val = ({sample.id for sample in layout.samples[split]} for split in splits)
    if both := sorted(train & val):
        names = ", ".join(both[:SHOWN]) + (f" and {len(both) - SHOWN} more" if len(both) > SHOWN else "")
        raise DataError(f"{raw}: {len(both)} images are both in {splits[0]} and in {splits[1]}: {names}")


def decode_all(
    load: Callable[[RawSample], Pair], samples: Iterable[RawSample], workers: int
) -> Iterator[Pair | Problem]:
    """What `attempt` gives for each sample, in order, from worker processes; few wait in memory at any time."""
    waiting: deque[tuple[RawSample, Future[Pair | Problem]]] = deque()

    def take() -> Pair | Problem:
        sample, future = waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            raise DataError(
                f"{sample.image}: a worker process died on this sample or one of the next {len(waiting)}. "
                "The machine was out of memory, or a file crashes the decoder."
            ) from None

    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(attempt, load, sample)))
            if len(waiting) > 2 * workers:
                yield take()
        while waiting:
            yield take()


def start_worker() -> None:
    """Leave Ctrl-C to the process that writes, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def attempt(load: Callable[[RawSample], Pair], sample: RawSample) -> Pair | Problem:
    """The decoded sample, or what is wrong with it."""
    try:
        image, mask = load(sample)
    except DataError as error:
        return Problem(type(error), str(error))
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        sizes = f"the mask is {mask_width}x{mask_height}, but {sample.image} is {width}x{height}"
        return Problem(SizeError, f"{sample.mask}: {sizes}")
    return image, mask


def with_progress(results: Iterable[Pair | Problem], total: int, title: str) -> Iterator[Pair | Problem]:
    """`results` unchanged, with a bar on a terminal and now and then a line elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(results, total=total, desc=title, unit="img")
        return
    said = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{title}: {done}/{total} images", flush=True)


def problems_file(out: Path) -> Path:
    """Where the whole list of problems is while there is no store in `out`."""
    return out.with_name(f"{out.name}.problems.txt")


def report_problems(raw: Path, total: int, problems: list[Problem], file: Path) -> str:
    """All problems of a data set, worst first: the first of them as one message, and the whole list in `file`."""
    lines = [problem.message for problem in sorted(problems, key=lambda problem: RANK.get(problem.kind, 0))]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    head = f"{raw}: {len(lines)} of {total} samples cannot be used. Mend or replace these files, nothing was written:"
    more = f"and {len(lines) - SHOWN} more. All: {file}" if len(lines) > SHOWN else f"This list: {file}"
    return "\n  ".join([head, *lines[:SHOWN], more])


def summary(records: list[Record], classes: int) -> str:
    """The content of a split in one line."""
    from deeplab.store import IGNORE

    pixels: Counter[int] = Counter()
    for record in records:
        pixels.update(record.pixels)
    present, ignored = len(pixels.keys() - {IGNORE}), pixels[IGNORE] / pixels.total()
    return f"{len(records)} images, {present} of {classes} classes, {ignored:.1%} of pixels ignored"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare", description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    parser.add_argument("--raw", type=Path, required=True, help="the folder with the unpacked official archives")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the store")
    parser.add_argument("--card", type=Path, required=True, help="the folder for the data card")
    args = parser.parse_args()
    die_with_parent()
    params = load_params()
    config, splits = params.dataset(args.dataset), pick(params.splits, args.dataset, "recipes")
    run(args.dataset, config, splits, args.raw, args.out, card=args.card)


if __name__ == "__main__":
    run_command(main)
