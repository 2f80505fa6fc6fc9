"""Turn the raw data of a data set into a store: check every image and mask, and pack them for fast reading.

Writes the store to data/NAME with a sheet of samples to look at, and a data card to reports/data/NAME.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deeplab.errors import DataError
from pipeline.data.checks import (
    Palettes,
    check_classes,
    check_counts,
    check_overlap,
    report_problems,
    summary,
    warnings,
)
from pipeline.data.pack import Packed, Problem, Work, pack, sizes, started, tasks
from pipeline.errors import run_command
from pipeline.process import cores
from pipeline.progress import shown
from pipeline.settings.params import load_params, pick
from pipeline.settings.places import Places
from pipeline.settings.schema import DatasetConfig


def run(name: str, places: Places = Places()) -> None:
    """Prepare the training and the validation split of the data set `name`."""
    places.require_own(places.data)
    params = load_params(places.params)
    config, splits = params.dataset(name), pick(params.splits, name, "recipes")
    build(name, config, splits, places.raw(name), places.store(name), card=places.data_card(name))


def build(
    name: str,
    config: DatasetConfig,
    splits: tuple[str, str],
    raw: Path,
    out: Path,
    workers: int | None = None,
    card: Path | None = None,
) -> None:
    """Write the training and the validation split in the folder `raw` as a store in `out`.

    The folder `card` gets the data card, and the store a sheet of samples; without it there is neither. Raises
    DataError when the raw data is incomplete or damaged: it lists the problems, `out`.problems.txt has all of them, and
    there is no store.
    """
    from deeplab.store import Store
    from deeplab.store_writer import StoreWriter
    from pipeline.data.card import write_card
    from pipeline.data.duplicates import find_duplicates
    from pipeline.data.formats import FORMATS
    from pipeline.pictures.sheet import write_sheet

    kind = pick(FORMATS, config.format, f"datasets.{name}.format")
    layout = kind.scan(raw, config, splits)
    check_counts(name, config, splits, raw, layout)
    check_overlap(splits, raw, layout)
    samples = [(split, sample) for split in dict.fromkeys(splits) for sample in layout.samples[split]]
    workers, packed, total, title = workers or cores(), config.store == "packed", len(samples), f"prepare {name}"
    problems: list[list[Problem]] = []
    checksums: list[int] = []
    palettes, turned = Palettes(), list[Path]()
    with StoreWriter(out, layout.classes, layout.palette) as store, started(workers) as pool:
        found = list(shown(sizes(kind, [sample for _, sample in samples]), f"{title}: sizes", total=total))
        store.reserve(sum(height * width for height, width in found), packed)
        work = Work(format=config.format, store=out, packed=packed, tasks=tasks(samples, found))
        results = shown(pack(pool, work, workers), title, total=total)
        for (_, sample), result in zip(samples, results, strict=True):
            if not isinstance(result, Packed):
                problems.append(result)
            elif not problems:  # after the first problem the rest is only checked
                store.keep(result.record, None if packed else sample.image)
                checksums.append(result.image_checksum)
                palettes.add(sample.mask, result.colors)
                turned += [sample.image] * result.turned
        if problems:
            raise DataError(report_problems(raw, total, problems, problems_file(out)))
        palettes.check(raw)
        check_classes(name, splits, raw, layout, store.records)
    problems_file(out).unlink(missing_ok=True)
    written = Store(out)
    duplicates = find_duplicates(written, checksums)
    if card:
        write_card(written, name, config.images, duplicates, card)
        write_sheet(written, splits[0], out / "sheet.png")
    for split in splits:
        records = [record for record in store.records if record.split == split]
        print(f"{name} {split}: {summary(records, len(layout.classes))}")
    for line in warnings(duplicates, turned):
        print(f"{name}: {line}")


def problems_file(out: Path) -> Path:
    """The file that has the whole list of problems while there is no store in `out`."""
    return out.with_name(f"{out.name}.problems.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    run(parser.parse_args().dataset)


if __name__ == "__main__":
    run_command(main)
