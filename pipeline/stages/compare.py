"""Compute how sure a data set's numbers are: an interval for each cell, and for the difference of every two.

Cells are compared on the same images, which makes a difference much more exact than either number. Cells without
results for the current settings, data and code, without counts, or with too few images are left out, and stderr says
why.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from deeplab.errors import DataError
from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.results.records import read_results
from pipeline.results.statistics import describe, read_runs, require_images
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

if TYPE_CHECKING:
    from deeplab.counts import Counts


def run(dataset: str, places: Places = Places()) -> None:
    """Write the statistics of `dataset` from the confusion counts of each image."""
    params = load_params(places.params)
    title = params.dataset(dataset).title
    results, reasons = read_results(dataset, params, places)
    found: dict[str, list[Counts]] = {}
    for name, cell in params.cells.items():
        if cell.dataset != dataset:
            continue
        try:
            if name in reasons:
                raise DataError(reasons[name])
            runs = read_runs([results[name, seed] for seed in params.runs[name]], params, places)
            require_images(runs)
            found[name] = runs
        except DataError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
    value, out = describe(found, params.cells), places.statistics(dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"{title}\n")
    for name, each in value["cells"].items():
        print(f"{name}: {100 * each['mIoU']:.2f} [{100 * each['low']:.2f}, {100 * each['high']:.2f}]")
    print("", *(pair["sentence"] for pair in value["pairs"]), f"\nin {out}", sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    run(parser.parse_args().dataset)


if __name__ == "__main__":
    run_command(main)
