"""Turn a raw data set into the prepared store: every file is decoded and checked once, before any training."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deeplab.errors import DataError, LabelError, MaskModeError, SizeError
from pipeline.data.pack import Packed, Problem, cores, pack, plan, sizes, started
from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.settings.params import PARAMS, load_params, pick
from pipeline.settings.schema import DatasetConfig

if TYPE_CHECKING:
    from deeplab.store import Record
    from pipeline.data.duplicates import Group
    from pipeline.data.formats.base import Layout

# Where a problem stands in the list; any other is a file that is missing or cannot be read, and comes first.
RANK: dict[type[DataError], int] = {SizeError: 1, MaskModeError: 2, LabelError: 3}

SHOWN = 20  # problems that are listed in a message
SECONDS_BETWEEN_LINES = 10.0

Result = TypeVar("Result")


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
    from deeplab.store import Store
    from deeplab.store_writer import StoreWriter
    from pipeline.data.card import write_card, write_sheet
    from pipeline.data.duplicates import find_duplicates
    from pipeline.data.formats import FORMATS

    layout = pick(FORMATS, config.format, f"datasets.{name}.format").scan(raw, config, splits)
    check_counts(name, config, splits, raw, layout)
    check_overlap(splits, raw, layout)
    samples = [(split, sample) for split in dict.fromkeys(splits) for sample in layout.samples[split]]
    work = plan(config.format, samples, out, packed=config.store == "packed")
    workers, total, title = workers or cores(), len(samples), f"prepare {name}"
    problems: list[list[Problem]] = []
    checksums: list[int] = []
    with StoreWriter(out, layout.classes, layout.palette) as store, started(work, workers) as pool:
        found = list(with_progress(sizes(pool, work, workers), total, f"{title}: sizes"))
        store.reserve(sum(height * width for height, width in found), work.packed)
        results = with_progress(pack(pool, work, workers, found), total, title)
        for (_, sample), result in zip(samples, results, strict=True):
            if not isinstance(result, Packed):
                problems.append(result)
            elif not problems:  # after the first one the others are only checked
                store.keep(result.record, None if work.packed else sample.image)
                checksums.append(result.image_checksum)
        if problems:
            raise DataError(report_problems(raw, total, problems, problems_file(out)))
    problems_file(out).unlink(missing_ok=True)
    written = Store(out)
    duplicates = find_duplicates(written, checksums)
    if card:
        write_card(written, name, config.images, duplicates, card)
        write_sheet(written, splits[0], out / "sheet.png")
    for split in splits:
        records = [record for record in store.records if record.split == split]
        print(f"{name} {split}: {summary(records, len(layout.classes))}")
    for line in warnings(duplicates):
        print(f"{name}: {line}")


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


def with_progress(results: Iterable[Result], total: int, title: str) -> Iterator[Result]:
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


def report_problems(raw: Path, total: int, samples: Sequence[list[Problem]], file: Path) -> str:
    """All problems of a data set, worst first: the first of them as one message, and the whole list in `file`.

    `samples` are the problems of each sample that has any.
    """
    problems = sorted((one for each in samples for one in each), key=lambda problem: RANK.get(problem.kind, 0))
    lines = [problem.message for problem in problems]
    write_whole(file, "".join(f"{line}\n" for line in lines))
    head = f"{raw}: {len(samples)} of {total} samples cannot be used. Mend or replace these files, nothing was written:"
    more = f"and {len(lines) - SHOWN} more. All: {file}" if len(lines) > SHOWN else f"This list: {file}"
    return "\n  ".join([head, *lines[:SHOWN], more])


def warnings(duplicates: Sequence[Group]) -> Iterator[str]:
    """What to say about pictures that are there more than once: the official sets have some, so it is no error."""
    from pipeline.data.duplicates import across, names

    leaks = across(duplicates)
    if leaks:
        yield f"WARNING: {len(leaks)} images are in several splits under different names, which makes results too good:"
        yield from (f"  {names(group)}" for group in leaks[:SHOWN])
    if len(leaks) > SHOWN:
        yield f"  and {len(leaks) - SHOWN} more, all on the data card"
    if others := len(duplicates) - len(leaks):
        yield f"{others} images are more than once in one split: see the data card"


def summary(records: list[Record], classes: int) -> str:
    """The content of a split in one line."""
    from deeplab.store import IGNORE

    pixels: Counter[int] = Counter()
    for record in records:
        pixels.update(record.pixels)
    present, ignored = len(pixels.keys() - {IGNORE}), pixels[IGNORE] / pixels.total()
    return f"{len(records)} images, {present} of {classes} classes, {ignored:.1%} of pixels ignored"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.stages.prepare", description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    parser.add_argument("--raw", type=Path, required=True, help="the folder with the unpacked official archives")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the store")
    parser.add_argument("--card", type=Path, required=True, help="the folder for the data card")
    args = parser.parse_args()
    params = load_params()
    config, splits = params.dataset(args.dataset), pick(params.splits, args.dataset, "recipes")
    run(args.dataset, config, splits, args.raw, args.out, card=args.card)


if __name__ == "__main__":
    run_command(main)
