"""Prepare the further splits of a data set that its cells are evaluated on, `eval_splits` in params.yaml.

Each is a store of its own in data/NAME/splits, with a data card in reports/data/NAME/splits. The store that the cells
are trained on stays as it is, so another split costs evaluations, never a training.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplab.errors import DataError
from pipeline.data.checks import Palettes, check_counts, report_problems, summary
from pipeline.data.pack import Packed, Problem, Work, pack, sizes, started, tasks
from pipeline.errors import run_command
from pipeline.process import cores
from pipeline.progress import shown
from pipeline.settings.params import Params, load_params, pick
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from deeplab.store import Store
    from pipeline.data.duplicates import Group


def run(name: str, places: Places = Places()) -> None:
    """Prepare each further split of the data set `name`, unless its store has it already, as the training split.

    Raises DataError when the data set is not prepared, or the raw data of a split is incomplete or damaged.
    """
    from deeplab.store import IGNORE, Store
    from pipeline.data.card import write_card
    from pipeline.data.duplicates import find_duplicates, names
    from pipeline.pictures.sheet import write_sheet

    places.require_own(places.data)
    params, main = load_params(places.params), Store(places.store(name))
    for folder in (places.splits(name), places.split_cards(name)):
        folder.mkdir(parents=True, exist_ok=True)
    for split in params.further(name):
        if split in params.splits[name]:
            continue
        checksums = build(name, split, main, params, places)
        store = Store(places.splits(name) / split)
        if not any(record.pixels.keys() - {IGNORE} for record in store.records):
            raise DataError(f"{places.raw(name)}: the masks of {split} hold ignored pixels alone: nothing to measure.")
        leaks = shared(store, main, checksums)
        published = {split: len(store.records)} | params.dataset(name).images
        write_card(
            store, name, published, [*leaks, *find_duplicates(store, checksums)], places.split_cards(name) / split
        )
        write_sheet(store, split, store.folder / "sheet.png")
        print(f"{name} {split}: {summary(store.records, len(store.classes))}")
        if leaks:
            where = " and ".join(sorted({record.split for group in leaks for record in group[1:]}))
            said = f"{len(leaks)} of {len(store.records)} images of {split} are also in {where}"
            example = f"for example {names(leaks[0])}; all are on the data card"
            print(f"{name}: WARNING: {said}, which makes its number too good: {example}")


def build(name: str, split: str, main: Store, params: Params, places: Places) -> list[int]:
    """Write the store of one split. Returns the CRC-32 of each image. Errors are those of `prepare`."""
    from deeplab.store_writer import StoreWriter
    from pipeline.data.formats import FORMATS

    config, raw, out = params.dataset(name), places.raw(name), places.splits(name) / split
    kind = pick(FORMATS, config.format, f"datasets.{name}.format")
    layout = kind.scan(raw, config, (split,))
    samples, packed, workers = layout.samples[split], config.store == "packed", cores()
    # Another number in `images` would prepare the whole data set again, so none is needed.
    config = replace(config, images={split: max(1, len(samples))} | config.images)
    check_counts(name, config, (split,), raw, layout)
    if layout.classes != main.classes:
        raise DataError(f"{raw}: other classes than those of {main.folder}. Run: dvc repro -f prepare@{name}")
    problems: list[list[Problem]] = []
    checksums, palettes = list[int](), Palettes()
    with StoreWriter(out, layout.classes, layout.palette) as store, started(workers) as pool:
        found = list(sizes(kind, samples))
        store.reserve(sum(height * width for height, width in found), packed)
        todo = tasks([(split, sample) for sample in samples], found)
        work = Work(format=config.format, store=out, packed=packed, tasks=todo)
        results = shown(pack(pool, work, workers), f"extend {name}: {split}", total=len(samples))
        for sample, result in zip(samples, results, strict=True):
            if not isinstance(result, Packed):
                problems.append(result)
            elif not problems:
                store.keep(result.record, None if packed else sample.image)
                checksums.append(result.image_checksum)
                palettes.add(sample.mask, result.colors)
        if problems:
            listed = places.store(name).with_name(f"{name}.{split}.problems.txt")
            raise DataError(report_problems(raw, len(samples), problems, listed))
        palettes.check(raw)
    return checksums


def shared(store: Store, main: Store, checksums: Sequence[int]) -> list[Group]:
    """Each sample of `store` whose image is in `main` too, pixel by pixel, followed by those of `main`.

    `checksums` are the CRC-32 of the images of `store`.
    """
    import numpy as np
    from isal.isal_zlib import crc32

    from deeplab.store import Split

    ours, theirs = (Split(each.folder, each.records, each.files) for each in (store, main))
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for index, (record, checksum) in enumerate(zip(store.records, checksums, strict=True)):
        alike[record.height, record.width, checksum].append(index)
    sides = {key[:2] for key in alike}
    found: dict[int, Group] = {}
    for other, record in enumerate(main.records):
        if (record.height, record.width) in sides:
            image = theirs.image(other)
            for index in alike.get((record.height, record.width, crc32(image.data)), ()):
                if np.array_equal(ours.image(index), image):
                    found.setdefault(index, [store.records[index]]).append(record)
    return [found[index] for index in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a key of `eval_splits` in params.yaml")
    run(parser.parse_args().dataset)


if __name__ == "__main__":
    run_command(main)
