"""Say how sure a data set's numbers are: an interval for each cell, and for the difference of every two.

Cells are compared on the same images, so that a difference is told much more exactly than either number. What is not of
today's settings, data and code, or has no counts, is left out, and why is said on stderr.
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from deeplab.errors import DataError
from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.results.records import Result, read_results
from pipeline.settings.params import PARAMS, Params, load_params

if TYPE_CHECKING:
    from deeplab.counts import Counts
    from deeplab.intervals import Interval

MAX_PAIRS = 200  # of cells; a minute or two for a large data set, where all pairs of 200 cells would take hours
NOTE = (
    "95 % over validation images, bootstrap of {resamples} resamples: what another set of as many images would change. "
    "Where a cell has several seeds, low_seeds and high_seeds also hold what another seed would change; with one "
    "seed that is not known."
)


def run(
    dataset: str, counts: Path, records: Path, reports: Path, data: Path, out: Path, params_file: Path = PARAMS
) -> None:
    """Write `out` from the counts of `dataset`'s cells; those in `records` that are today's say which count."""
    from deeplab.intervals import LEVEL, RESAMPLES

    params = load_params(params_file)
    title = params.dataset(dataset).title
    cells = {name: cell for name, cell in params.cells.items() if cell.dataset == dataset}
    results, reasons = read_results(cells, params, records, reports, data / "manifest.json")
    found: dict[str, list[Counts]] = {}
    for name in cells:
        own = [results[name, seed] for seed in params.seeds if (name, seed) in results]
        try:
            if not own:
                raise DataError(reasons[name])
            found[name] = read_runs(counts / f"{name}.npz", own, params)
        except DataError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
    told = {name: describe_cell(runs) for name, runs in found.items()}
    closest_first = sorted(combinations(found, 2), key=lambda pair: len(differing(cells[pair[0]], cells[pair[1]])))
    shown = closest_first[:MAX_PAIRS]
    pairs = [describe_pair(*((name, cells[name], found[name]) for name in pair)) for pair in shown]
    note = NOTE.format(resamples=RESAMPLES)
    if len(shown) < len(closest_first):
        note += f" Only the {len(shown)} of {len(closest_first)} pairs are here that differ in the fewest settings."
    value = {"level": LEVEL, "samples": RESAMPLES, "cells": told, "pairs": pairs, "note": note}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"{title}\n")
    for name, each in told.items():
        print(f"{name}: {100 * each['mIoU']:.2f} [{100 * each['low']:.2f}, {100 * each['high']:.2f}]")
    print("", *(pair["sentence"] for pair in pairs), f"\nin {out}", sep="\n")


def read_runs(path: Path, results: list[Result], params: Params) -> "list[Counts]":
    """The counts of each of `results` under the tables' protocol; DataError when they are of other scores."""
    from deeplab.counts import read_counts
    from deeplab.metrics import score

    protocol = next(iter(params.protocols))
    held = read_counts(path)
    for result in results:
        counts = held.get((result.seed, protocol))
        miou = round(score(counts.matrix).mean_iou, 6) if counts else None
        if miou != result.scores["mIoU"]:
            raise DataError(
                f"{path}: seed {result.seed} has mIoU {miou}, but the record {result.scores['mIoU']}. "
                f"Run: dvc repro -f {params.stage('evaluate', result.cell)}"
            )
    return [held[result.seed, protocol] for result in results]


def describe_cell(runs: "list[Counts]") -> dict[str, Any]:
    """The mIoU of a cell and how sure it is; shares."""
    from deeplab.intervals import interval, with_seeds

    images, seeds = interval(runs), mious(runs)
    return {
        "mIoU": round(images.estimate, 6),
        **ends(images),
        "images": len(runs[0].images),
        "seeds": len(seeds),
        "seed_std": round(stdev(seeds), 6) if len(seeds) > 1 else None,
        **ends(with_seeds(images, seeds), "_seeds"),
    }


Named = tuple[str, Cell, "list[Counts]"]


def describe_pair(one: Named, other: Named) -> dict[str, Any]:
    """Which of two cells is better, by how much, and whether that is clear."""
    from deeplab.intervals import difference, with_seeds

    if fmean(mious(one[2])) < fmean(mious(other[2])):
        one, other = other, one
    images = difference(one[2], other[2])
    both = with_seeds(images, mious(one[2]), mious(other[2]))
    shown = both or images
    clear = shown.low > 0
    value, low, high = (100 * share for share in (shown.estimate, shown.low, shown.high))
    shared, better, than = short_names(*one[:2], *other[:2])
    verdict = f"{better} better than {than} by" if clear else f"{better} and {than} do not differ clearly:"
    return {
        "better": one[0],
        "than": other[0],
        "difference": round(images.estimate, 6),
        **ends(images),
        **ends(both, "_seeds"),
        "clear": clear,
        "sentence": f"{shared}{verdict} {value:.1f} [{low:.1f}, {high:.1f}]",
    }


def mious(runs: "list[Counts]") -> list[float]:
    from deeplab.metrics import score

    return [score(each.matrix).mean_iou for each in runs]


def ends(found: "Interval | None", suffix: str = "") -> dict[str, float | None]:
    values = (round(found.low, 6), round(found.high, 6)) if found else (None, None)
    return dict(zip((f"low{suffix}", f"high{suffix}"), values, strict=True))


def differing(one: Cell, other: Cell) -> list[str]:
    """What of the two settings that a reader asks about differs, and `other` when anything else does."""
    kinds = [kind for kind in ("backbone", "output_stride") if getattr(one.model, kind) != getattr(other.model, kind)]
    model = replace(one.model, backbone=other.model.backbone, output_stride=other.model.output_stride)
    return kinds if replace(one, model=model) == other else [*kinds, "other"]


def short_names(one: str, one_cell: Cell, other: str, other_cell: Cell) -> tuple[str, str, str]:
    """What two cells share, and what each is called beside the other: `resnet50c: `, `OS8`, `OS16`."""
    kinds = differing(one_cell, other_cell)
    strides = [f"OS{cell.model.output_stride}" for cell in (one_cell, other_cell)]
    backbones = [cell.model.backbone for cell in (one_cell, other_cell)]
    if kinds == ["output_stride"]:
        return f"{backbones[0]}: ", strides[0], strides[1]
    if kinds == ["backbone"]:
        return f"{strides[0]}: ", backbones[0], backbones[1]
    return "", one, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    parser.add_argument("--counts", type=Path, required=True, help="where evaluate writes the counts of each image")
    parser.add_argument("--records", type=Path, required=True, help="where evaluate writes the data set's results")
    parser.add_argument("--reports", type=Path, required=True, help="where evaluate writes metrics")
    parser.add_argument("--data", type=Path, required=True, help="the prepared store, if it is there")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    run(arguments.dataset, arguments.counts, arguments.records, arguments.reports, arguments.data, arguments.out)


if __name__ == "__main__":
    run_command(main)
